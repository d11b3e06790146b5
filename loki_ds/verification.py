"""The guarantee: every byte outside the selected rows is the base's.

Reads two checkpoints tensor by tensor, holds one at a time.

Knows safetensors checkpoints, single or sharded, and tied weights that only one side stored. Loads
no model and needs no GPU.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loki_ds.positions import Positions
from loki_ds.refusal import Refusal

DOWN = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj\.weight$")
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@dataclass
class Verification:
    """What was compared, and every tensor that changed where it may not have."""

    tensors: int = 0
    bytes: int = 0
    rows_selected: int = 0
    rows_changed: int = 0
    changed_outside: list[str] = field(default_factory=list)

    @property
    def identical_outside_rows(self) -> bool:
        return not self.changed_outside

    def as_json(self) -> dict[str, Any]:
        return {"identical_outside_rows": self.identical_outside_rows, **self.__dict__}


def verify(base: Path, model: Path, positions: Positions | None) -> Verification:
    """Compare two checkpoint folders byte for byte, outside the rows of every layer's `W_down` that
    `positions` selects.

    positions: None for a baseline that trained everything; then whole tensors count as changed or
    not.

    Raises:
        Refusal: a checkpoint cannot be read, or the two do not hold the same tensors in the same
            shapes and dtypes.
    """
    found = Verification(rows_selected=positions.count if positions else 0)
    with open_checkpoint(base) as before, open_checkpoint(model) as after:
        _check_same_tensors(before, after)
        for name in sorted(before.names | after.names):
            old, new = before.read(name), after.read(name)
            if old.shape != new.shape or old.dtype != new.dtype:
                raise Refusal(
                    f"{model}: tensor {name} is {new.dtype} {list(new.shape)}, in the base it is {old.dtype} "
                    f"{list(old.shape)}"
                )
            changed = _changed_rows(old, new)
            rows = _selected_rows(name, positions)
            found.tensors += 1
            found.bytes += old.nbytes
            found.rows_changed += int(changed[rows].sum()) if rows else 0
            changed[rows] = False
            if changed.any():
                found.changed_outside.append(name)
    return found


def _changed_rows(old: Tensor, new: Tensor) -> Tensor:
    """Which first-axis rows differ in any bit (so that -0.0 is not 0.0, and NaN equals the same
    NaN).
    """
    old, new = (t.reshape(len(t) if t.ndim else 1, -1).contiguous().view(torch.uint8) for t in (old, new))
    return (old != new).any(1)


def _selected_rows(name: str, positions: Positions | None) -> list[int]:
    layer = down_layer(name)
    return [] if positions is None or layer is None else positions.rows[layer]


def down_layer(name: str) -> int | None:
    """The layer whose `W_down` a tensor of this name is; None for every other tensor."""
    match = DOWN.search(name)
    return int(match[1]) if match else None


def _check_same_tensors(before: "Checkpoint", after: "Checkpoint") -> None:
    for one, other in ((before, after), (after, before)):
        for name in sorted(one.names - other.names):
            if other.tied_twin(name) is None:
                raise Refusal(f"{other.folder}: tensor {name} of {one.folder} is missing")


class Checkpoint:
    """A folder of safetensors files, read one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self.names: set[str] = set()
        self._where: dict[str, Any] = {}

    def read(self, name: str) -> Tensor:
        """A tensor by name; a tied one that is not stored is read from its twin."""
        stored = name if name in self.names else self.tied_twin(name)
        return self._where[stored or name].get_tensor(stored or name)

    def dtype_of(self, name: str) -> str:
        """A tensor's dtype as torch names it, for example `bfloat16`."""
        return str(self.read(name).dtype).removeprefix("torch.")

    def file_of(self, name: str) -> str:
        """The name of the file that stores a tensor."""
        return self.files[name]

    def tied_twin(self, name: str) -> str | None:
        """The stored tensor that a tied, unstored one shares its memory with."""
        config = json.loads((self.folder / "config.json").read_text())
        twin = TIED.get(name)
        return twin if config.get("tie_word_embeddings") and twin in self.names else None

    def add(self, shard: str, handle: Any) -> None:
        """Make the tensors of an open shard readable."""
        for name in handle.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
            self.names.add(name)
            self.files[name] = shard
            self._where[name] = handle


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """All safetensors shards that the folder's index names, or its single file."""
    checkpoint, index = Checkpoint(folder), folder / "model.safetensors.index.json"
    shards = _shards_of(index) if index.exists() else ["model.safetensors"]
    handles = []
    try:
        for shard in shards:
            if not (folder / shard).exists():
                raise Refusal(f"{folder}: the file {shard} is missing; loki-ds reads safetensors checkpoints")
            handles.append(safe_open(folder / shard, "pt"))
            checkpoint.add(shard, handles[-1])
        yield checkpoint
    except SafetensorError as error:
        raise Refusal(f"{folder}: not a whole safetensors checkpoint: {error}") from None
    finally:
        for handle in handles:
            handle.__exit__(None, None, None)


def _shards_of(index: Path) -> list[str]:
    """The files that an index names; all of them must lie beside it."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Refusal(f"{index}: not an index of safetensors shards (a JSON object with a weight_map)") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
            raise Refusal(f"{index}: names the shard {shard!r}, allowed are files in the same folder")
    return shards
