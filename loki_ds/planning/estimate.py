"""One setting's memory, traffic and time, from the dry run and ZeRO's formulas."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from loki_ds.checking.findings import GIB
from loki_ds.implanting.training import Method
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.planning.dry_run import MicroStep, SweepBatch, micro_step, model_without_data, sweep_batch
from loki_ds.planning.hardware import PCIE, USABLE, Gpu
from loki_ds.planning.partitioning import Memory, Setting, Traffic, memory, traffic
from loki_ds.recipe.modes import Mode
from loki_ds.recipe.sections import AttributionSection, ModelSection


@dataclass(frozen=True)
class Training:
    """One optimizer step on one rank: bytes, bytes, and FLOPs."""

    setting: Setting
    memory: Memory
    traffic: Traffic
    flops: float
    base: int  # parameters of the base model
    trained: int

    def seconds(self, gpu: Gpu) -> float:
        """Computing and sending at once, then offloading's moves on the host's bus, not hidden."""
        ranks = self.setting.ranks
        return gpu.seconds(self.flops, self.traffic.wire(ranks), ranks) + self.memory.host / PCIE

    def fits(self, gpu: Gpu) -> bool:
        return self.memory.peak <= USABLE * gpu.memory * GIB


def estimate(step: MicroStep, setting: Setting, shape: TrainingShape, mode: Mode, kept: float = 0.0) -> Training:
    """A micro-step, spread over the ranks of a setting.

    kept: bytes beside every number that trains (`partitioning.kept_bytes`).
    """
    bytes_per_number = shape.bytes_per_number
    return Training(
        setting=setting,
        memory=memory(step, setting, bytes_per_number, shape.optimizer, kept),
        traffic=traffic(step, setting, bytes_per_number, shape.accumulation),
        flops=step.flops * shape.accumulation,
        base=step.total - (sum(step.trained) if mode.adds_parameters else 0),
        trained=sum(step.trained),
    )


def dry_step(config: PreTrainedConfig, model: ModelSection, method: Method, shape: TrainingShape) -> MicroStep:
    """One micro-step of the method with every sequence at its longest."""
    adapter = method.section.peft if method.section.kind.leaves == "adapter" else None
    with model_without_data(config, shape.dtype, model.trust_remote_code, adapter) as whole:
        return micro_step(whole, method, shape)


def dry_sweep(
    config: PreTrainedConfig, model: ModelSection, section: AttributionSection, prompts: int, tokens: int
) -> SweepBatch:
    """One batch of the attribution."""
    with model_without_data(config, getattr(torch, model.dtype), model.trust_remote_code) as whole:
        return sweep_batch(whole, section, prompts, tokens)
