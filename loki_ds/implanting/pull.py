"""The pull to the base: after each step what trains goes back by `learning_rate * pull` of its way.

Decoupled, as AdamW's decay is, but towards the base and not towards zero (L2-SP: Li et al., ICML
2018, in its decoupled form). The same for every mode: of a product of two factors only the one that
starts at zero is pulled, so that the product shrinks by as much as a plain delta.
"""

from typing import Any

from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.implant_section import ImplantSection
from loki_ds.zero.optimizer import Noted, Shard, after_each_step, just_stepped, learning_rate


def pulled(model: Module, section: ImplantSection) -> list[Tensor]:
    """The trainable parameters that are pulled to where they start."""
    from_zero = section.kind.leaves == "deltas" or (section.kind.leaves == "adapter" and section.peft.method != "pissa")
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (from_zero and _starts_anywhere(name))
    ]


def _starts_anywhere(name: str) -> bool:
    """Whether this is the factor whose partner starts at zero (`rows.RowLinear`, PEFT's LoRA)."""
    return name.endswith(".delta_b") or ".lora_A." in name


class PullToBase(TrainerCallback):
    """Hands the start of what is pulled to the optimizer's shards as soon as the engine exists.

    Made before the engine. When a training resumes, the start is noted at once, for the checkpoint
    will overwrite it; otherwise the shards themselves begin there.
    """

    def __init__(self, parameters: list[Tensor], strength: float, resumes: bool) -> None:
        self.parameters, self.strength = parameters, strength
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
        pull_through_steps(kwargs["optimizer"], list(zip(shards, starts, strict=True)), self.strength)


def pull_through_steps(optimizer: Any, starts: list[tuple[Shard, Tensor]], strength: float) -> None:
    """After each step of the optimizer `p <- p - lr * strength * (p - start)`, on this rank's
    shards in full precision.
    """

    def pull() -> None:
        way, stepped = min(learning_rate(optimizer) * strength, 1.0), just_stepped(optimizer)
        for shard, start in starts:
            if shard.lies_in(stepped):
                shard.write(shard.read().lerp_(start, way))

    after_each_step(optimizer, pull)
