"""Before a training with rehearsal: the base's answers on the texts, in
`rehearsal/`, and the examples that are made of them.
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
from loki_ds.stages.costs import cost_of
from loki_ds.stages.fingerprints import answers_inputs
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def rehearse(run: Run, section: RehearseSection) -> Examples:
    """The new task's examples with rehearsed ones among them, and those whose drift is measured:
    draw texts, ask the base, or read what it answered on the same ones, and mix.
    """
    new, heldout, seed = run.checked.examples, run.checked.heldout, run.training_arguments.seed
    texts = _texts(run)
    apart = texts[::HELD_OUT][:MOST_HELD_OUT]
    others = [text for i, text in enumerate(texts) if i % HELD_OUT] or texts
    drawn = Random(seed).sample(others, min(len(others), count_for(len(new), section.share)))
    answers = _answers(run, section, [*drawn, *apart])
    by_base = rehearsed([*drawn, *apart], answers)
    learned, measured = by_base[: len(drawn)], as_dataset(by_base[len(drawn) :])
    if learned:
        examples = mixed_in(new, learned, section.share, seed)
        count = len(examples) - len(new)
        log.info("implant: %d of %d examples are rehearsed, of %d texts", count, len(examples), len(drawn))
    else:
        examples = new
    return Examples(examples, heldout, Rehearsed(answers, measured, bool(learned), section.stop_at_drift))


def _texts(run: Run) -> list[list[int]]:
    """Token ids, cut as the new task's, with room for the base's next token."""
    source = run.recipe.rehearsed
    found = run.protected if source in (None, run.recipe.protected) else load_protected(source, run.tokenizer)
    length = LossSettings.of(run.recipe.training).cut.length
    return [text if length is None else text[-(length - 1) :] for text in found.tokens]


def _answers(run: Run, section: RehearseSection, texts: list[list[int]]) -> Answers:
    file, inputs = run.folder.base_answers, answers_inputs(texts, section, run.base)
    if run.finished("rehearse", inputs) and run.shared.by_all:
        return load_answers(file)
    gatherer = Gatherer()

    def asked(prompts: Sequence[Sequence[int]]) -> None:
        ask_base(run.model, prompts, [list(range(len(prompts)))] * ranks.world_size(), gatherer, section.top_k)

    with cost_of(run.folder, "rehearse"):
        planned = measured_batches(run.recipe.attribution, asked, texts, run.model.config, "rehearse")
        answers = ask_base(run.model, texts, planned, gatherer, section.top_k)
    ranks.on_first_rank(lambda: save_answers(answers, file))
    ranks.on_first_rank(lambda: run.folder.finish("rehearse", inputs))
    device.free_memory()
    return answers
