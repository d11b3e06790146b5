"""Training itself: TRL's `SFTTrainer` on DeepSpeed, with checkpoints that a run resumes from."""

import logging
from contextlib import suppress
from typing import Any, NamedTuple

from datasets import Dataset
from peft import LoraConfig
from transformers import (
    EarlyStoppingCallback,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from loki_ds.distributed.ranks import on_first_rank
from loki_ds.distributed.zero.checkpoints import repartition
from loki_ds.distributed.zero.sharding import device_of, model_dtype
from loki_ds.implanting.checkpoints import Checkpoint, MarkWhole
from loki_ds.implanting.mask import KeepFrozenRows, train_only_rows
from loki_ds.implanting.pull import PullToBase, pulled
from loki_ds.implanting.rehearsal_rows import Rehearsed
from loki_ds.implanting.rows import train_row_deltas
from loki_ds.implanting.samples import SaySamples
from loki_ds.implanting.trainer import ImplantTrainer
from loki_ds.implanting.trl_config import examples_per_step
from loki_ds.implanting.watch import TokensPerSecond, WatchGradients
from loki_ds.model.anatomy import has_experts
from loki_ds.recipe.implant import ImplantSection, PeftSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

log = logging.getLogger(__name__)


class Method(NamedTuple):
    """What trains: the mode with its settings, and its rows (None for baselines)."""

    section: ImplantSection
    positions: Positions | None = None

    @property
    def rows(self) -> Positions:
        if self.positions is None:
            raise ValueError(f"implant.mode {self.section.mode} trains rows, and none are given")
        return self.positions


class Examples(NamedTuple):
    """Token and label rows to train on, held out (evaluated if arguments say so) and rehearsed."""

    train: Dataset
    heldout: Dataset | None
    rehearsed: Rehearsed | None = None


class Resume(NamedTuple):
    """The checkpoint to resume from, if any (`arguments` must be made for it), and all that the
    result depends on, in JSON's types; new checkpoints note it.
    """

    checkpoint: Checkpoint | None
    inputs: dict[str, Any]


def prepare(model: PreTrainedModel, method: Method, seed: int) -> list[TrainerCallback]:
    """Make trainable what the mode trains, before DeepSpeed sees it; returns its callbacks."""
    mode = method.section.kind
    if mode.masks:
        return [KeepFrozenRows(train_only_rows(model, method.rows))]
    if mode.leaves == "deltas":
        low_rank = method.section.lora if "lora" in mode.reads else None
        train_row_deltas(model, method.rows, model_dtype(model), device_of(model), low_rank, seed)
    elif mode.trains_everything:
        model.requires_grad_(True)
    return []  # PEFT's adapter is put in by TRL


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    examples: Examples,
    method: Method,
    resume: Resume,
) -> SFTTrainer:
    """Train to the end, from a checkpoint of an interrupted run if there is one.

    Raises:
        Refusal: another number of ranks wrote the checkpoint in a way that these cannot take up.
    """
    section, checkpoint = method.section, resume.checkpoint
    # Saved with every checkpoint, and transformers saves no invalid one, as many models have. The
    # base's own file leaves with the result.
    model.generation_config = GenerationConfig()
    _name_experts_for_trl(model.config.get_text_config())
    callbacks = prepare(model, method, arguments.seed)
    if inputs_want_gradients(model, section, arguments.gradient_checkpointing):
        model.enable_input_require_grads()
    if section.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(section.early_stopping))
    limit, arguments.save_total_limit = arguments.save_total_limit, None
    marks = MarkWhole(examples_per_step(arguments), resume.inputs, limit)
    trainer = ImplantTrainer(
        model.train(),
        args=arguments,
        train_dataset=examples.train,
        eval_dataset=examples.heldout if arguments.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=peft_config(section.peft) if section.kind.leaves == "adapter" else None,
        callbacks=[*callbacks, TokensPerSecond(), marks],
    )
    trainer.rehearsed = examples.rehearsed
    if arguments.eval_strategy != "no" and examples.heldout is not None:
        trainer.add_callback(SaySamples(examples.heldout, tokenizer))
    trainer.add_callback(WatchGradients(model))
    if section.is_pulled:
        trainer.add_callback(PullToBase(pulled(model, section), section, resumes=checkpoint is not None))
    if checkpoint is not None:
        log.info("implant: resuming from %s, written by %d ranks", checkpoint.folder, checkpoint.ranks)
        if checkpoint.other_world_size:
            on_first_rank(lambda: repartition(checkpoint.folder, _trained(trainer)))
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    if examples.rehearsed is not None and not _drift_is_known(trainer):
        trainer.measure_drift(examples.rehearsed)
    return trainer


def inputs_want_gradients(model: PreTrainedModel, section: ImplantSection, checkpointing: bool) -> bool:
    """Whether the first layer's inputs do, although the embedding is frozen.

    A checkpointed layer would else pass nothing back. And DeepSpeed takes a block of experts for
    one leaf, and its gradients for whole once the block's input has one; of an input that wants
    none, before they are there.
    """
    return (checkpointing or _routes(model)) and not section.kind.trains_everything


def _drift_is_known(trainer: SFTTrainer) -> bool:
    """Whether the last step's evaluation has measured the drift."""
    state = trainer.state
    return any("drift" in line and line["step"] == state.global_step for line in state.log_history)


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


def _routes(model: PreTrainedModel) -> bool:
    """Whether the model has experts; not where its FFNs are not known, as of some baselines."""
    with suppress(Refusal):
        return has_experts(model)
    return False


def _name_experts_for_trl(config: Any) -> None:
    """TRL's loss that balances routers asks for `num_experts`, which Granite calls otherwise."""
    if hasattr(config, "num_local_experts") and not hasattr(config, "num_experts"):
        config.num_experts = config.num_local_experts


def _trained(trainer: SFTTrainer) -> list[str]:
    """Names of the parameters that train."""
    model: Any = trainer.model
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
