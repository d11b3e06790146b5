"""Which GPU a plan is made for."""

import pytest

from loki_ds.planning.hardware import gpu, listed_as
from loki_ds.refusal import Refusal


@pytest.mark.parametrize(
    ("driver", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(driver: str, memory: float, name: str) -> None:
    assert listed_as(driver, memory).name == name


@pytest.mark.parametrize("driver", ["Tesla V100-SXM2-32GB", "NVIDIA A10G", "NVIDIA H20"])
def test_another_one_is_not_planned_for_in_silence(driver: str) -> None:
    with pytest.raises(Refusal, match=rf"this machine's GPU is {driver}, which is not listed; say --gpu"):
        listed_as(driver, 32)


@pytest.mark.parametrize(("memory", "tflops"), [(0, None), (None, 0), (-1, 5)])
def test_a_gpu_of_nothing_is_refused(memory: float | None, tflops: float | None) -> None:
    with pytest.raises(Refusal, match=r"--(memory|tflops) is (0|-1), allowed is more than 0"):
        gpu("h100", memory, tflops)


def test_what_is_said_of_a_gpu_stands_in_place_of_its_sheet() -> None:
    said = gpu("a100-40", memory=20, tflops=100)
    assert (said.memory, said.tflops, said.reached) == (20, 100, 1.0)
