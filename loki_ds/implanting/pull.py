"""The pull to the base: after each step what trains goes back by `learning_rate * pull` of its way.
Or by the pull after which a given share of it is gone at the end, if nothing asks for it again.

Decoupled, as AdamW's decay is, but towards the base and not towards zero (L2-SP: Li et al., ICML
2018, in its decoupled form). The same for every mode: of a product of two factors only the one that
starts at zero is pulled, so that the product shrinks by as much as a plain delta.
"""

import logging
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from loki_ds.distributed.zero.optimizer import Noted, Shard, after_each_step, just_stepped, learning_rate
from loki_ds.recipe.implant import ImplantSection

log = logging.getLogger(__name__)


def pulled(model: Module, section: ImplantSection) -> list[Tensor]:
    """The trainable parameters that are pulled to where they start."""
    leaves = section.kind.leaves
    return trained_from(model, leaves == "deltas" or (leaves == "adapter" and section.peft.method != "pissa"))


def trained_from(model: Module, from_zero: bool) -> list[Tensor]:
    """The trainable parameters; of two factors of which one starts at zero, that one."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (from_zero and _starts_anywhere(name))
    ]


def _starts_anywhere(name: str) -> bool:
    """Whether this is the factor whose partner starts at zero (`rows.RowDelta`, PEFT's LoRA)."""
    return name.endswith("delta_b") or ".lora_A." in name


class PullToBase(TrainerCallback):
    """Hands the start of what is pulled to the optimizer's shards as soon as the engine exists.

    Made before the engine. When a training resumes, the start is noted at once, for the checkpoint
    will overwrite it; otherwise the shards themselves begin there.
    """

    def __init__(self, parameters: list[Tensor], section: ImplantSection, resumes: bool) -> None:
        self.parameters, self.section = parameters, section
        self.noted = [Noted.of(parameter) for parameter in parameters] if resumes else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shards = [Shard(parameter) for parameter in self.parameters]
        if self.noted is None:
            starts = [shard.read().clone() for shard in shards]
        else:
            starts = [shard.part_of(noted) for shard, noted in zip(shards, self.noted, strict=True)]
            self.noted = None
        strength = self.section.pull
        if self.section.fade:  # of another training's rates nobody may know before they come
            rates = planned_rates(args, state.max_steps)
            strength = strength_of(self.section.fade, rates)
            log.info("implant: %s", in_words(strength, rates))
        pull_through_steps(kwargs["optimizer"], list(zip(shards, starts, strict=True)), strength)


def pull_through_steps(optimizer: Any, starts: list[tuple[Shard, Tensor]], strength: float) -> None:
    """After each step `p -= lr * strength * (p - start)`, on this rank's full-precision shards."""

    def pull() -> None:
        way, stepped = min(learning_rate(optimizer) * strength, 1.0), just_stepped(optimizer)
        for shard, start in starts:
            if shard.lies_in(stepped):
                shard.write(shard.read().lerp_(start, way))

    after_each_step(optimizer, pull)


def planned_rates(arguments: TrainingArguments, steps: int) -> np.ndarray:
    """The learning rate of every step `[steps]`, float64, of a schedule of transformers' that is
    known beforehand (`trl_checks.UNFORESEEN` are not).
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # type: ignore[arg-type]  # read by now
    )
    rates = np.empty(steps)
    for step in range(steps):
        rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    return rates


def strength_of(fade: float, rates: np.ndarray) -> float:
    """The pull by which that share of a change is gone after these steps; 0 if none has a rate."""
    if not rates.any():
        return 0.0
    left, most = np.log1p(-fade), (1 - 1e-12) / rates.max()
    return float(brentq(lambda pull: np.log1p(-pull * rates).sum() - left, 0.0, most))


def gone(strength: float, rates: np.ndarray) -> float:
    """The share of its way back that a change has gone after these steps if nothing renews it."""
    return float(1 - np.prod(1 - np.minimum(strength * rates, 1)))


def in_words(strength: float, rates: np.ndarray) -> str:
    return (
        f"a pull of {strength:.3g}: over {len(rates):,} steps it takes back {100 * gone(strength, rates):.0f}% of what "
        "nothing asks for again"
    )
