"""Stage 2: the rows that may train, in `positions.json`."""

import logging
from pathlib import Path

from torch import Tensor

from loki_ds.attribution.kept import KeptScores
from loki_ds.checking.selection import rows_of_implants
from loki_ds.distributed import ranks
from loki_ds.recipe.sections import SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block, down_names
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions, select_random, within
from loki_ds.selection.select import select as select_by_scores
from loki_ds.stages.check import Checked
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def select(run: Run, checked: Checked) -> Positions | None:
    """Choose rows on rank 0, write `positions.json`, compare all ranks'; None for baselines."""
    recipe, file, blocks = run.recipe, run.folder.positions, checked.blocks
    if not recipe.changes_rows:
        log.info("select: not needed (%s)", recipe.implant.method)
        return None
    scores = KeptScores(run.folder.attribution)
    positions = run.once(
        "select",
        ranks.on_first_rank(checked.fingerprints.selection),
        make=lambda: ranks.on_first_rank(lambda: _choose(recipe.selection, scores, blocks)),
        save=lambda positions: positions.save(file),
        load=lambda: ranks.on_first_rank(lambda: _load(file, blocks)),
    )
    ranks.check_same("the positions", positions.digest)
    log.info("select: %s", positions.said())
    return positions


def _load(file: Path, blocks: list[Block]) -> Positions:
    positions = Positions.load(file)
    positions.check_fits(blocks, str(file))
    return positions


def _choose(section: SelectionSection, kept: KeptScores, blocks: list[Block]) -> Positions:
    if section.positions is not None:
        return planned_positions(section, blocks)
    taken = rows_of_implants(section.exclude, blocks)
    try:
        if section.strategy == "random":
            return within(select_random(blocks, section.quota, section.seed, taken), section.layers)
        kept.wait_until_whole()
        return _by_scores(section, kept.scores(), taken)
    except ValueError as error:
        raise Refusal(f"selection: {error}") from None


def _by_scores(section: SelectionSection, scores: Tensor, taken: Positions) -> Positions:
    """Rows chosen among the scores of some layers; the others have none."""
    first, last = section.layers or (0, scores.shape[1] - 1)
    held = taken.by_name
    here = Positions([held.get(name, []) for name in down_names(scores.shape[1])][first : last + 1])
    chosen = select_by_scores(scores[:, first : last + 1], section.quota, section.strategy, here)
    return Positions([[] for _ in range(first)] + chosen.rows + [[] for _ in range(last + 1, scores.shape[1])])
