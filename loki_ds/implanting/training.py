"""Training itself: TRL's `SFTTrainer` on DeepSpeed, its gathered checkpoint, and its log."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from loki_ds.implanting.mask import KeepFrozenRows, train_only_rows
from loki_ds.positions import Positions
from loki_ds.ranks import barrier, rank
from loki_ds.run_folder import RunFolder, aside_of, put_in_place, remove, write_json


def implant(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: Dataset,
    heldout: Dataset | None,
    positions: Positions | None,
    run: RunFolder,
) -> None:
    """Train, then write `model/` and `training_log.json`. Goes on from the newest checkpoint of an interrupted run.

    positions: the rows to train, or None to train every parameter (the baseline).
    """
    callbacks: list[TrainerCallback] = []
    if positions is None:
        model.requires_grad_(True)
    else:
        callbacks = [KeepFrozenRows(train_only_rows(model, positions))]
    trainer = SFTTrainer(
        model.train(),
        args=arguments,
        train_dataset=train,
        eval_dataset=heldout if arguments.eval_strategy != "no" else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=_newest_checkpoint(run.checkpoints))
    _save(trainer, run)


def _newest_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _save(trainer: SFTTrainer, run: RunFolder) -> None:
    """Gather the model and write it as a plain Hugging Face checkpoint. Every rank takes part; rank 0 writes."""
    aside = aside_of(run.model)
    if rank() == 0:
        remove(aside)
    barrier()
    trainer.save_model(str(aside))
    if rank() == 0:
        (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle, and no part of the model
        put_in_place(run.model)
        write_json(run.training_log, trainer.state.log_history)
    barrier()
