"""The pull to the base for anybody's trainer: `SFTTrainer(..., callbacks=[loki_ds.Fade(0.8)])`."""

from typing import Any

import torch
from transformers import SchedulerType, TrainerControl, TrainerState, TrainingArguments

from loki_ds.distributed.zero.optimizer import Noted, Shard
from loki_ds.implanting.pull import PullToBase, trained_from
from loki_ds.implanting.trl_checks import UNFORESEEN
from loki_ds.recipe.implant import ImplantSection
from loki_ds.refusal import Refusal

ZERO_B = (True, "gaussian")  # PEFT's `init_lora_weights` with which `lora_B` starts at zero


class Fade(PullToBase):
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
        super().__init__([], ImplantSection(mode="full", fade=share), resumes=True)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the start, before a checkpoint is loaded over it."""
        if args.lr_scheduler_type in UNFORESEEN:
            schedule = SchedulerType(args.lr_scheduler_type).value
            raise Refusal(f"Fade needs to know all rates beforehand, and lr_scheduler_type is {schedule}")
        configs = getattr(kwargs["model"], "peft_config", {}).values()
        from_zero = bool(configs) and all(config.init_lora_weights in ZERO_B for config in configs)
        self.parameters = trained_from(kwargs["model"], from_zero)
        self.noted = [Noted.of(parameter) for parameter in self.parameters]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for shard in map(Shard, self.parameters):
            if shard.read().numel() and shard.read().dtype in (torch.float16, torch.bfloat16):
                raise Refusal(
                    f"Fade: the optimizer steps weights in {shard.read().dtype}, in which a pull is rounded away; load "
                    "the model in float32 (with bf16=True for its speed), or use DeepSpeed, which keeps such a copy"
                )
        noted = self.noted
        super().on_train_begin(args, state, control, **kwargs)
        self.noted = noted  # a second training goes back to the same start
