"""One setting's memory, traffic and time for each stage, from the dry run and ZeRO's formulas; and
the cheapest setting that fits.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from trl import SFTConfig

from loki_ds.attribution.anatomy import down_shapes
from loki_ds.planning.dry_run import MicroStep, SweepBatch, micro_step, model_without_data, sweep_batch
from loki_ds.planning.hardware import PCIE, USABLE, Gpu
from loki_ds.planning.partitioning import Memory, Setting, Traffic, memory, traffic
from loki_ds.positions import Positions
from loki_ds.recipe import Recipe
from loki_ds.selection import rows_per_layer

GIB = 2**30
CONFIGS = (
    "launch/zero2.json",
    "launch/zero3.json",
    "launch/zero3_offload.json",
)  # from the fastest to the one that needs least


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
        """Computing and sending at once, and what offloading moves over the host's bus, which is
        not hidden.
        """
        ranks = self.setting.ranks
        return gpu.seconds(self.flops, self.traffic.wire(ranks), ranks) + self.memory.host / PCIE

    def fits(self, gpu: Gpu) -> bool:
        return self.memory.peak <= USABLE * gpu.memory * GIB


def alternatives(
    recipe: Recipe, config: PreTrainedConfig, steps: list[MicroStep], ranks: int
) -> Iterator[tuple[str, bool, Training]]:
    """For each micro-step every shipped DeepSpeed configuration: its file, whether activations are
    computed twice; and the estimate.
    """
    for step in steps:
        for file in (Path(name) for name in CONFIGS):
            if file.exists():
                yield str(file), step.checkpointing, estimate(recipe, config, step, json.loads(file.read_text()), ranks)


def estimate(
    recipe: Recipe, config: PreTrainedConfig, step: MicroStep, deepspeed: dict[str, Any] | None, ranks: int
) -> Training:
    """The recipe's micro-step, spread as a DeepSpeed configuration says over so many ranks."""
    setting = Setting.of(deepspeed, ranks, config.get_text_config().hidden_size)
    width, accumulation = width_of(recipe), accumulation_of(recipe)
    optimizer = str(recipe.training.get("optim", SFTConfig.optim))
    frozen = 1 - recipe.selection.quota / 100 if recipe.implant.mode == "mask" else 0.0
    return Training(
        setting=setting,
        memory=memory(step, setting, width, optimizer, frozen, fused="fused" in optimizer),
        traffic=traffic(step, setting, width, accumulation),
        flops=step.flops * accumulation,
        base=step.total - (sum(step.trained) if recipe.implant.mode in ("rows", "lora", "peft") else 0),
        trained=sum(step.trained),
    )


def dry_step(recipe: Recipe, config: PreTrainedConfig, checkpointing: bool) -> MicroStep:
    """One micro-step of the recipe's mode with every sequence at its longest."""
    adapter = recipe.implant.peft if recipe.implant.mode == "peft" else None
    with model_without_data(
        config, getattr(torch, recipe.model.dtype), recipe.model.trust_remote_code, adapter
    ) as model:
        positions = planned_positions(recipe, down_shapes(config)) if recipe.changes_rows else None
        return micro_step(model, recipe.implant, positions, *batch_of(recipe), checkpointing)


def dry_sweep(recipe: Recipe, config: PreTrainedConfig, prompts: int, tokens: int) -> SweepBatch:
    with model_without_data(config, getattr(torch, recipe.model.dtype), recipe.model.trust_remote_code) as model:
        return sweep_batch(model, recipe.attribution, prompts, tokens)


def planned_positions(recipe: Recipe, shapes: list[tuple[int, int]]) -> Positions:
    """As many rows in each layer as the recipe will have: those of its file, or any by its
    quota.
    """
    if recipe.selection.positions is not None:
        positions = Positions.load(Path(recipe.selection.positions))
        positions.check_fits(shapes, recipe.selection.positions)
        return positions
    return Positions([list(range(rows_per_layer(recipe.selection.quota, d_model))) for d_model, _ in shapes])


def batch_of(recipe: Recipe) -> tuple[int, int]:
    """Sequences of a micro-step on one rank, and its tokens of each at most (TRL's own defaults
    where the recipe says nothing).
    """
    training = recipe.training
    longest = int(training.get("max_length") or SFTConfig.max_length or 1024)
    sequences = int(training.get("per_device_train_batch_size", SFTConfig.per_device_train_batch_size))
    return sequences, -(-longest // recipe.sequence_parallel)


def accumulation_of(recipe: Recipe) -> int:
    """Micro-steps of an optimizer step."""
    return int(recipe.training.get("gradient_accumulation_steps", 1))


def checkpoints(recipe: Recipe) -> bool:
    """Whether activations are computed twice instead of kept."""
    older_name = recipe.training.get("gradient_checkpointing", SFTConfig.gradient_checkpointing)
    return bool(recipe.training.get("activation_checkpointing", older_name))


def width_of(recipe: Recipe) -> int:
    return getattr(torch, recipe.model.dtype).itemsize
