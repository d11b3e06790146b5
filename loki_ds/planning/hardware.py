"""GPUs by name, from their makers' data sheets, and how much of that a run is taken to reach."""

from dataclasses import dataclass, replace

import torch

from loki_ds.distributed.device import on_cpu
from loki_ds.refusal import Refusal

REACHED = 0.4  # share of the peak that training's matrix products reach, when nothing measured is given
WIRE_REACHED = 0.7  # share of the links' rate that collectives reach
USABLE = 0.92  # share of the memory that is left after the driver, the libraries and fragmentation
PCIE = 25e9  # bytes a second between host and GPU
NODE = 8  # GPUs


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB; dense bfloat16 TFLOP/s; GB/s per GPU in the node (one way) and to others."""

    name: str
    memory: float
    tflops: float
    within: float
    between: float
    reached: float = REACHED

    def wire_rate(self, ranks: int) -> float:
        """Bytes a second that one rank sends at: the slowest link of the ring decides."""
        return WIRE_REACHED * 1e9 * (self.within if ranks <= NODE else self.between)

    def computing(self, flops: float) -> float:
        """Seconds."""
        return flops / (self.tflops * 1e12 * self.reached)

    def sending(self, size: float, ranks: int) -> float:
        """Seconds that one of so many ranks sends `size` bytes for."""
        return size / self.wire_rate(ranks)

    def seconds(self, flops: float, size: float, ranks: int) -> float:
        """The longer of computing and sending, which overlap."""
        return max(self.computing(flops), self.sending(size, ranks))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40, 312, 300, 25),
        Gpu("a100-80", 80, 312, 300, 25),
        Gpu("h100", 80, 989, 450, 50),
        Gpu("h200", 141, 989, 450, 50),
        Gpu("b200", 180, 2250, 900, 50),
        Gpu("l40s", 48, 362, 32, 25),
        Gpu("rtx4090", 24, 165, 32, 12.5),
    )
}


def gpu(name: str | None, memory: float | None, tflops: float | None) -> Gpu:
    """The GPU by name, or this machine's; with a memory (GiB) and a measured rate (TFLOP/s) in
    place of the sheet's, if given.

    Raises:
        Refusal: no such name, this machine's is not listed, or there is nothing of either.
    """
    for option, given in (("--memory", memory), ("--tflops", tflops)):
        if given is not None and given <= 0:
            raise Refusal(f"{option} is {given:g}, allowed is more than 0")
    card = GPUS.get(name) if name else this_machines()
    if card is None:
        raise Refusal(
            f"--gpu is {name}, allowed is one of {', '.join(GPUS)}; --memory and --tflops say what another one has"
        )
    if memory is not None:
        card = replace(card, memory=memory)
    return card if tflops is None else replace(card, tflops=tflops, reached=1.0)


def this_machines() -> Gpu:
    """The first GPU of this machine; an H100 where there is none."""
    if on_cpu():
        return GPUS["h100"]
    here = torch.cuda.get_device_properties()
    return listed_as(here.name, here.total_memory / 2**30)


def listed_as(name: str, memory: float) -> Gpu:
    """A GPU by the name that its driver gives, and its memory in GiB.

    Raises:
        Refusal: it is not listed.
    """
    alike = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in name.lower().replace(" ", "")]
    if not alike:
        raise Refusal(
            f"this machine's GPU is {name}, which is not listed; say --gpu with the nearest of {', '.join(GPUS)}, and "
            "--memory and --tflops of this one"
        )
    return min(alike, key=lambda gpu: abs(gpu.memory - memory))
