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
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import ranks
from loki_ds.distributed.shared_folder import SharedFolder
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.model.anatomy import has_experts
from loki_ds.recipe.sections import AttributionSection, SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.select import split_half_overlap
from loki_ds.stages.check import Checked
from loki_ds.stages.costs import cost_of
from loki_ds.stages.run import LIBRARIES, Run

log = logging.getLogger(__name__)

LARGE_RESIDUAL = 0.1  # of the target: above it the path has too few steps to trust
CURVE_POINTS = 8

Batches = list[list[int]]  # of prompts' indices


def attribute(run: Run, checked: Checked) -> None:
    """Score every row of every `W_down` on the protected set, split over ranks, kept by prompt."""
    recipe = run.recipe
    if not recipe.needs_attribution:
        why = recipe.selection.strategy if recipe.changes_rows else recipe.implant.method
        log.info("attribute: not needed (%s)", why)
        return
    run.once("attribute", checked.fingerprints.attribution(), lambda: _attribute(run, checked))


def _attribute(run: Run, checked: Checked) -> None:
    section, prompts, kept = run.recipe.attribution, checked.protected, KeptScores(run.folder.attribution)
    model, gatherer = run.model(checked.base), Gatherer()
    with cost_of(run.folder, "attribute"):
        for shard in run.shared.apart(kept.shards()):
            shard.unlink()  # of a call that was killed before it brought them home; made from who knows what
        inputs = {**checked.fingerprints.attribution(), "prompts": prompts.digest}
        ranks.on_first_rank(lambda: kept.open_for(inputs))
        settings = section.model_dump(include={"steps", "rule", "target", "multiply_by_value"})
        sweep = Sweep(model, gatherer=gatherer, **settings)
        planned = _plan(section, sweep, prompts, kept)
        before, gathers = ranks.on_first_rank(lambda: len(kept.done())), gatherer.count
        batches = _sweep_all(run.shared, sweep, prompts, planned, kept)
        ranks.barrier()
        took = {"rank_batches": batches, "gathers": gatherer.count - gathers}
        ranks.on_first_rank(lambda: _note_call(kept, before, took))
    routed = has_experts(model)
    ranks.on_first_rank(lambda: _note_residuals(section, kept, routed))
    ranks.on_first_rank(lambda: _draw(run.folder, run.recipe.selection, prompts.order, kept))


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
    sample = [
        {"subject": prompt.subject, "line": prompt.line, "tokens": len(prompt.tokens)} for prompt in prompts.prompts
    ]
    versions = {name: version(name) for name in LIBRARIES}
    ranks.on_first_rank(lambda: kept.note(batches=planned, sample=sample, versions=versions))
    return planned


def _attempted(sweep: Sweep, prompts: Sequence[Sequence[int]]) -> None:
    if sweep.attempt(prompts) is None:
        raise NoRoom


def _sweep_all(shared: SharedFolder, sweep: Sweep, prompts: ProtectedSet, planned: Batches, kept: KeptScores) -> int:
    """Sweep what is not kept yet; returns how many batches each rank took."""
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
    if not shared.by_all:
        shared.bring_home(shared.apart(kept.shards()), kept.take)
    return -(-len(left) // ranks.world_size())


def _note_call(kept: KeptScores, before: int, took: dict[str, int]) -> None:
    """Note what there is now, and what this call did of it."""
    kept.wait_until_whole()
    done = len(kept.done())
    kept.note(prompts=done, last_call={"prompts": done - before, **took})


def _note_residuals(section: AttributionSection, kept: KeptScores, routed: bool) -> None:
    """Note what the scores are worth, and say so. routed: whether the model has experts."""
    residual = kept.residuals().abs()
    mean, largest = residual.mean().item(), residual.max().item()
    kept.note(completeness_residual={"mean": mean, "largest": largest})
    large = section.multiply_by_value and mean > LARGE_RESIDUAL and not routed
    advice = "tokens change experts along the path" if routed else "more attribution.steps make it smaller"
    say = log.warning if large else log.info
    say("attribute: completeness residual %.3f of the target on average, %.3f at most (%s)", mean, largest, advice)


def _draw(folder: RunFolder, selection: SelectionSection, order: list[int], kept: KeptScores) -> None:
    """The scores as pictures, and how far two halves of the prompts select the same rows."""
    from loki_ds.report.pictures import heat_map, overlap_curve  # a second of matplotlib's, which no other rank needs

    curve = _overlap_curve(selection, order, kept)
    kept.note(overlap=curve)
    heat_map(kept.scores(), folder.heat_map)
    overlap_curve(curve, selection.quota / 100, folder.overlap_curve)


def _overlap_curve(selection: SelectionSection, order: list[int], kept: KeptScores) -> list[dict[str, float]]:
    """Split-half overlap of the selected rows against the number of prompts."""
    scores, points = kept.scores(order), range(1, CURVE_POINTS + 1)
    counts = sorted({max(2, len(order) * point // CURVE_POINTS) for point in points} if len(order) > 1 else ())
    return [
        {"prompts": n, "overlap": split_half_overlap(scores[:n], selection.quota, selection.strategy)} for n in counts
    ]
