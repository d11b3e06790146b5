"""Before a training with rehearsal: the base's answers on the texts, in `rehearsal/`, and the
examples that are made of them.
"""

import logging
from collections.abc import Sequence
from random import Random

from loki_ds.attribution.batches import measured_batches
from loki_ds.data.protected import load_protected
from loki_ds.data.render_settings import LossSettings
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.implanting.divergence import Answers
from loki_ds.implanting.rehearsal_answers import ask_base, load_answers, save_answers
from loki_ds.implanting.rehearsal_rows import (
    HELD_OUT,
    MOST_HELD_OUT,
    as_dataset,
    count_for,
    mixed_in,
    rehearsed,
)
from loki_ds.implanting.trainer import Rehearsed
from loki_ds.implanting.training import Examples
from loki_ds.recipe.implant import RehearseSection
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def rehearse(run: Run, checked: Checked, section: RehearseSection) -> Examples:
    """The new task's examples with rehearsed ones among them, and those whose drift is measured:
    draw texts, ask the base, or read what it answered on the same ones, and mix.
    """
    new, seed = checked.examples, checked.arguments.seed
    texts = _texts(run, checked)
    apart = texts[::HELD_OUT][:MOST_HELD_OUT]
    others = [text for i, text in enumerate(texts) if i % HELD_OUT] or texts
    drawn = Random(seed).sample(others, min(len(others), count_for(len(new), section.share)))
    asked = [*drawn, *apart]
    answers = run.once(
        "rehearse",
        checked.fingerprints.answers(asked, section.top_k),
        make=lambda: _ask(run, checked, asked, section.top_k),
        save=lambda answers: save_answers(answers, run.folder.base_answers),
        load=lambda: load_answers(run.folder.base_answers),
    )
    by_base = rehearsed(asked, answers)
    learned, measured = by_base[: len(drawn)], as_dataset(by_base[len(drawn) :])
    examples = mixed_in(new, learned, section.share, seed) if learned else new
    count = len(examples) - len(new)
    log.info("implant: %d of %d examples are rehearsed, of %d texts", count, len(examples), len(drawn))
    return Examples(examples, checked.heldout, Rehearsed(answers, measured, bool(learned)))


def _texts(run: Run, checked: Checked) -> list[list[int]]:
    """Token ids, cut as the new task's, with room for the base's next token."""
    source = run.recipe.rehearsed
    same = source in (None, run.recipe.protected)
    texts = checked.protected if same or source is None else load_protected(source, checked.tokenizer)
    length = LossSettings.of(run.recipe.training).cut.length
    return [text if length is None else text[-(length - 1) :] for text in texts.tokens]


def _ask(run: Run, checked: Checked, texts: list[list[int]], top_k: int) -> Answers:
    """What the base predicts on the texts."""
    model, gatherer = run.model(checked.base), Gatherer()

    def asked(prompts: Sequence[Sequence[int]]) -> None:
        ask_base(model, prompts, [list(range(len(prompts)))] * ranks.world_size(), gatherer, top_k)

    with cost_of(run.folder, "rehearse"):
        planned = measured_batches(run.recipe.attribution, asked, texts, model.config, "rehearse")
        answers = ask_base(model, texts, planned, gatherer, top_k)
    device.free_memory()
    return answers
