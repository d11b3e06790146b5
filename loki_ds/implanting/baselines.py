"""What LoKI's rows are compared with: PEFT's adapters (LoRA, DoRA, PiSSA), and full fine-tuning
pulled back to the base (L2-SP).
"""

from collections.abc import Iterable
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.recipe import PeftSection
from loki_ds.refusal import Refusal
from loki_ds.zero.optimizer import Shard, after_each_step, learning_rate


def peft_config(section: PeftSection) -> LoraConfig:
    """PEFT's own configuration of a baseline."""
    return LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # PEFT computes with it as it is
        lora_dropout=section.dropout,
        target_modules=section.targets,
        use_dora=section.method == "dora",
        init_lora_weights="pissa" if section.method == "pissa" else True,
        task_type="CAUSAL_LM",
    )


class PullToBase(TrainerCallback):
    """The L2-SP baseline: every step ends with a pull back towards the base."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            raise Refusal(
                f"{args.output_dir}: implant.l2_sp cannot resume from a checkpoint (it pulls to where it began); "
                "delete it"
            )
        trained = [parameter for parameter in kwargs["model"].parameters() if parameter.requires_grad]
        pull_to_start(kwargs["optimizer"], trained, self.strength)


def pull_to_start(optimizer: Any, parameters: Iterable[Any], strength: float) -> None:
    """After each step of the optimizer, pull the parameters back towards what they are now:
    decoupled L2-SP (Li et al., ICML 2018).

    `p <- p - lr * strength * (p - start)`, on each rank's shards in full precision.
    """
    starts = [(shard := Shard(parameter), shard.read().clone()) for parameter in parameters]

    def pull() -> None:
        way = learning_rate(optimizer) * strength
        for shard, start in starts:
            shard.write(shard.read().lerp_(start, way))

    after_each_step(optimizer, pull)
