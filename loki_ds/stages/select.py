"""Stage 2: the rows that may train, in `positions.json`."""

import logging
from pathlib import Path

from loki_ds.attribution.kept import KeptScores
from loki_ds.checking.selection import rows_of_implants
from loki_ds.distributed import ranks
from loki_ds.recipe.sections import SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions, select_random
from loki_ds.selection.select import select as select_by_scores
from loki_ds.stages.check import Checked
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def select(run: Run, checked: Checked) -> Positions | None:
    """Choose rows on rank 0, write `positions.json`, compare all ranks'; None for baselines."""
    recipe, file, shapes = run.recipe, run.folder.positions, checked.down_shapes
    if not recipe.changes_rows:
        log.info("select: not needed (%s)", recipe.implant.method)
        return None
    scores = KeptScores(run.folder.attribution)
    positions = run.once(
        "select",
        ranks.on_first_rank(checked.fingerprints.selection),
        make=lambda: ranks.on_first_rank(lambda: _choose(recipe.selection, scores, shapes)),
        save=lambda positions: positions.save(file),
        load=lambda: ranks.on_first_rank(lambda: _load(file, shapes)),
    )
    ranks.check_same("the positions", positions.digest)
    count, layers, digest = positions.count, len(positions.rows), positions.digest[:12]
    log.info("select: %d rows in %d layers, digest %s", count, layers, digest)
    return positions


def _load(file: Path, shapes: list[tuple[int, int]]) -> Positions:
    positions = Positions.load(file)
    positions.check_fits(shapes, str(file))
    return positions


def _choose(section: SelectionSection, kept: KeptScores, shapes: list[tuple[int, int]]) -> Positions:
    if section.positions is not None:
        return planned_positions(section, shapes)
    exclude = rows_of_implants(section.exclude, shapes)
    try:
        if section.strategy == "random":
            return select_random(len(shapes), shapes[0][0], section.quota, section.seed, exclude)
        kept.wait_until_whole()
        return select_by_scores(kept.scores(), section.quota, section.strategy, exclude)
    except ValueError as error:
        raise Refusal(f"selection: {error}") from None
