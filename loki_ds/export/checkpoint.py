"""Implants and checkpoint folders: put rows into safetensors files by their place on the disk, and
read them from two checkpoints.

A checkpoint is copied and the selected rows are overwritten where they lie, so every other byte,
header included, is the source's by construction and a model larger than memory is no matter.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.model.files import WeightFiles, down_names, open_weights, same_bits
from loki_ds.positions import Positions
from loki_ds.refusal import Refusal
from loki_ds.run_folder import written_whole

NOT_MODEL = shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "README.md", ".*", "NOT_VERIFIED")


def apply_to_checkpoint(base: Path, implant: Implant, out: Path) -> None:
    """A copy of the base with the implanted rows.

    Raises:
        Refusal: the base's rows are not those the implant was made from, or `out` is there already.
    """
    _rewrite(base, implant, out, "base", "implanted")


def revert_in_checkpoint(model: Path, implant: Implant, out: Path) -> None:
    """A copy of an implanted model with the base's rows, bit for bit.

    Raises as `apply_to_checkpoint` does.
    """
    _rewrite(model, implant, out, "implanted", "base")


def read_rows(folder: Path, positions: Positions) -> dict[int, Tensor]:
    """The selected rows `[k, d_ff]` of each layer that has any, in the checkpoint's own dtype."""
    with open_weights(folder) as checkpoint:
        names = down_names(checkpoint.names)
        if len(names) != len(positions.rows):
            raise Refusal(
                f"{folder}: the checkpoint has {len(names)} layers with mlp.down_proj, the positions have "
                f"{len(positions.rows)}"
            )
        return {i: checkpoint.read(names[i])[rows] for i, rows in enumerate(positions.rows) if rows}


def implant_between(base: Path, model: Path, positions: Positions, facts: dict[str, str]) -> Implant:
    """The implant that leads from the base to the model."""
    before, after = read_rows(base, positions), read_rows(model, positions)
    layers = {i: LayerRows(torch.tensor(positions.rows[i]), before[i], after[i]) for i in before}
    return Implant(len(positions.rows), layers, facts)


def _rewrite(source: Path, implant: Implant, out: Path, found: str, wanted: str) -> None:
    if out.exists():
        raise Refusal(f"{out}: there already; choose a folder that is not")
    with open_weights(source) as checkpoint:
        names = down_names(checkpoint.names)
        _check_fits(source, checkpoint, names, implant, found)
        files = {layer: checkpoint.file_of(names[layer]) for layer in implant.layers}
    with written_whole(out) as aside:
        shutil.copytree(source, aside, ignore=NOT_MODEL)
        for layer, rows in implant.layers.items():
            _overwrite(aside / files[layer], names[layer], rows.rows, getattr(rows, wanted))


def _check_fits(source: Path, checkpoint: WeightFiles, names: dict[int, str], implant: Implant, found: str) -> None:
    if len(names) != implant.layer_count:
        raise Refusal(
            f"{source}: the model has {len(names)} layers with mlp.down_proj, the implant was made for "
            f"{implant.layer_count}"
        )
    for layer, rows in implant.layers.items():
        weight, expected = checkpoint.read(names[layer]), getattr(rows, found)
        if weight.shape[1:] != expected.shape[1:] or weight.dtype != expected.dtype or rows.rows[-1] >= len(weight):
            raise Refusal(
                f"{source}: {names[layer]} is {weight.dtype} {list(weight.shape)}, the implant has rows up to "
                f"{int(rows.rows[-1])} "
                f"of {expected.dtype} and {expected.shape[1]} columns"
            )
        if not same_bits(weight[rows.rows], expected):
            raise Refusal(
                f"{source}: {names[layer]} does not hold the rows the implant expects ({found}); is it another model?"
            )


def _overwrite(file: Path, name: str, rows: Tensor, values: Tensor) -> None:
    """Write whole rows of one tensor at their place in a safetensors file (8 bytes of header
    length, a JSON header, the data).
    """
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        entry = json.loads(handle.read(length))[name]
    start, end = entry["data_offsets"]
    count = entry["shape"][0]
    data = np.memmap(file, np.uint8, "r+", offset=8 + length + start, shape=(count, (end - start) // count))
    data[rows.numpy()] = values.contiguous().view(torch.uint8).numpy()
    data.flush()
