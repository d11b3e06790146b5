"""Training itself: TRL's `SFTTrainer` on DeepSpeed, from a prepared model to a trained one, with
checkpoints to go on from.
"""

import logging
import time
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from loki_ds.implanting.arguments import examples_per_step
from loki_ds.implanting.checkpoints import Checkpoint, MarkWhole
from loki_ds.implanting.mask import KeepFrozenRows, quiet_rows, train_only_rows
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.implanting.watch import WatchedTrainer, WatchGradients
from loki_ds.positions import Positions
from loki_ds.ranks import on_first_rank
from loki_ds.recipe import ImplantSection, PeftSection
from loki_ds.refusal import Refusal
from loki_ds.zero import device_of, model_dtype, pull_to_start, repartition

log = logging.getLogger(__name__)


def prepare(
    model: PreTrainedModel, section: ImplantSection, positions: Positions | None, quiet: list[Tensor] | None, seed: int
) -> list[TrainerCallback]:
    """Make exactly what the mode trains trainable, before DeepSpeed sees the model; returns the
    callbacks the mode needs.
    """
    if section.mode == "mask":
        assert positions is not None  # the recipe sees to it, here and below
        return [KeepFrozenRows(train_only_rows(model, positions), quiet_rows(model, positions, quiet) if quiet else {})]
    if section.mode in ("rows", "lora"):
        assert positions is not None
        low_rank = section.lora if section.mode == "lora" else None
        train_row_deltas(model, positions, model_dtype(model), device_of(model), low_rank, seed, quiet)
    elif section.mode == "full":
        model.requires_grad_(True)
        return [PullToBase(section.l2_sp)] if section.l2_sp is not None else []
    return []


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    section: ImplantSection,
    data: tuple[Dataset, Dataset | None],
    positions: Positions | None,
    quiet: list[Tensor] | None,
    checkpoint: Checkpoint | None,
    made_from: dict[str, Any],
) -> SFTTrainer:
    """Train to the end, from a checkpoint of an interrupted run if there is one.

    Args:
        data: the examples to train on and the held-out ones (evaluated when `arguments` say so).
        positions: the rows to train; None for baselines.
        quiet: per layer the basis `[d_ff, r]` that a quiet implant keeps out of.
        checkpoint: to go on from; `arguments` must be made for it.
        made_from: all that the result depends on, in JSON's types; new checkpoints note it.

    Raises:
        Refusal: another number of ranks wrote the checkpoint in a way that these cannot take up.
    """
    callbacks = prepare(model, section, positions, quiet, arguments.seed)
    if arguments.gradient_checkpointing and section.mode != "full":
        model.enable_input_require_grads()  # or a checkpointed layer, whose inputs are frozen, would pass nothing back
    if section.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(section.early_stopping))
    trainer = WatchedTrainer(
        model.train(),
        args=arguments,
        train_dataset=data[0],
        eval_dataset=data[1] if arguments.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=peft_config(section.peft) if section.mode == "peft" else None,
        callbacks=[*callbacks, TokensPerSecond(), MarkWhole(examples_per_step(arguments), made_from)],
    )
    check_something_is_learnt(trainer.train_dataset, arguments.max_length)
    trainer.add_callback(WatchGradients(model))
    assert trainer.model is not None  # for the type checker
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    if checkpoint is not None and checkpoint.by_others:
        on_first_rank(lambda: repartition(checkpoint.folder, trained))
    if checkpoint is not None:
        log.info("implant: going on from %s, written by %d ranks", checkpoint.folder, checkpoint.ranks)
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    return trainer


def check_something_is_learnt(rows: Dataset, max_length: int | None) -> None:
    """Refuse data in which the cut-off leaves no token to learn.

    rows: as TRL has rendered, cut and masked them.
    """
    mask = next((name for name in ("assistant_masks", "completion_mask") if name in rows.column_names), None)
    if mask is not None and not any(any(row) for row in rows[mask]):
        raise Refusal(
            f"data.train: after the cut at training.max_length {max_length} no example has a token left that is "
            "trained on"
        )


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
                f"{args.output_dir}: implant.l2_sp cannot go on from a checkpoint (it pulls to where it began); "
                "delete it"
            )
        trained = [parameter for parameter in kwargs["model"].parameters() if parameter.requires_grad]
        pull_to_start(kwargs["optimizer"], trained, self.strength)


class TokensPerSecond(TrainerCallback):
    """Adds `tokens_per_second` (all ranks together, since the last entry) to the log."""

    def __init__(self) -> None:
        self.before = (0.0, time.monotonic())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seen = next((entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry), 0.0)
        self.before = (seen, time.monotonic())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "num_tokens" in logs and "loss" in logs:
            (tokens, then), now = self.before, time.monotonic()
            self.before = (logs["num_tokens"], now)
            state.log_history[-1]["tokens_per_second"] = round((logs["num_tokens"] - tokens) / max(now - then, 1e-9), 1)
