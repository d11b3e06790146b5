"""Stage 1: attribution scores of the protected set, kept prompt by prompt in `attribution/`."""

import logging
import time
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import Progress

from loki_ds import ranks, zero
from loki_ds.attribution.batches import batch_size, batches, sweep_batches
from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.self_check import check_family
from loki_ds.attribution.sweep import Sweep
from loki_ds.launcher import local_rank, local_size
from loki_ds.protected import ProtectedPrompt, digest_of_prompts, interleaved
from loki_ds.refusal import Refusal
from loki_ds.report.pictures import heat_map, overlap_curve
from loki_ds.selection import split_half_overlap
from loki_ds.stages.run import LIBRARIES, Run
from loki_ds.stages.sensitivity import sense

log = logging.getLogger(__name__)

LARGE_RESIDUAL = 0.1  # of the target: above it the path has too few steps to trust
CURVE_POINTS = 8


def attribute(run: Run) -> None:
    """Score every row of every `W_down` on the protected set, batches shared out among the ranks;
    kept prompt by prompt.
    """
    if run.recipe.senses:
        sense(run)
        return
    if not run.recipe.attributes:
        log.info(
            "attribute: not needed (%s)",
            run.recipe.selection.strategy if run.recipe.changes_rows else "everything trains",
        )
        return
    if run.finished("attribute", run.attribution_inputs):
        log.info("attribute: already there, %s", run.folder.attribution)
        return
    with run.cost_of("attribute"):
        _attribute(run)


def _attribute(run: Run) -> None:
    started = time.monotonic()
    prompts = run.protected_prompts()
    kept = KeptScores(run.folder.attribution)
    for shard in _shards_of_this_rank(run, kept):
        shard.unlink()  # of a call that was killed before it brought them home; who knows what they were made from
    ranks.on_first_rank(lambda: kept.open_for({**run.attribution_inputs, "prompts": digest_of_prompts(prompts)}))
    check_family(run.model)
    gatherer = zero.Gatherer()
    settings = run.recipe.attribution.model_dump(include={"steps", "rule", "target", "multiply_by_value"})
    sweep = Sweep(run.model, gatherer=gatherer, **settings)
    rounds = _plan(run, sweep, prompts, kept)
    gathers = gatherer.count
    turns = _sweep_rounds(run, sweep, prompts, rounds, kept)
    ranks.barrier()
    ranks.on_first_rank(
        lambda: _finish(run, prompts, kept, gatherer.count - gathers, turns, time.monotonic() - started)
    )


def _plan(run: Run, sweep: Sweep, prompts: list[ProtectedPrompt], kept: KeptScores) -> list[list[list[int]]]:
    """Rounds of batches of prompts' indices, one round unless the pass may stop early; planned
    once, kept for going on.
    """
    planned = ranks.on_first_rank(lambda: kept.read().get("rounds"))
    if planned is not None:
        return planned
    section, tokens = run.recipe.attribution, [prompt.tokens for prompt in prompts]
    size = batch_size(section, sweep, tokens)
    order = interleaved(prompts)
    every = section.stop.every * len({prompt.subject for prompt in prompts}) if section.stop else len(order)
    planned = []
    for start in range(0, len(order), every):
        members = sorted(order[start : start + every])
        planned.append([[members[i] for i in batch] for batch in batches([tokens[i] for i in members], size)])
    sample = [{"subject": prompt.subject, "line": prompt.line, "tokens": len(prompt.tokens)} for prompt in prompts]
    versions = {name: version(name) for name in LIBRARIES}
    ranks.on_first_rank(lambda: kept.note(rounds=planned, sample=sample, versions=versions))
    return planned


def _sweep_rounds(
    run: Run, sweep: Sweep, prompts: list[ProtectedPrompt], rounds: list[list[list[int]]], kept: KeptScores
) -> int:
    """Sweep what is not kept yet, round by round, until the rounds end or their selection is
    stable; returns the turns taken.
    """
    done = ranks.on_first_rank(kept.done)
    log.info("attribute: %d prompts (%d already scored) in %d batches", len(prompts), len(done), sum(map(len, rounds)))
    turns = 0
    with Progress(disable=ranks.rank() > 0) as progress:
        task = progress.add_task("attribute", total=len(prompts) - len(done))
        for number, planned in enumerate(rounds, start=1):
            left = [waiting for batch in planned if (waiting := [i for i in batch if i not in done])]
            turns += -(-len(left) // ranks.world_size())
            for indices, swept in sweep_batches(sweep, [prompt.tokens for prompt in prompts], left):
                if not torch.isfinite(swept.scores).all():
                    lines = [prompts[i].line for i in indices]
                    raise Refusal(
                        f"attribution gave NaN or infinity on the protected prompts of lines {lines}; are the "
                        "weights sound?"
                    )
                kept.add(indices, swept)
                progress.advance(task, len(indices) * ranks.world_size())
            ranks.barrier()
            if not run.folder_is_shared:
                _bring_home(run, kept)
            if number < len(rounds) and ranks.on_first_rank(lambda: _stable(run, prompts, kept)):
                break
    return turns


def _bring_home(run: Run, kept: KeptScores) -> None:
    """Where nodes do not share the run folder, move their shards of scores into rank 0's, one of
    each rank at a time.
    """
    here = _shards_of_this_rank(run, kept)
    for turn in range(max(ranks.from_all_ranks(len(here)))):
        shard = here[turn] if turn < len(here) else None
        for sent in ranks.at_first_rank((shard.name, shard.read_bytes()) if shard else None):
            if sent is not None:
                kept.take(*sent)
    ranks.barrier()
    for shard in here:
        shard.unlink()


def _shards_of_this_rank(run: Run, kept: KeptScores) -> list[Path]:
    """This rank's share of the shards on a node that does not share the run folder; none
    elsewhere.
    """
    return [] if run.sees_folder else kept.shards()[local_rank() :: local_size()]


def _stable(run: Run, prompts: list[ProtectedPrompt], kept: KeptScores) -> bool:
    """Whether the rows selected from two halves of the prompts so far overlap enough to stop."""
    stop, selection = run.recipe.attribution.stop, run.recipe.selection
    assert stop is not None  # there is one round only, without it
    done = kept.done()
    order = [i for i in interleaved(prompts) if i in done]
    overlap = split_half_overlap(kept.scores(order), selection.quota, selection.strategy)
    log.info("attribute: after %d prompts the rows of two halves overlap by %.1f%%", len(order), 100 * overlap)
    return overlap >= stop.overlap


def _finish(
    run: Run, prompts: list[ProtectedPrompt], kept: KeptScores, gathers: int, turns: int, seconds: float
) -> None:
    """Note what the pass took and what it is worth, and draw it."""
    done = kept.done()
    order = [i for i in interleaved(prompts) if i in done]
    curve = _overlap_curve(run, order, kept)
    residual = kept.residuals().abs()
    kept.note(
        prompts=len(done),
        gathers=gathers,
        batches=turns,
        seconds=round(seconds, 1),
        completeness_residual={"mean": residual.mean().item(), "largest": residual.max().item()},
        overlap=curve,
    )
    log.info("attribute: %d prompts in %.1f s, %d gathers", len(done), seconds, gathers)
    say = log.warning if run.recipe.attribution.multiply_by_value and residual.mean() > LARGE_RESIDUAL else log.info
    say(
        "attribute: completeness residual %.3f of the target on average, %.3f at most (more attribution.steps make "
        "it smaller)",
        residual.mean(),
        residual.max(),
    )
    heat_map(kept.scores(), run.folder.heat_map)
    overlap_curve(curve, run.folder.overlap_curve)
    run.folder.finish("attribute", run.attribution_inputs)


def _overlap_curve(run: Run, order: list[int], kept: KeptScores) -> list[dict[str, float]]:
    """Split-half overlap of the selected rows against the number of prompts."""
    selection, scores = run.recipe.selection, kept.scores(order)
    counts = sorted(
        {max(2, len(order) * point // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)} if len(order) > 1 else ()
    )
    return [
        {"prompts": n, "overlap": split_half_overlap(scores[:n], selection.quota, selection.strategy)} for n in counts
    ]
