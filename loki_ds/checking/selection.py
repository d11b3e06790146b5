"""What a recipe's selection can choose from, looked at before anything is computed for it."""

from loki_ds.export.implant_file import Implant
from loki_ds.recipe.sections import SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import DOWN, Block
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions


def check_selection(section: SelectionSection, blocks: list[Block]) -> None:
    """Refuse a selection that could choose nothing.

    Raises:
        Refusal: a quota of no row, layers that the model does not have, or files of positions or
            implants that are none of this model.
    """
    planned, taken = planned_positions(section, blocks), rows_of_implants(section.exclude, blocks)
    if section.positions is not None:
        planned.check_apart(taken, section.positions)
    top = max(block.layer for block in blocks)
    if section.layers and section.layers[1] > top:
        raise Refusal(f"selection.layers is {section.layers}, the model has layers 0 to {top}")
    if not planned.count:
        chosen = section.positions or f"selection.quota {section.quota:g}"
        raise Refusal(f"{chosen} selects no row of {blocks[0].choices}; it must select at least one per layer")


def rows_of_implants(files: list[str], blocks: list[Block]) -> Positions:
    """All rows that other implants hold.

    Raises:
        Refusal: an implant's rows are not this model's.
    """
    taken: dict[str, set[int]] = {}
    by_name = {block.name: block for block in blocks}
    downs = [block for block in blocks if block.name.endswith(f".{DOWN}")]
    for file in files:
        positions = Implant.load(file).positions
        if positions.blocks is None and downs:
            positions.check_fits(downs, file)
        for name, rows in zip(positions.names, positions.rows, strict=True):
            if name in by_name and rows and rows[-1] >= by_name[name].rows:
                raise Refusal(f"{file}: {name} holds row {rows[-1]}, the model has rows 0 to {by_name[name].rows - 1}")
            taken.setdefault(name, set()).update(rows)
    return Positions([sorted(rows) for rows in taken.values()], tuple(taken))
