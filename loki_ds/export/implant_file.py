"""The implant file: per layer the selected rows, their values in the base and after implanting, bit
for bit, in safetensors.

Both values are kept because a difference of two floating-point numbers need not lead back to
either. A file is a few percent of the model (two times the quota's share of `W_down`).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loki_ds.disk.files import written_whole
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

FORMAT = "loki-ds implant 2"
MOST_LAYERS = 10_000  # of a file that may be believed


@dataclass(frozen=True)
class LayerRows:
    """A layer's row numbers `[k]` (int64, ascending) and values, base and implanted `[k, d_ff]`."""

    rows: Tensor
    base: Tensor
    implanted: Tensor


@dataclass(frozen=True)
class Implant:
    """Selected rows of `layers` (layer number to rows) of a model with `layer_count` layers."""

    layer_count: int
    layers: dict[int, LayerRows]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def positions(self) -> Positions:
        return Positions([self.layers[i].rows.tolist() if i in self.layers else [] for i in range(self.layer_count)])

    def save(self, path: Path) -> None:
        tensors = {}
        for layer, rows in self.layers.items():
            for name in ("rows", "base", "implanted"):
                tensors[f"layers.{layer}.{name}"] = getattr(rows, name).contiguous()
        with written_whole(path) as aside:
            # One entry, as safetensors writes several in any order: equal implants, equal files.
            save_file(
                tensors, aside, {FORMAT: json.dumps({"layers": self.layer_count, "facts": self.facts}, sort_keys=True)}
            )

    @classmethod
    def load(cls, path: str | Path) -> "Implant":
        """Read an implant file.

        Raises:
            Refusal: the file is missing, not an implant file, or its rows are not whole.
        """
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
        count, facts = _described(path, described)
        layers: dict[int, LayerRows] = {}
        for layer in range(count):
            wanted = [f"layers.{layer}.{name}" for name in ("rows", "base", "implanted")]
            if not names.isdisjoint(wanted):
                layers[layer] = _checked(path, layer, [tensors.get(name) for name in wanted])
                names.difference_update(wanted)
        if names:
            raise Refusal(f"{path}: holds {min(names)}, which no layer of {count} has")
        return cls(count, layers, facts)


def _described(path: str | Path, text: str) -> tuple[int, dict[str, str]]:
    """The number of the model's layers, and the facts, from the metadata."""
    try:
        described = json.loads(text)
        count, facts = described["layers"], described["facts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        count, facts = None, None
    if type(count) is not int or not 0 <= count <= MOST_LAYERS or not isinstance(facts, dict):
        raise Refusal(f"{path}: its metadata {FORMAT!r} does not hold a number of layers and facts")
    return count, facts


def _checked(path: str | Path, layer: int, stored: list[Tensor | None]) -> LayerRows:
    rows, base, implanted = stored
    if rows is None or base is None or implanted is None:
        raise Refusal(f"{path}: layer {layer} needs rows, base and implanted, and has not all three")
    if rows.dtype != torch.int64 or rows.dim() != 1 or (rows < 0).any() or (rows.diff() <= 0).any():
        raise Refusal(f"{path}: layer {layer}'s rows must be different row numbers from 0 in ascending order")
    if base.shape != implanted.shape or base.dtype != implanted.dtype or base.dim() != 2 or len(base) != len(rows):
        raise Refusal(
            f"{path}: layer {layer} has {len(rows)} rows, base {list(base.shape)} and implanted {list(implanted.shape)}"
        )
    return LayerRows(rows, base, implanted)
