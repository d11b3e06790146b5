"""Positions: which rows of each layer's `W_down` may train, and the authors' JSON file of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loki_ds.disk.files import written_whole
from loki_ds.refusal import Refusal


@dataclass(frozen=True)
class Positions:
    """Selected rows, one ascending list per layer; a layer may have none."""

    rows: list[list[int]]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows' canonical JSON: equal for equal rows, whatever their file."""
        return hashlib.sha256(json.dumps(self.rows, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the authors' format: a JSON list of row lists, one per layer."""
        with written_whole(Path(path)) as aside:
            aside.write_text(json.dumps(self.rows))

    @classmethod
    def load(cls, path: str | Path) -> "Positions":
        """Read the authors' format.

        Raises:
            Refusal: the file is missing, or is not a list of lists of different, non-negative row
                numbers.
        """
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise Refusal(f"{path}: the positions file cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise Refusal(f"{path}: not JSON; a positions file is a list of row lists, one per layer") from None
        if not isinstance(rows, list) or not rows or not all(isinstance(layer, list) for layer in rows):
            raise Refusal(f"{path}: a positions file is a list of row lists, one per layer")
        for i, layer in enumerate(rows):
            for row in layer:
                if type(row) is not int or row < 0:
                    raise Refusal(f"{path}: layer {i} holds {row!r}, allowed are row numbers from 0")
            if len(set(layer)) != len(layer):
                raise Refusal(f"{path}: layer {i} holds a row twice")
        return cls([sorted(layer) for layer in rows])

    def check_fits(self, shapes: Sequence[Sequence[int]], source: str) -> None:
        """Refuse positions of another model than that of `shapes`, `[d_model, d_ff]` by layer."""
        if len(self.rows) != len(shapes):
            raise Refusal(f"{source}: the positions have {len(self.rows)} layers, the model has {len(shapes)}")
        for i, (layer, (d_model, _)) in enumerate(zip(self.rows, shapes, strict=True)):
            if layer and layer[-1] >= d_model:
                raise Refusal(
                    f"{source}: layer {i} selects row {layer[-1]}, the model's down_proj has rows 0 to {d_model - 1}"
                )

    def check_apart(self, other: "Positions", source: str) -> None:
        """Refuse positions that share a row with `other`."""
        for i, (mine, theirs) in enumerate(zip(self.rows, other.rows, strict=True)):
            if shared := sorted(set(mine) & set(theirs)):
                raise Refusal(
                    f"{source}: layer {i} selects row {shared[0]}, which an excluded implant holds (selection.exclude)"
                )

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def overlap(self, other: "Positions") -> float:
        """Share of the larger selection in both; 1 when equal (the paper's stability figure)."""
        shared = sum(len(set(mine) & set(theirs)) for mine, theirs in zip(self.rows, other.rows, strict=True))
        return shared / max(self.count, other.count, 1)
