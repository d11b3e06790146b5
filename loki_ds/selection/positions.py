"""Positions: which rows may train, and their JSON file: the authors' list of every layer's rows of
`W_down`, or the rows of other blocks by their names.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loki_ds.disk.files import written_whole
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block, down_names, in_words, layer_of

FORM = "is a list of row lists, one per layer, or an object of row lists by the names of blocks"
BLOCK_NAME = re.compile(r"\d+\.[\w.]+")


@dataclass(frozen=True)
class Positions:
    """Selected rows, one ascending list per block; a block may have none.

    blocks: their names; None where they are every layer's down-projections, as in the paper.
    """

    rows: list[list[int]]
    blocks: tuple[str, ...] | None = None

    @classmethod
    def of(cls, rows: list[list[int]], blocks: Sequence[Block]) -> "Positions":
        """Rows of some blocks."""
        names = tuple(block.name for block in blocks)
        return cls(rows, None if names == down_names(len(names)) else names)

    @property
    def names(self) -> tuple[str, ...]:
        return down_names(len(self.rows)) if self.blocks is None else self.blocks

    @property
    def by_name(self) -> dict[str, list[int]]:
        return dict(zip(self.names, self.rows, strict=True))

    @property
    def as_json(self) -> list[list[int]] | dict[str, list[int]]:
        """The authors' form, a list of row lists, one per layer; other blocks go by their names."""
        return self.rows if self.blocks is None else self.by_name

    @property
    def digest(self) -> str:
        """SHA-256 of the rows' canonical JSON: equal for equal rows, whatever their file."""
        return hashlib.sha256(json.dumps(self.as_json, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        with written_whole(Path(path)) as aside:
            aside.write_text(json.dumps(self.as_json))

    @classmethod
    def load(cls, path: str | Path) -> "Positions":
        """Read a positions file.

        Raises:
            Refusal: the file is missing, or holds no lists of different, non-negative row numbers.
        """
        try:
            written = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise Refusal(f"{path}: the positions file cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise Refusal(f"{path}: not JSON; a positions file {FORM}") from None
        by_name = isinstance(written, dict)
        rows = list(written.values()) if by_name else written
        if not isinstance(rows, list) or not rows or not all(isinstance(of_block, list) for of_block in rows):
            raise Refusal(f"{path}: a positions file {FORM}")
        positions = cls(rows, tuple(written) if by_name else None)
        for name, of_block in zip(positions.names, rows, strict=True):
            if not BLOCK_NAME.fullmatch(name):
                raise Refusal(f"{path}: {name!r} is no name of rows, such as 3.mlp.gate_proj")
            for row in of_block:
                if type(row) is not int or row < 0:
                    raise Refusal(f"{path}: {in_words(name)} holds {row!r}, allowed are row numbers from 0")
            if len(set(of_block)) != len(of_block):
                raise Refusal(f"{path}: {in_words(name)} holds a row twice")
        of_the_paper = positions.names == down_names(len(rows))  # by their names they are the same rows
        return cls([sorted(of_block) for of_block in rows], None if of_the_paper else positions.blocks)

    def check_fits(self, blocks: Sequence[Block], source: str) -> None:
        """Refuse positions of another model than that of these blocks."""
        if self.blocks is None and len(self.rows) != len(blocks):
            raise Refusal(f"{source}: the positions have {len(self.rows)} layers, the model has {len(blocks)}")
        if self.names != tuple(block.name for block in blocks):
            raise Refusal(
                f"{source}: the positions are of other rows ({self.names[0]}, ...) than {blocks[0].name}, ..."
            )
        for rows, block in zip(self.rows, blocks, strict=True):
            if rows and rows[-1] >= block.rows:
                there = f"the model has rows 0 to {block.rows - 1} there"
                raise Refusal(f"{source}: {in_words(block.name)} selects row {rows[-1]}, {there}")

    def check_apart(self, other: "Positions", source: str) -> None:
        """Refuse positions that share a row with `other`."""
        theirs = other.by_name
        for name, rows in self.by_name.items():
            if shared := sorted(set(rows).intersection(theirs.get(name, ()))):
                held = "which an excluded implant holds (selection.exclude)"
                raise Refusal(f"{source}: {in_words(name)} selects row {shared[0]}, {held}")

    def said(self) -> str:
        """How many rows where, in words."""
        layers = len({layer_of(name) for name in self.names})
        return f"{self.count} rows in {layers} layers, digest {self.digest}"

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def overlap(self, other: "Positions") -> float:
        """Share of the larger selection in both; 1 when equal (the paper's stability figure)."""
        theirs = other.by_name
        shared = sum(len(set(rows).intersection(theirs.get(name, ()))) for name, rows in self.by_name.items())
        return shared / max(self.count, other.count) if self.count or other.count else 1.0
