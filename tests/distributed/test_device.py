"""What a piece of work takes is seen, again and again, although the process keeps what it
once had.
"""

import pytest
import torch

from loki_ds.distributed.device import available_memory, on_cpu, peak_memory

MEBIBYTES = 2**20


@pytest.mark.skipif(not on_cpu(), reason="the host's own measure")
def test_peak_memory_sees_what_is_taken_and_given_back() -> None:
    for size in (200, 50, 200):
        taken = peak_memory(lambda size=size: [torch.ones(size // 8, MEBIBYTES // 4) for _ in range(8)])
        assert 0.8 * size * MEBIBYTES < taken < 1.3 * size * MEBIBYTES


def test_memory_is_available() -> None:
    assert available_memory() > 0
