"""The guarantee: every byte outside the selected rows is the base's.

Reads two checkpoints tensor by tensor, holds one at a time. Loads no model and needs no GPU.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loki_ds.model.expert_rows import rows_of
from loki_ds.model.files import WeightFiles, open_weights, other_weights
from loki_ds.model.stored_rows import StoredRows
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import DOWN_PROJECTIONS, layer_of, place_in_words
from loki_ds.selection.positions import Positions

AT_ONCE = 2**24  # numbers in float64


@dataclass
class Verification:
    """What was compared, and every tensor that changed where it may not have.

    change: the size of the change, `|model - base| / |base|` over all tensors of floating-point
    numbers; change_by_layer: of the weights of every layer's rows alone; place: where those lie.
    """

    tensors: int = 0
    bytes: int = 0
    rows_selected: int = 0
    rows_changed: int = 0
    change: float = 0.0
    change_by_layer: list[float] = field(default_factory=list)
    place: str = DOWN_PROJECTIONS
    changed_outside: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)  # weight files that the model's index does not name

    @property
    def identical_outside_rows(self) -> bool:
        return not self.changed_outside

    def as_json(self) -> dict[str, Any]:
        return {"identical_outside_rows": self.identical_outside_rows, **self.__dict__}


def verify(base: Path, model: Path, positions: Positions | None) -> Verification:
    """Compare two checkpoint folders byte for byte, outside the rows that `positions` selects.

    positions: None for a baseline that trained all; then whole tensors count as changed or not.

    Raises:
        Refusal: a checkpoint cannot be read, or the two do not hold the same tensors in the same
            shapes and dtypes.
    """
    verification = Verification(rows_selected=positions.count if positions else 0)
    with open_weights(base) as before, open_weights(model) as after:
        stored = StoredRows(before, positions.blocks if positions else None)
        if positions is not None:
            positions.check_fits(stored.blocks(), "the positions")
        _check_same_tensors(before, after)
        verification.not_compared = other_weights(model, after)
        compared: dict[str, _Compared] = {}
        regions = _regions(stored, positions)
        for name in sorted(before.names | after.names):
            old, new = before.read(name), after.read(name)
            if old.shape != new.shape or old.dtype != new.dtype:
                raise Refusal(
                    f"{model}: tensor {name} is {new.dtype} {list(new.shape)}, in the base it is {old.dtype} "
                    f"{list(old.shape)}"
                )
            compared[name] = _compare(old, new, regions.get(name, _Region()))
            verification.bytes += old.nbytes
    verification.tensors = len(compared)
    verification.changed_outside = [name for name, comparison in compared.items() if comparison.outside]
    verification.change = _relative(comparison.squares for comparison in compared.values())
    if positions is not None:
        verification.place = place_in_words(positions.names)
        verification.rows_changed = sum(
            _rows_changed(stored, i, rows, compared) for i, rows in enumerate(positions.rows)
        )
    verification.change_by_layer = _change_by_layer(stored, compared)
    return verification


def _rows_changed(stored: StoredRows, i: int, rows: list[int], compared: "dict[str, _Compared]") -> int:
    """How many of a block's selected rows changed in any of its tensors."""
    chosen = torch.tensor(rows, dtype=torch.long)
    changed = torch.zeros(len(rows), dtype=torch.bool)
    for piece in stored.pieces[i]:
        here = stored.within(piece, chosen)
        changed[here] |= compared[piece.name].inside
    return int(changed.sum())


def _change_by_layer(stored: StoredRows, compared: "dict[str, _Compared]") -> list[float]:
    """Of the weights that rows may be of, layer by layer; 0 where a layer has none."""
    of_layers: dict[int, list[_Compared]] = {}
    for i, name in enumerate(stored.names):
        of_layers.setdefault(layer_of(name), []).extend(compared[piece.name] for piece in stored.pieces[i])
    layers = max(of_layers, default=-1) + 1
    return [_relative(comparison.squares for comparison in of_layers.get(layer, [])) for layer in range(layers)]


class _Region(NamedTuple):
    """Where a tensor may change: in some of its rows.

    rows_last: how a tensor with rows lies, None of any other.
    """

    rows: Sequence[int] = ()
    rows_last: bool | None = None


def _regions(stored: StoredRows, positions: Positions | None) -> dict[str, _Region]:
    """Where each tensor with rows may change."""
    regions = {}
    for i, pieces in stored.pieces.items():
        rows = torch.tensor(positions.rows[i] if positions else [], dtype=torch.long)
        for piece in pieces:
            own = (rows[stored.within(piece, rows)] - piece.first).tolist()
            regions[piece.name] = _Region(own, piece.rows_last)
    return regions


class _Compared(NamedTuple):
    """Two versions of one tensor. squares: summed, of the change and of the base; inside: which of
    the selected rows changed; outside: whether anything changed that may not.
    """

    squares: tuple[float, float]
    inside: Tensor
    outside: bool


def _compare(old: Tensor, new: Tensor, region: _Region) -> _Compared:
    if region.rows_last is not None:
        old, new = (rows_of(weight, None, region.rows_last) for weight in (old, new))
    changed, rows = _changed_rows(old, new), list(region.rows)
    squares = _squares(old, new, changed.any()) if old.is_floating_point() else (0.0, 0.0)
    inside = changed[rows]
    changed[rows] = False
    return _Compared(squares, inside, bool(changed.any()))


def _squares(old: Tensor, new: Tensor, changed: Tensor) -> tuple[float, float]:
    """Summed squares of the change and of the base."""
    moved = norm = 0.0
    for before, after in zip(old.flatten().split(AT_ONCE), new.flatten().split(AT_ONCE), strict=True):
        norm += float(before.double().square().nansum())
        moved += float((after.double() - before.double()).square().nansum()) if changed else 0.0
    return moved, norm


def _relative(squares: Iterable[tuple[float, float]]) -> float:
    moved, norm = map(sum, zip((0.0, 0.0), *squares, strict=True))
    return math.sqrt(moved / norm) if norm else 0.0


def _changed_rows(old: Tensor, new: Tensor) -> Tensor:
    """Which first-axis rows differ in a bit (so -0.0 is not 0.0, and NaN equals the same NaN)."""
    old, new = (t.reshape(len(t) if t.ndim else 1, -1).contiguous().view(torch.uint8) for t in (old, new))
    return (old != new).any(1)


def _check_same_tensors(before: WeightFiles, after: WeightFiles) -> None:
    for one, other in ((before, after), (after, before)):
        for name in sorted(one.names - other.names):
            if other.tied_twin(name) is None:
                raise Refusal(f"{other.folder}: tensor {name} of {one.folder} is missing")
