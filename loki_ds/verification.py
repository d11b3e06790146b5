"""The guarantee: every byte outside the selected rows is the base's.

Reads two checkpoints tensor by tensor, holds one at a time. Loads no model and needs no GPU.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loki_ds.model.files import WeightFiles, open_weights, other_weights
from loki_ds.positions import Positions
from loki_ds.refusal import Refusal

AT_ONCE = 2**24  # numbers in float64


@dataclass
class Verification:
    """What was compared, and every tensor that changed where it may not have.

    inputs_frozen: columns of every layer's `W_down` that were compared in the selected rows, too.
    change: the size of the change, `|model - base| / |base|` over all tensors of floating-point
    numbers; change_by_layer: of every layer's `W_down` alone.
    """

    tensors: int = 0
    bytes: int = 0
    rows_selected: int = 0
    rows_changed: int = 0
    inputs_frozen: int = 0
    change: float = 0.0
    change_by_layer: list[float] = field(default_factory=list)
    changed_outside: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)  # weight files that the model's index does not name

    @property
    def identical_outside_rows(self) -> bool:
        return not self.changed_outside

    def as_json(self) -> dict[str, Any]:
        return {"identical_outside_rows": self.identical_outside_rows, **self.__dict__}


def verify(
    base: Path, model: Path, positions: Positions | None, frozen: Sequence[Tensor] | None = None
) -> Verification:
    """Compare two checkpoint folders byte for byte, outside the rows of every layer's `W_down` that
    `positions` selects.

    positions: None for a baseline that trained everything; then whole tensors count as changed or
    not. frozen: per layer the columns `[r]` that may not change in the selected rows either.

    Raises:
        Refusal: a checkpoint cannot be read, or the two do not hold the same tensors in the same
            shapes and dtypes.
    """
    found = Verification(rows_selected=positions.count if positions else 0)
    found.inputs_frozen = len(frozen[0]) if frozen else 0
    with open_weights(base) as before, open_weights(model) as after:
        _check_positions(positions, before)
        _check_same_tensors(before, after)
        selected, sizes = _rows_by_name(positions, before), {}
        columns = {name: frozen[layer] for layer, name in before.down_names().items()} if frozen else {}
        found.not_compared = other_weights(model, after)
        for name in sorted(before.names | after.names):
            old, new = before.read(name), after.read(name)
            if old.shape != new.shape or old.dtype != new.dtype:
                raise Refusal(
                    f"{model}: tensor {name} is {new.dtype} {list(new.shape)}, in the base it is {old.dtype} "
                    f"{list(old.shape)}"
                )
            changed = _changed_rows(old, new)
            if old.is_floating_point():
                sizes[name] = _squares(old, new, changed.any())
            rows = selected.get(name, [])
            found.tensors += 1
            found.bytes += old.nbytes
            found.rows_changed += int(changed[rows].sum()) if rows else 0
            changed[rows] = False
            if rows and name in columns:
                changed[rows] = _changed_rows(old[rows][:, columns[name]], new[rows][:, columns[name]])
            if changed.any():
                found.changed_outside.append(name)
        found.change = _relative(sizes.values())
        found.change_by_layer = [_relative([sizes[name]]) for _, name in sorted(before.down_names().items())]
    return found


def _squares(old: Tensor, new: Tensor, changed: Tensor) -> tuple[float, float]:
    """Summed squares of the change and of the base."""
    moved = own = 0.0
    for before, after in zip(old.flatten().split(AT_ONCE), new.flatten().split(AT_ONCE), strict=True):
        own += float(before.double().square().nansum())
        moved += float((after.double() - before.double()).square().nansum()) if changed else 0.0
    return moved, own


def _relative(squares: Iterable[tuple[float, float]]) -> float:
    moved, own = map(sum, zip(*squares, strict=True))
    return math.sqrt(moved / own) if own else 0.0


def _changed_rows(old: Tensor, new: Tensor) -> Tensor:
    """Which first-axis rows differ in any bit (so that -0.0 is not 0.0, and NaN equals the same
    NaN).
    """
    old, new = (t.reshape(len(t) if t.ndim else 1, -1).contiguous().view(torch.uint8) for t in (old, new))
    return (old != new).any(1)


def _rows_by_name(positions: Positions | None, base: WeightFiles) -> dict[str, list[int]]:
    return {name: positions.rows[layer] for layer, name in base.down_names().items()} if positions else {}


def _check_positions(positions: Positions | None, base: WeightFiles) -> None:
    """Refuse positions that are not this model's."""
    if positions is not None:
        names = base.down_names()
        shapes = [base.shape_of(names[layer]) for layer in sorted(names)]
        positions.check_fits(shapes, "the positions")


def _check_same_tensors(before: WeightFiles, after: WeightFiles) -> None:
    for one, other in ((before, after), (after, before)):
        for name in sorted(one.names - other.names):
            if other.tied_twin(name) is None:
                raise Refusal(f"{other.folder}: tensor {name} of {one.folder} is missing")
