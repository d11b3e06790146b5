"""Stage 2: the rows that may train, in `positions.json`."""

import logging

from loki_ds.attribution.kept import KeptScores
from loki_ds.checking.selection import rows_of_implants
from loki_ds.distributed import ranks
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions, select_random
from loki_ds.selection.select import select as select_by_scores
from loki_ds.stages.fingerprints import selection_inputs
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def select(run: Run) -> Positions | None:
    """Choose the rows on rank 0, write `positions.json`, and make sure every rank holds the same;
    None for baselines.
    """
    if not run.recipe.changes_rows:
        log.info("select: not needed (%s)", run.recipe.implant.method)
        return None
    positions = ranks.on_first_rank(lambda: _selected(run))
    ranks.check_same("the positions", positions.digest)
    count, layers, digest = positions.count, len(positions.rows), positions.digest[:12]
    log.info("select: %d rows in %d layers, digest %s", count, layers, digest)
    return positions


def _selected(run: Run) -> Positions:
    folder, shapes = run.folder, run.down_shapes
    inputs = selection_inputs(run.recipe, run.base)
    if folder.finished("select", inputs):
        positions = Positions.load(folder.positions)
        positions.check_fits(shapes, str(folder.positions))
        return positions
    try:
        positions = _choose(run)
    except ValueError as error:
        raise Refusal(f"selection: {error}") from None
    positions.save(folder.positions)
    folder.finish("select", inputs)
    return positions


def _choose(run: Run) -> Positions:
    section, shapes = run.recipe.selection, run.down_shapes
    if section.positions is not None:
        return planned_positions(section, shapes)
    exclude = rows_of_implants(section.exclude, shapes)
    if section.strategy == "random":
        return select_random(len(shapes), shapes[0][0], section.quota, section.seed, exclude)
    scores = KeptScores(run.folder.attribution).scores()
    return select_by_scores(scores, section.quota, section.strategy, exclude)
