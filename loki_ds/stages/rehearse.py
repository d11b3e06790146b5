"""Before rehearsing: what the base predicts on the texts, in `rehearsal/`, and examples of them."""

import logging
from collections.abc import Sequence

import torch

from loki_ds.attribution.batches import measured_batches
from loki_ds.data.protected import load_protected
from loki_ds.data.render_settings import LossSettings
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.base_predictions import load_predictions, predict, save_predictions
from loki_ds.implanting.divergence import Predictions
from loki_ds.implanting.rehearsal_rows import Text, TextsOfKind, as_dataset, count_for, mixed_in, rehearsed, weights_of
from loki_ds.implanting.trainer import Rehearsed
from loki_ds.implanting.training import Examples
from loki_ds.recipe.implant import WRITTEN_BY_BASE, RehearseSection
from loki_ds.stages.base_writes import read_written
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def rehearse(run: Run, checked: Checked, section: RehearseSection) -> Examples:
    """The new task's examples with rehearsed ones among them, and those whose drift is measured:
    draw texts, ask the base, or read what it predicted on the same ones, and mix.
    """
    new, seed = checked.examples, checked.arguments.seed
    kinds = [_texts(run, checked, section, name) for name in section.prompts]
    learned = [text for kind in kinds for text in kind.learned]
    apart = [text for kind in kinds for text in kind.apart]
    asked = [*learned, *apart]
    predictions = run.once(
        "rehearse",
        checked.fingerprints.predictions(asked, section.top_k),
        make=lambda: _ask(run, checked, asked, section.top_k),
        save=lambda predictions: save_predictions(predictions, run.folder.base_answers),
        load=lambda: load_predictions(run.folder.base_answers),
    )
    weights = [weights_of(kind.learned, kind.each_once) for kind in kinds] + [weights_of(apart, False)]
    by_base = iter(rehearsed(asked, predictions))
    rows = [([next(by_base) for _ in kind.learned], kind.count) for kind in kinds]
    examples = mixed_in(new, [each for each in rows if each[0]], seed)
    count = len(examples) - len(new)
    log.info("implant: %d of %d examples are rehearsed, of %d texts", count, len(examples), len(learned))
    measured = as_dataset(list(by_base))
    return Examples(examples, checked.heldout, Rehearsed(predictions, torch.cat(weights), measured, bool(learned)))


def _texts(run: Run, checked: Checked, section: RehearseSection, name: str) -> TextsOfKind:
    """The texts of one of the prompts, cut as the new task's."""
    if name in WRITTEN_BY_BASE:
        texts = read_written(run.folder.written, name, checked.tokenizer)
    elif run.recipe.rehearsed[name] == run.recipe.protected:
        texts = [Text.given(tokens) for tokens in checked.protected.tokens]
    else:
        texts = [Text.given(tokens) for tokens in load_protected(run.recipe.rehearsed[name], checked.tokenizer).tokens]
    length = LossSettings.of(run.recipe.training).cut.length
    count = count_for(len(checked.examples), section.prompts[name], section.share)
    return TextsOfKind.of([text.cut(length) for text in texts], count, name in WRITTEN_BY_BASE, checked.arguments.seed)


def _ask(run: Run, checked: Checked, texts: list[Text], top_k: int) -> Predictions:
    """What the base predicts on the texts."""
    model, gatherer = run.model(checked.base), Gatherer()

    def asked(prompts: Sequence[Sequence[int]]) -> None:
        given = [Text.given(list(tokens)) for tokens in prompts]
        predict(model, given, [list(range(len(given)))] * ranks.world_size(), gatherer, top_k)

    with cost_of(run.folder, "rehearse"):
        planned = measured_batches(
            run.recipe.attribution, asked, [text.tokens for text in texts], model.config, "rehearse"
        )
        predictions = predict(model, texts, planned, gatherer, top_k)
    device.free_memory()
    return predictions
