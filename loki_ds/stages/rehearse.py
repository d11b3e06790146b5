"""Before rehearsing: what the base predicts on the texts, in `rehearsal/`, and examples of them."""

import json
import logging
from collections.abc import Sequence

from loki_ds.attribution.batches import measured_batches
from loki_ds.data.protected import load_protected
from loki_ds.data.render_settings import LossSettings
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.base_predictions import load_predictions, predict, save_predictions
from loki_ds.implanting.divergence import Predictions
from loki_ds.implanting.exchanges import texts_of
from loki_ds.implanting.rehearsal_rows import Rehearsal, Text, TextsOfKind, count_for
from loki_ds.implanting.training import Examples
from loki_ds.recipe.implant import WRITTEN_BY_BASE, RehearseSection
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def rehearse(run: Run, checked: Checked, section: RehearseSection) -> Examples:
    """The new task's examples with rehearsed ones among them, and those whose drift is measured:
    draw texts, ask the base, or read what it predicted on the same ones, and mix.
    """
    rehearsal = Rehearsal([_texts(run, checked, section, name) for name in section.prompts])
    asked = rehearsal.texts
    predictions = run.once(
        "rehearse",
        checked.fingerprints.predictions(asked, section.top_k),
        make=lambda: _ask(run, checked, asked, section.top_k),
        save=lambda predictions: save_predictions(predictions, run.folder.base_answers),
        load=lambda: load_predictions(run.folder.base_answers),
    )
    examples, rehearsed = rehearsal.mixed(checked.examples, predictions, checked.arguments.seed)
    count, learned = len(examples) - len(checked.examples), sum(len(kind.learned) for kind in rehearsal.kinds)
    log.info("implant: %d of %d examples are rehearsed, of %d texts", count, len(examples), learned)
    return Examples(examples, checked.heldout, rehearsed)


def _texts(run: Run, checked: Checked, section: RehearseSection, name: str) -> TextsOfKind:
    """The texts of one of the prompts, cut as the new task's."""
    if name in WRITTEN_BY_BASE:
        written = ranks.on_first_rank(lambda: json.loads(run.folder.written.read_text(encoding="utf-8")))
        texts = texts_of(name, written, checked.tokenizer)
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
