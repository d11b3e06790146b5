"""Stage 2: the rows that may train, in `positions.json`."""

import logging

from loki_ds import ranks
from loki_ds.attribution.kept import KeptScores, kept_sensitivity
from loki_ds.export.implant_file import Implant
from loki_ds.positions import Positions
from loki_ds.refusal import Refusal
from loki_ds.selection import select as select_by_scores
from loki_ds.selection import select_by_sensitivity, select_random
from loki_ds.stages.run import Run

log = logging.getLogger(__name__)


def select(run: Run) -> Positions | None:
    """Choose the rows on rank 0, write `positions.json`, and make sure every rank holds the same;
    None for the full baseline.
    """
    if not run.recipe.changes_rows:
        log.info("select: not needed (everything trains)")
        return None
    positions = ranks.on_first_rank(lambda: _selected(run))
    ranks.check_same("the positions", positions.digest)
    log.info("select: %d rows in %d layers, digest %s", positions.count, len(positions.rows), positions.digest[:12])
    return positions


def _selected(run: Run) -> Positions:
    section, folder, shapes = run.recipe.selection, run.folder, run.down_shapes
    if folder.finished("select", run.selection_inputs):
        positions = Positions.load(folder.positions)
        positions.check_fits(shapes, str(folder.positions))
        return positions
    exclude = _rows_of_implants(section.exclude, shapes)
    try:
        if section.positions is not None:
            positions = Positions.load(section.positions)
            positions.check_fits(shapes, section.positions)
            positions.check_apart(exclude, section.positions)
        elif section.strategy == "random":
            positions = select_random(len(shapes), shapes[0][0], section.quota, section.seed, exclude)
        elif run.recipe.senses:
            positions = select_by_sensitivity(
                *kept_sensitivity(folder.sensitivity), section.quota, section.strategy, exclude
            )
        else:
            positions = select_by_scores(
                KeptScores(folder.attribution).scores(), section.quota, section.strategy, exclude
            )
    except ValueError as error:
        raise Refusal(f"selection: {error}") from None
    if not positions.count:
        raise Refusal(
            f"selection.quota {section.quota:g} selects no row of {shapes[0][0]}; it must select at least one per layer"
        )
    positions.save(folder.positions)
    folder.finish("select", run.selection_inputs)
    return positions


def _rows_of_implants(files: list[str], shapes: list[tuple[int, int]]) -> Positions:
    """All rows that other implants hold."""
    taken: list[set[int]] = [set() for _ in shapes]
    for file in files:
        positions = Implant.load(file).positions
        positions.check_fits(shapes, file)
        for layer, rows in zip(taken, positions.rows, strict=True):
            layer.update(rows)
    return Positions([sorted(rows) for rows in taken])
