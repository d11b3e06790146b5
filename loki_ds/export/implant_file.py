"""The implant file: per block the selected rows, their values in the base and after implanting, bit
for bit, in safetensors.

Both values are kept because a difference of two floating-point numbers need not lead back to
either. A file is a few percent of the model: two times the quota's share of the weights that hold
rows.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loki_ds.disk.files import written_whole
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import in_words
from loki_ds.selection.positions import BLOCK_NAME, Positions

FORMAT = "loki-ds implant 2"
MOST_BLOCKS = 100_000  # of a file that may be believed

PARTS = ("rows", "base", "implanted")


@dataclass(frozen=True)
class LayerRows:
    """A block's row numbers `[k]` (int64, ascending) and values, base and implanted `[k, d_ff]`."""

    rows: Tensor
    base: Tensor
    implanted: Tensor


@dataclass(frozen=True)
class Implant:
    """Selected rows of `layers` (layer number to rows) of a model with `layer_count` layers; of
    other blocks than the down-projections, by their numbers in `blocks`.
    """

    layer_count: int
    layers: dict[int, LayerRows]
    facts: dict[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] | None = None

    @property
    def positions(self) -> Positions:
        rows = [self.layers[i].rows.tolist() if i in self.layers else [] for i in range(self.layer_count)]
        return Positions(rows, self.blocks)

    def save(self, path: Path) -> None:
        tensors = {}
        for i, rows in self.layers.items():
            for name in PARTS:
                tensors[f"{_prefix(i, self.blocks)}.{name}"] = getattr(rows, name).contiguous()
        described: dict[str, Any] = {"layers": self.layer_count, "facts": self.facts}
        if self.blocks is not None:
            described["blocks"] = self.blocks
        with written_whole(path) as aside:
            # One entry, as safetensors writes several in any order: equal implants, equal files.
            save_file(tensors, aside, {FORMAT: json.dumps(described, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> "Implant":
        """Read an implant file.

        Raises:
            Refusal: the file is missing, not an implant file, or its rows are not whole.
        """
        if Path(path).is_dir():
            raise Refusal(f"{path}: a folder, where an implant file is wanted (RUN/implant.safetensors)")
        try:
            with safe_open(path, "pt") as file:
                described = (file.metadata() or {}).get(FORMAT)
                names = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except OSError as error:
            raise Refusal(f"{path}: the implant file cannot be read: {error.strerror or error}") from None
        except SafetensorError as error:
            raise Refusal(f"{path}: not a whole safetensors file: {error}") from None
        if described is None:
            raise Refusal(f"{path}: not an implant file ({FORMAT!r} is not in its metadata)")
        count, facts, blocks = _described(path, described)
        layers: dict[int, LayerRows] = {}
        for i in range(count):
            wanted = [f"{_prefix(i, blocks)}.{name}" for name in PARTS]
            if not names.isdisjoint(wanted):
                name = f"layer {i}" if blocks is None else in_words(blocks[i])
                layers[i] = _checked(path, name, [tensors.get(name) for name in wanted])
                names.difference_update(wanted)
        if names:
            raise Refusal(f"{path}: holds {min(names)}, which no layer of {count} has")
        return cls(count, layers, facts, blocks)


def _prefix(i: int, blocks: tuple[str, ...] | None) -> str:
    """What the names of a block's tensors begin with."""
    return f"layers.{i}" if blocks is None else blocks[i]


def _described(path: str | Path, text: str) -> tuple[int, dict[str, str], tuple[str, ...] | None]:
    """The number of the model's layers or other blocks, the facts, and the blocks' names."""
    try:
        described = json.loads(text)
        count, facts, blocks = described["layers"], described["facts"], described.get("blocks")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        count, facts, blocks = None, None, None
    if type(count) is not int or not 0 <= count <= MOST_BLOCKS or not isinstance(facts, dict):
        raise Refusal(f"{path}: its metadata {FORMAT!r} does not hold a number of layers and facts")
    if blocks is None:
        return count, facts, None
    named = isinstance(blocks, list) and all(isinstance(name, str) and BLOCK_NAME.fullmatch(name) for name in blocks)
    if not named or len(set(blocks)) != count:
        raise Refusal(f"{path}: its metadata {FORMAT!r} does not hold {count} different names of blocks")
    return count, facts, tuple(blocks)


def _checked(path: str | Path, block: str, stored: list[Tensor | None]) -> LayerRows:
    rows, base, implanted = stored
    if rows is None or base is None or implanted is None:
        raise Refusal(f"{path}: {block} needs rows, base and implanted, and has not all three")
    if rows.dtype != torch.int64 or rows.dim() != 1 or (rows < 0).any() or (rows.diff() <= 0).any():
        raise Refusal(f"{path}: {block}'s rows must be different row numbers from 0 in ascending order")
    if base.shape != implanted.shape or base.dtype != implanted.dtype or base.dim() != 2 or len(base) != len(rows):
        raise Refusal(
            f"{path}: {block} has {len(rows)} rows, base {list(base.shape)} and implanted {list(implanted.shape)}"
        )
    return LayerRows(rows, base, implanted)
