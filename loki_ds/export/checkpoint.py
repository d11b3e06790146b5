"""Implants and checkpoint folders: put rows into safetensors files by their place on the disk, and
read them from two checkpoints.

A checkpoint is copied and the selected rows are overwritten where they lie, so every other byte,
header included, is the source's by construction and a model larger than memory is no matter.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.model.files import WeightFiles, model_files, open_weights, same_bits
from loki_ds.positions import Positions
from loki_ds.refusal import Refusal
from loki_ds.run_folder import written_whole


def copy_model(source: Path, out: Path) -> None:
    """Copy the files that are the model; their contents, not their modes (a shared store is
    read-only).
    """
    with open_weights(source) as weights:
        files = model_files(source, weights)
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, out / file)


def write_tensors(base: Path, tensors: Iterable[tuple[str, Tensor]], out: Path) -> None:
    """A copy of the base in which some tensors have other values, in the base's own dtypes.

    Whatever the model's class does not load (prediction heads, old buffers) stays the base's, byte
    for byte, and so does every file beside the weights.

    Raises:
        Refusal: a tensor that the base does not store, or in another shape.
    """
    with open_weights(base) as weights, written_whole(out) as aside:
        copy_model(base, aside)
        for name, tensor in tensors:
            if name not in weights.names:
                if weights.tied_twin(name) is None:
                    raise Refusal(f"{base}: tensor {name} of the trained model is not stored there")
                continue
            if weights.shape_of(name) != tuple(tensor.shape):
                shapes = f"{list(tensor.shape)}, in the base it is {list(weights.shape_of(name))}"
                raise Refusal(f"{out}: tensor {name} is {shapes}")
            values = tensor.to(weights.dtype_of(name)).reshape(len(tensor) if tensor.ndim else 1, -1)
            _overwrite(aside / weights.file_of(name), name, torch.arange(len(values)), values)


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
        names = checkpoint.down_names()
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
        names = checkpoint.down_names()
        _check_fits(source, checkpoint, names, implant, found)
        files = {layer: checkpoint.file_of(names[layer]) for layer in implant.layers}
    with written_whole(out) as aside:
        copy_model(source, aside)
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
    count = entry["shape"][0] if entry["shape"] else 1
    data = np.memmap(file, np.uint8, "r+", offset=8 + length + start, shape=(count, (end - start) // count))
    data[rows.numpy()] = values.contiguous().view(torch.uint8).numpy()
    data.flush()
