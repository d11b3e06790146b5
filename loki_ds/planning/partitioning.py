"""What ZeRO holds on a rank and moves between ranks, by formula: bytes from the sizes of a model,
its trained part and the settings.

The formulas are DeepSpeed 0.19's as measured (eval/reports/plan.md): full-precision masters are
kept at every stage from 1 on, also of float32 models; ZeRO-3 keeps small parameters whole, and does
not release a parameter that it will need again soon.
"""

from dataclasses import dataclass
from typing import Any

from loki_ds.distributed.zero.states import FULL, states_of
from loki_ds.planning.dry_run import MicroStep, SweepBatch


@dataclass(frozen=True)
class Setting:
    """How a model is spread: `launch/*.json` as DeepSpeed reads it, for so many ranks.

    Sizes in parameters.
    """

    ranks: int
    stage: int
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce_bucket: int = 0
    prefetch: int = 0
    persistent_below: int = 0
    reuse_within: int = 10**9

    @classmethod
    def of(cls, config: dict[str, Any] | None, ranks: int, hidden_size: int) -> "Setting":
        """By a DeepSpeed file, `auto` as transformers fills it; None is one process without it."""
        zero = (config or {}).get("zero_optimization", {})

        def size(key: str, auto: int, default: float) -> int:
            value = zero.get(key, default)
            return auto if value == "auto" else int(value)

        return cls(
            ranks=ranks,
            stage=int(zero.get("stage", 0)),
            offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
            offload_parameters=zero.get("offload_param", {}).get("device", "none") != "none",
            reduce_bucket=size("reduce_bucket_size", hidden_size**2, 5e8),
            prefetch=size("stage3_prefetch_bucket_size", int(0.9 * hidden_size**2), 5e7),
            persistent_below=size("stage3_param_persistence_threshold", 10 * hidden_size, 1e5),
            reuse_within=size("stage3_max_reuse_distance", 10**9, 1e9),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by part; `host` is what offloading puts into the host's memory instead."""

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    guard: float
    activations: float
    step: float
    host: float

    @property
    def peak(self) -> float:
        """The larger of two moments: the backward pass, and the optimizer's step, when gathered
        weights and activations are gone.
        """
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.guard
            + max(self.gathered + self.activations, self.step)
        )


@dataclass(frozen=True)
class Traffic:
    """Bytes of the whole tensors that one optimizer step brings together (`gathered`), reduces to
    shards, or reduces on all ranks.
    """

    gathered: float
    scattered: float
    reduced: float

    def wire(self, ranks: int) -> float:
        """Bytes that one rank sends, by ring algorithms: `(n-1)/n` of what is gathered or
        scattered, twice that of what is reduced.
        """
        return (self.gathered + self.scattered + 2 * self.reduced) * (ranks - 1) / ranks


def kept_bytes(masks: bool, pulled: bool) -> int:
    """Bytes that are kept beside every number that trains: in `mask` mode what is put back after
    each step and where, with a pull where it starts.
    """
    return (1 + FULL if masks else 0) + (FULL if pulled else 0)


def memory(step: MicroStep, setting: Setting, bytes_per_number: int, optimizer: str, kept: float) -> Memory:
    """What one rank holds while it trains.

    Args:
        bytes_per_number: bytes of a number in the model's dtype.
        optimizer: transformers' name (`training.optim`).
        kept: bytes of every trained number that stay beside it through the steps (`kept_bytes`).
    """
    trained = sum(step.trained)
    shards = setting.ranks if setting.stage else 1
    share = trained / shards
    persistent = sum(n for part in step.parts for n in part.parameters if n <= setting.persistent_below)
    weights = bytes_per_number * (
        step.total if setting.stage < 3 else persistent + (step.total - persistent) / setting.ranks
    )
    gradients = bytes_per_number * (trained if setting.stage < 2 else share)
    buckets = {2: 2, 3: 1}.get(setting.stage, 0) * bytes_per_number * setting.reduce_bucket
    states = FULL * (states_of(optimizer) + (1 if setting.stage or bytes_per_number < FULL else 0)) * share
    on_step = (FULL * share if bytes_per_number < FULL else 0) + (0 if "fused" in optimizer else 2 * FULL * share)
    on_host = states + gradients + kept * share if setting.offload_optimizer else 0
    return Memory(
        weights=0 if setting.offload_parameters else weights,
        gathered=bytes_per_number * (live_parameters(step, setting) + setting.prefetch) if _gathers(setting) else 0,
        gradients=buckets + (0 if setting.offload_optimizer else gradients),
        optimizer=0 if setting.offload_optimizer else states,
        guard=0 if setting.offload_optimizer else kept * share,
        activations=step.peak,
        step=0 if setting.offload_optimizer else on_step,
        host=on_host + (weights if setting.offload_parameters else 0),
    )


def traffic(step: MicroStep, setting: Setting, bytes_per_number: int, accumulation: int) -> Traffic:
    """What the ranks exchange in one optimizer step of `accumulation` micro-steps, apart from a few
    numbers (loss, norms, flags).

    With activation checkpointing ZeRO-3 gathers a layer for each of its two forward passes; it
    keeps a few, so this is somewhat high.
    """
    trained, small = (
        bytes_per_number * sum(step.trained),
        bytes_per_number * sum(n for n in step.trained if n <= setting.persistent_below),
    )
    if setting.ranks == 1:
        return Traffic(0, 0, 0)
    if setting.stage == 0:
        return Traffic(0, 0, trained)
    if setting.stage == 1:
        return Traffic(trained, 0, trained)
    if setting.stage == 2:
        return Traffic(trained, 0, accumulation * trained)
    gathers = sum(size * _times(soon, back, step.checkpointing) for size, soon, back in _reuse(step, setting))
    return Traffic(accumulation * bytes_per_number * gathers + small, accumulation * trained, 0)


def _times(stays: bool, goes_back: bool, checkpointing: bool) -> int:
    """How often a module is gathered in a micro-step: for its forward and, unless it stays whole
    until then, for its backward; a checkpointed one runs forward again, so it cannot stay.
    """
    if not goes_back or (stays and not checkpointing):
        return 1
    return 2


def sweep_memory(batch: SweepBatch, setting: Setting, bytes_per_number: int) -> float:
    """Bytes that one rank holds at the peak of a batch of the attribution."""
    if not _gathers(setting):
        return bytes_per_number * batch.total + batch.peak  # stage 3 on one rank holds all of it, too
    return bytes_per_number * (batch.total / setting.ranks + batch.largest) + batch.peak


def sweep_traffic(batch: SweepBatch, setting: Setting, bytes_per_number: int) -> Traffic:
    """What the ranks exchange in a turn of the attribution, a batch on each."""
    return Traffic(bytes_per_number * batch.gathered if _gathers(setting) else 0, 0, 0)


def _gathers(setting: Setting) -> bool:
    """Whether parameters lie on several ranks; with one, ZeRO-3 gathers nothing."""
    return setting.stage == 3 and setting.ranks > 1


def live_parameters(step: MicroStep, setting: Setting) -> int:
    """Parameters ZeRO-3 holds whole after the forward: the topmost, needed soon, and the head."""
    sizes = _reuse(step, setting)
    return max(sum(size for size, soon, _ in sizes if soon), max(size for size, _, _ in sizes))


def _reuse(step: MicroStep, setting: Setting) -> list[tuple[int, bool, bool]]:
    """Per module its partitioned parameters, whether they stay whole from forward to backward, and
    whether they have a backward.

    TRL reads the head's weight outside DeepSpeed's order of modules: gathered once, it lives until
    its gradient is taken. A tied one is there already if the embedding stayed whole.
    """
    *modules, head = step.parts
    reused, above = [], 0
    for part in reversed(modules):
        size = sum(n for n in part.parameters if n > setting.persistent_below)
        again = part.goes_back or (step.tied and part is modules[0])
        reused.append((size, again and above < setting.reuse_within, part.goes_back))
        above += size
    stayed = step.tied and reused[-1][1]
    return [*reused[::-1], (0 if stayed else sum(head.parameters), True, False)]
