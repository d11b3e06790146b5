"""Rehearsal for anybody's trainer: `loki_ds.rehearse(trainer, {"protected.jsonl": 0.1})`, before it
trains. What is learned and its loss change, which no callback can.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import Trainer

from loki_ds.attribution.batches import batches
from loki_ds.attribution.rope import length_class
from loki_ds.data.protected import load_protected
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.implanting.base_predictions import predict
from loki_ds.implanting.divergence import Predictions
from loki_ds.implanting.exchanges import texts_of
from loki_ds.implanting.rehearsal_rows import Rehearsal, Text, TextsOfKind, as_dataset, count_for
from loki_ds.implanting.trainer import Rehearsing
from loki_ds.recipe.implant import WRITTEN_BY_BASE, RehearseSection
from loki_ds.recipe.sections import ProtectedSection
from loki_ds.refusal import Refusal


def rehearse(
    trainer: Trainer,
    prompts: Mapping[str, float],
    written: str | Path | None = None,
    batch_size: int = 8,
) -> None:
    """Have a trainer learn, beside its own rows, what its model predicts now; `implant.rehearse` in
    a recipe.

    For a full training or PEFT's, on one device, under DDP or ZeRO; all ranks call it. One text in
    ten is held out: where the trainer evaluates, its log says how far they drift.

    Args:
        prompts: each with its share of all examples. A file like `protected.prompts`; or `base` and
            `boundary`, what the base wrote in a run.
        written: the run's `rehearsal/written.json`.
        batch_size: texts that are asked together.

    Raises:
        Refusal: the trainer's rows have no labels to stand beside, or a share is none.
    """
    new = _rows_of(trainer)
    share = sum(prompts.values())
    if not (0 < share < 1) or min(prompts.values()) < 0:
        raise Refusal(f"rehearse: the prompts have shares of {share:g} together, allowed is above 0 and below 1")
    section = RehearseSection(prompts=dict(prompts))
    rehearsal = Rehearsal([_texts(trainer, name, section, written, len(new)) for name in section.prompts])
    predictions = _predictions(trainer, rehearsal.texts, section.top_k, batch_size)
    trainer.train_dataset, rehearsed = rehearsal.mixed(new, predictions, trainer.args.seed)
    kind: Any = type(trainer)
    rehearsing: Any = trainer  # of its own kind still, which is asked for the loss of its own rows
    rehearsing.__class__ = type(f"Rehearsing{kind.__name__}", (Rehearsing, kind), {})
    rehearsing.rehearsed = rehearsed


def _rows_of(trainer: Trainer) -> Dataset:
    """What the trainer learns, as token and label rows."""
    rows: Any = trainer.train_dataset
    if not isinstance(rows, Dataset) or not {"input_ids", "labels"} <= set(rows.column_names):
        columns = ", ".join(getattr(rows, "column_names", None) or ["no columns"])
        raise Refusal(
            f"rehearse: the trainer's rows have {columns}, needed are input_ids and labels of a whole data set"
        )
    if "seq_lengths" in rows.column_names:
        raise Refusal("rehearse: the trainer's rows are packed already; train with packing=False, or by a recipe")
    return rows.select_columns(["input_ids", "labels"]).cast(as_dataset([]).features)


def _texts(
    trainer: Trainer, name: str, section: RehearseSection, written: str | Path | None, examples: int
) -> TextsOfKind:
    """The texts of one of the prompts, cut as TRL cuts the trainer's own."""
    tokenizer: Any = trainer.processing_class
    if name not in WRITTEN_BY_BASE:
        texts = [Text.given(tokens) for tokens in load_protected(ProtectedSection(prompts=name), tokenizer).tokens]
    elif written is None:
        raise Refusal(f"rehearse: {name} is what the base wrote; written=RUN/rehearsal/written.json says where")
    else:
        texts = texts_of(name, json.loads(Path(written).read_text(encoding="utf-8")), tokenizer)
    length = getattr(trainer.args, "max_length", None)
    count, seed = count_for(examples, section.prompts[name], section.share), trainer.args.seed
    return TextsOfKind.of([text.cut(length) for text in texts], count, name in WRITTEN_BY_BASE, seed)


def _predictions(trainer: Trainer, texts: list[Text], top_k: int, batch_size: int) -> Predictions:
    """What the model predicts before it trains, where it will train."""
    whole: Any = trainer.model
    model: Any = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    if not is_sharded(model):
        whole.to(trainer.args.device)
    training = whole.training
    whole.eval()
    planned = batches([text.tokens for text in texts], batch_size, length_class(model.config))
    predictions = predict(model, texts, planned, Gatherer(), top_k)
    whole.train(training)
    return predictions
