"""Before rehearsing: the base's answers on the texts, in `rehearsal/`, and the examples of them."""

import logging
from collections.abc import Sequence

import torch

from loki_ds.attribution.batches import measured_batches
from loki_ds.data.protected import load_protected
from loki_ds.data.render_settings import LossSettings
from loki_ds.distributed import device, ranks
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.implanting.divergence import Answers
from loki_ds.implanting.rehearsal_answers import ask_base, load_answers, save_answers
from loki_ds.implanting.rehearsal_rows import Share, Text, as_dataset, count_for, mixed_in, rehearsed, weights_of
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
    draw texts, ask the base, or read what it answered on the same ones, and mix.
    """
    new, seed = checked.examples, checked.arguments.seed
    shares = [_share(run, checked, section, name) for name in section.prompts]
    learned = [text for share in shares for text in share.learned]
    apart = [text for share in shares for text in share.apart]
    asked = [*learned, *apart]
    answers = run.once(
        "rehearse",
        checked.fingerprints.answers(asked, section.top_k),
        make=lambda: _ask(run, checked, asked, section.top_k),
        save=lambda answers: save_answers(answers, run.folder.base_answers),
        load=lambda: load_answers(run.folder.base_answers),
    )
    weights = [weights_of(share.learned, share.each_once) for share in shares] + [weights_of(apart, False)]
    by_base = iter(rehearsed(asked, answers))
    rows = [([next(by_base) for _ in share.learned], share.count) for share in shares]
    examples = mixed_in(new, [kind for kind in rows if kind[0]], seed)
    count = len(examples) - len(new)
    log.info("implant: %d of %d examples are rehearsed, of %d texts", count, len(examples), len(learned))
    measured = as_dataset(list(by_base))
    return Examples(examples, checked.heldout, Rehearsed(answers, torch.cat(weights), measured, bool(learned)))


def _share(run: Run, checked: Checked, section: RehearseSection, name: str) -> Share:
    """The texts of one of the prompts, cut as the new task's."""
    if name in WRITTEN_BY_BASE:
        texts = read_written(run, checked, name)
    elif run.recipe.rehearsed[name] == run.recipe.protected:
        texts = [Text.given(tokens) for tokens in checked.protected.tokens]
    else:
        texts = [Text.given(tokens) for tokens in load_protected(run.recipe.rehearsed[name], checked.tokenizer).tokens]
    length = LossSettings.of(run.recipe.training).cut.length
    count = count_for(len(checked.examples), section.prompts[name], section.share)
    return Share.of([text.cut(length) for text in texts], count, name in WRITTEN_BY_BASE, checked.arguments.seed)


def _ask(run: Run, checked: Checked, texts: list[Text], top_k: int) -> Answers:
    """What the base predicts on the texts."""
    model, gatherer = run.model(checked.base), Gatherer()

    def asked(prompts: Sequence[Sequence[int]]) -> None:
        given = [Text.given(list(tokens)) for tokens in prompts]
        ask_base(model, given, [list(range(len(given)))] * ranks.world_size(), gatherer, top_k)

    with cost_of(run.folder, "rehearse"):
        planned = measured_batches(
            run.recipe.attribution, asked, [text.tokens for text in texts], model.config, "rehearse"
        )
        answers = ask_base(model, texts, planned, gatherer, top_k)
    device.free_memory()
    return answers
