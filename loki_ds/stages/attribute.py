"""Stage 1: attribution scores of the protected set, kept prompt by prompt in `attribution/`."""

import logging
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import torch
from rich.progress import Progress

from loki_ds.attribution.batches import NoRoom, batch_size, batches, sweep_batches
from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.rope import length_class
from loki_ds.attribution.sweep import Sweep
from loki_ds.data.protected import ProtectedSet
from loki_ds.distributed import ranks
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.model.anatomy import has_experts
from loki_ds.recipe.sections import AttributionSection, SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.report.pictures import heat_map, overlap_curve
from loki_ds.selection.select import split_half_overlap
from loki_ds.stages.costs import cost_of
from loki_ds.stages.fingerprints import attribution_inputs
from loki_ds.stages.run import LIBRARIES, Run

log = logging.getLogger(__name__)

LARGE_RESIDUAL = 0.1  # of the target: above it the path has too few steps to trust
CURVE_POINTS = 8

Batches = list[list[int]]  # of prompts' indices


def attribute(run: Run) -> None:
    """Score every row of every `W_down` on the protected set, batches split over the ranks; kept
    prompt by prompt.
    """
    if run.recipe.needs_attribution:
        inputs = attribution_inputs(run.recipe, run.base)
        run.once("attribute", inputs, run.folder.attribution, lambda: _attribute(run))
    else:
        strategy = run.recipe.selection.strategy
        log.info("attribute: not needed (%s)", strategy if run.recipe.changes_rows else run.recipe.implant.method)


def _attribute(run: Run) -> None:
    section, prompts, kept = run.recipe.attribution, run.protected, KeptScores(run.folder.attribution)
    with cost_of(run.folder, "attribute"):
        for shard in run.shared.apart(kept.shards()):
            shard.unlink()  # of a call that was killed before it brought them home; made from who knows what
        inputs = {**attribution_inputs(run.recipe, run.base), "prompts": prompts.digest}
        ranks.on_first_rank(lambda: kept.open_for(inputs))
        gatherer = Gatherer()
        settings = section.model_dump(include={"steps", "rule", "target", "multiply_by_value"})
        sweep = Sweep(run.model, gatherer=gatherer, **settings)
        planned = _plan(section, sweep, prompts, kept)
        before, gathers = ranks.on_first_rank(lambda: len(kept.done())), gatherer.count
        turns = _sweep_all(run, sweep, prompts, planned, kept)
        ranks.barrier()
        ranks.on_first_rank(
            lambda: kept.note(
                prompts=len(kept.done()),
                last_call={
                    "prompts": len(kept.done()) - before,
                    "turns": turns,
                    "gathers": gatherer.count - gathers,
                },
            )
        )
    ranks.on_first_rank(lambda: _describe(run, prompts, kept))


def _plan(section: AttributionSection, sweep: Sweep, prompts: ProtectedSet, kept: KeptScores) -> Batches:
    """Planned once and kept for resuming; batches no larger than the recipe now asks for."""
    together = length_class(sweep.model.config)
    planned = ranks.on_first_rank(lambda: kept.read().get("batches"))
    if planned is not None and section.batch_size == "auto" and section.memory_gib is None:
        return planned
    size = batch_size(section, partial(_attempted, sweep), prompts.tokens, together)
    if planned is not None:
        return [batch[i : i + size] for batch in planned for i in range(0, len(batch), size)]
    planned = batches(prompts.tokens, size, together)
    sample = [{"subject": one.subject, "line": one.line, "tokens": len(one.tokens)} for one in prompts.prompts]
    versions = {name: version(name) for name in LIBRARIES}
    ranks.on_first_rank(lambda: kept.note(batches=planned, sample=sample, versions=versions))
    return planned


def _attempted(sweep: Sweep, prompts: Sequence[Sequence[int]]) -> None:
    if sweep.attempt(prompts) is None:
        raise NoRoom


def _sweep_all(run: Run, sweep: Sweep, prompts: ProtectedSet, planned: Batches, kept: KeptScores) -> int:
    """Sweep what is not kept yet; returns the turns taken, a batch on every rank each."""
    done, tokens = ranks.on_first_rank(kept.done), prompts.tokens
    log.info("attribute: %d prompts (%d already scored) in %d batches", len(tokens), len(done), len(planned))
    left = [waiting for batch in planned if (waiting := [i for i in batch if i not in done])]
    with Progress(disable=ranks.rank() > 0) as progress:
        task = progress.add_task("attribute", total=len(tokens) - len(done))
        for indices, swept in sweep_batches(sweep, tokens, left):
            if not torch.isfinite(swept.scores).all():
                lines = [prompts.prompts[i].line for i in indices]
                raise Refusal(
                    f"attribution gave NaN or infinity on the protected prompts of lines {lines}; are the weights "
                    "sound?"
                )
            kept.add(indices, swept)
            progress.advance(task, len(indices) * ranks.world_size())
    ranks.barrier()
    if not run.shared.by_all:
        run.shared.bring_home(run.shared.apart(kept.shards()), kept.take)
    return -(-len(left) // ranks.world_size())


def _describe(run: Run, prompts: ProtectedSet, kept: KeptScores) -> None:
    """Note what the scores are worth, and draw them."""
    curve = _overlap_curve(run.recipe.selection, prompts.order, kept)
    residual = kept.residuals().abs()
    mean, largest = residual.mean().item(), residual.max().item()
    kept.note(completeness_residual={"mean": mean, "largest": largest}, overlap=curve)
    routed = has_experts(run.model)
    large = run.recipe.attribution.multiply_by_value and mean > LARGE_RESIDUAL and not routed
    advice = "tokens change experts along the path" if routed else "more attribution.steps make it smaller"
    say = log.warning if large else log.info
    say("attribute: completeness residual %.3f of the target on average, %.3f at most (%s)", mean, largest, advice)
    heat_map(kept.scores(), run.folder.heat_map)
    overlap_curve(curve, run.folder.overlap_curve)


def _overlap_curve(selection: SelectionSection, order: list[int], kept: KeptScores) -> list[dict[str, float]]:
    """Split-half overlap of the selected rows against the number of prompts."""
    scores, points = kept.scores(order), range(1, CURVE_POINTS + 1)
    counts = sorted({max(2, len(order) * point // CURVE_POINTS) for point in points} if len(order) > 1 else ())
    return [
        {"prompts": n, "overlap": split_half_overlap(scores[:n], selection.quota, selection.strategy)} for n in counts
    ]
