"""What a recipe's selection can choose from, looked at before anything is computed for it."""

from loki_ds.export.implant_file import Implant
from loki_ds.recipe.sections import SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions


def check_selection(section: SelectionSection, shapes: list[tuple[int, int]]) -> None:
    """Refuse a selection that could choose nothing.

    shapes: `[d_model, d_ff]` of each layer's rows.

    Raises:
        Refusal: a quota of no row, or files of positions or implants that are none of this model.
    """
    planned, exclude = planned_positions(section, shapes), rows_of_implants(section.exclude, shapes)
    if section.positions is not None:
        planned.check_apart(exclude, section.positions)
    if not planned.count:
        chosen = section.positions or f"selection.quota {section.quota:g}"
        raise Refusal(f"{chosen} selects no row of {shapes[0][0]}; it must select at least one per layer")


def rows_of_implants(files: list[str], shapes: list[tuple[int, int]]) -> Positions:
    """All rows that other implants hold."""
    taken: list[set[int]] = [set() for _ in shapes]
    for file in files:
        positions = Implant.load(file).positions
        positions.check_fits(shapes, file)
        for layer, rows in zip(taken, positions.rows, strict=True):
            layer.update(rows)
    return Positions([sorted(rows) for rows in taken])
