"""Stage 1: attribution scores of the protected set, kept prompt by prompt in `attribution/`."""

import logging
import math
import time

import torch
from rich.progress import track

from loki_ds import zero
from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.sweep import Sweep, batches_by_length
from loki_ds.protected import load_protected
from loki_ds.refusal import Refusal
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def attribute(run: Run) -> None:
    """Score every row of every `W_down` on the protected set, batches shared out among the ranks; kept prompt by prompt."""
    if not run.recipe.attributes:
        log.info("attribute: not needed (%s)", run.recipe.selection.strategy if run.recipe.trains_rows else "everything trains")
        return
    if zero.on_first_rank(lambda: run.folder.finished("attribute", run.attribution_inputs)):
        log.info("attribute: already there, %s", run.folder.attribution)
        return
    section = run.recipe.attribution
    prompts = load_protected(run.recipe.protected, run.tokenizer)  # type: ignore[arg-type]
    kept = KeptScores(run.folder.attribution)
    zero.on_first_rank(lambda: kept.open_for(run.attribution_inputs))
    done = zero.on_first_rank(kept.done)
    planned = batches_by_length([len(prompt.tokens) for prompt in prompts], section.batch_size)
    batches = [left for batch in planned if (left := [i for i in batch if i not in done])]
    log.info("attribute: %d prompts (%d already scored) in %d batches", len(prompts), len(done), len(batches))
    gatherer, started = zero.Gatherer(), time.monotonic()
    sweep = Sweep(run.model, gatherer=gatherer, **section.model_dump(exclude={"batch_size"}))
    turns = math.ceil(len(batches) / zero.world_size())
    for turn in track(range(turns), "attribute", disable=zero.rank() > 0):
        mine = turn * zero.world_size() + zero.rank()
        if mine < len(batches):
            swept = sweep.run([prompts[i].tokens for i in batches[mine]])
            if not torch.isfinite(swept.scores).all():
                lines = [prompts[i].line for i in batches[mine]]
                raise Refusal(f"attribution gave NaN or infinity on the protected prompts of lines {lines}; are the weights sound?")
            kept.add(batches[mine], swept)
        else:
            sweep.run([[0]])  # nothing left for this rank, but every gather needs all of them
    zero.barrier()
    if zero.rank() == 0:
        kept.note(prompts=len(prompts), gathers=gatherer.count, batches=turns, seconds=round(time.monotonic() - started, 1))
        _report_residual(kept)
        run.folder.finish("attribute", run.attribution_inputs)
    zero.barrier()


def _report_residual(kept: KeptScores) -> None:
    residual = kept.residuals().abs()
    kept.note(completeness_residual={"mean": residual.mean().item(), "largest": residual.max().item()})
    log.info("attribute: completeness residual %.3f of the target on average, %.3f at most", residual.mean(), residual.max())
