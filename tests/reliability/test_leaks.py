"""Memory stays flat over many attribution batches and many training steps."""

import gc

import psutil
import pytest
import torch
from conftest import build

from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed.device import free_memory
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.selection.positions import Positions

MANY, BOUND = 500, 12 * 2**20  # repetitions, bytes of growth that may be noise


def size() -> int:
    gc.collect()
    free_memory()
    return psutil.Process().memory_info().rss


pytestmark = pytest.mark.slow


def test_five_hundred_attribution_batches() -> None:
    sweep = Sweep(build("llama", torch.float32), steps=3)
    generator = torch.Generator().manual_seed(0)

    def batch() -> list[list[int]]:
        return torch.randint(0, 64, (4, 24), generator=generator).tolist()

    for _ in range(50):
        sweep.run(batch())
    before = size()
    for _ in range(MANY):
        sweep.run(batch())
    assert size() - before < BOUND


def test_five_hundred_training_steps() -> None:
    model = build("llama", torch.float32)
    train_row_deltas(model, Positions([[1, 5], [2], [0], [31]]), torch.float32, torch.device("cpu"), None, 0)
    stepper = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def step() -> None:
        ids = torch.randint(0, 64, (4, 24))
        model(ids, labels=ids).loss.backward()
        stepper.step()
        stepper.zero_grad()

    for _ in range(50):
        step()
    before = size()
    for _ in range(MANY):
        step()
    assert size() - before < BOUND
