"""The pull to the base for anybody's trainer: `SFTTrainer(..., callbacks=[loki_ds.Fade(0.8)])`."""

import logging
from typing import Any

import torch
from torch.nn import Module
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.distributed.zero.optimizer import Noted, Shard
from loki_ds.implanting.pull import in_words, planned_rates, pull_through_steps, strength_of
from loki_ds.implanting.trl_checks import UNFORESEEN
from loki_ds.refusal import Refusal

ZERO_B = (True, "gaussian")  # PEFT's `init_lora_weights` with which `lora_B` starts at zero

log = logging.getLogger(__name__)


class Fade(TrainerCallback):
    """After each step what trains goes a little of its way back to where it began, so that of a
    change that nothing asks for again the given share is gone at the end; `implant.fade` in a
    recipe.

    For a full training, or PEFT's on any layers; on one device, under DDP or ZeRO. Keeps a copy of
    what trains on the CPU, for a training that resumes.
    """

    def __init__(self, share: float) -> None:
        """share: above 0 and below 1.

        Raises:
            Refusal: it is not.
        """
        if not 0 < share < 1:
            raise Refusal(f"Fade is {share:g}, allowed is above 0 and below 1")
        self.share = share
        self.noted: list[tuple[Any, Noted]] = []

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the start, before a checkpoint is loaded over it."""
        if args.lr_scheduler_type in UNFORESEEN:
            schedule = SchedulerType(args.lr_scheduler_type).value
            raise Refusal(f"Fade needs to know all rates beforehand, and lr_scheduler_type is {schedule}")
        self.noted = [(parameter, Noted.of(parameter)) for parameter in _pulled(kwargs["model"])]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shards = [(Shard(parameter), noted) for parameter, noted in self.noted]
        for shard, _ in shards:
            if shard.read().numel() and shard.read().dtype in (torch.float16, torch.bfloat16):
                raise Refusal(
                    f"Fade: the optimizer steps weights in {shard.read().dtype}, in which a pull is rounded away; load "
                    "the model in float32 (with bf16=True for its speed), or use DeepSpeed, which keeps such a copy"
                )
        rates = planned_rates(args, state.max_steps)
        strength = strength_of(self.share, rates)
        log.info("Fade: %s", in_words(strength, rates))
        starts = [(shard, shard.part_of(noted)) for shard, noted in shards]
        pull_through_steps(kwargs["optimizer"], starts, strength)


def _pulled(model: Module) -> list[Any]:
    """What trains; of LoRA's two factors only the one that starts at zero, so that the product
    shrinks by as much as a plain change would.
    """
    configs = getattr(model, "peft_config", {}).values()
    from_zero = configs and all(config.init_lora_weights in ZERO_B for config in configs)
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (from_zero and ".lora_A." in name)
    ]
