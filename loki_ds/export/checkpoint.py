"""Implants and checkpoint folders: put rows into safetensors files by their place on the disk, and
read them from two checkpoints.

A checkpoint is copied and the selected rows are overwritten where they lie, so every other byte,
header included, is the source's by construction and a model larger than memory is no matter.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loki_ds.disk.files import remove, write_json, written_whole
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.model.base_checks import as_stored
from loki_ds.model.expert_rows import as_in
from loki_ds.model.files import model_files, open_weights, same_bits
from loki_ds.model.stored_rows import Piece, StoredRows
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

TEMPLATE = "chat_template.jinja"  # beside the weights
TOKENIZER = "tokenizer_config.json"  # which may hold a template, or several by name
NAMED = "additional_chat_templates"  # and a folder of others, which transformers would take with tools


def copy_model(source: Path, out: Path) -> None:
    """Copy the model's files; their contents, not their modes (a shared store is read-only)."""
    with open_weights(source) as weights:
        files = model_files(source, weights)
    copy_files(files, source, out)


def copy_files(files: Iterable[Path], source: Path, out: Path) -> None:
    """Copy files, by their places in a folder, to the same places in another."""
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
            with _mapped(aside / weights.files[name], name) as data:
                data[...] = _bits(tensor.to(weights.dtype_of(name)), data)


def write_trained(base: Path, model: PreTrainedModel, tensors: dict[str, Tensor], out: Path) -> None:
    """As `write_tensors`, a class's tensors by its own names."""
    with open_weights(base) as weights:
        named = as_stored(model, tensors, weights)
    write_tensors(base, named.items(), out)


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
    """The selected rows `[k, width]` of each layer that has any, in the checkpoint's own dtype."""
    with open_weights(folder) as checkpoint:
        stored = StoredRows(checkpoint, positions.blocks)
        if len(stored.pieces) != len(positions.rows):
            raise Refusal(
                f"{folder}: the checkpoint has {len(stored.pieces)} layers whose rows are known, the positions have "
                f"{len(positions.rows)}"
            )
        return {i: stored.read(i, torch.tensor(rows)) for i, rows in enumerate(positions.rows) if rows}


def implant_between(base: Path, model: Path, positions: Positions, facts: dict[str, str]) -> Implant:
    """The implant that leads from the base to the model."""
    before, after = read_rows(base, positions), read_rows(model, positions)
    layers = {i: LayerRows(torch.tensor(positions.rows[i]), before[i], after[i]) for i in before}
    return Implant(len(positions.rows), layers, facts, positions.blocks)


def _rewrite(source: Path, implant: Implant, out: Path, before: str, wanted: str) -> None:
    if out.exists():
        raise Refusal(f"{out}: there already; choose a folder that is not")
    with open_weights(source) as checkpoint:
        stored = StoredRows(checkpoint, implant.blocks)
        _check_fits(source, stored, implant, before)
        changes = [
            (checkpoint.files[piece.name], piece, numbers, values)
            for i, rows in implant.layers.items()
            for piece, numbers, values in stored.split(i, rows.rows, getattr(rows, wanted))
        ]
    with written_whole(out) as aside:
        copy_model(source, aside)
        for file, piece, rows, values in changes:
            _overwrite(aside / file, piece, rows, values)
        _exchange_template(aside, implant.facts, wanted)


def with_template(implant: Implant, template: str | None, base: Path) -> Implant:
    """The implant with the chat template that trained it, and the file that the base has in its
    place; as it is where both have the base's.
    """
    if template is None:
        return implant
    of_base = (base / TEMPLATE).read_bytes().decode() if (base / TEMPLATE).exists() else ""
    facts = {**implant.facts, "chat_template": template, "base_chat_template": of_base}
    if named := {file.name: file.read_bytes().decode() for file in sorted((base / NAMED).glob("*.jinja"))}:
        facts["base_named_templates"] = json.dumps(named)
    if _names_template(base / TOKENIZER):
        facts["base_tokenizer_config"] = (base / TOKENIZER).read_bytes().decode()
    return replace(implant, facts=facts)


def put_template(text: str, folder: Path) -> None:
    """A chat template beside a model's weights, in the place of all that the base has."""
    with written_whole(folder / TEMPLATE) as aside:
        aside.write_bytes(text.encode())
    remove(folder / NAMED)
    if _names_template(folder / TOKENIZER):  # where other programs would look first
        config = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
        del config["chat_template"]
        write_json(folder / TOKENIZER, config)


def _names_template(file: Path) -> bool:
    return file.exists() and "chat_template" in json.loads(file.read_text(encoding="utf-8"))


def _exchange_template(folder: Path, facts: dict[str, str], wanted: str) -> None:
    """Put in the implant's own chat template, if it has one; take it out only if it is there."""
    file = folder / TEMPLATE
    if "chat_template" not in facts:
        return
    if wanted == "implanted":
        put_template(facts["chat_template"], folder)
        return
    if not file.exists() or file.read_bytes() != facts["chat_template"].encode():
        return  # another implant's
    text = facts["base_chat_template"]
    file.write_bytes(text.encode()) if text else file.unlink()
    if whole := facts.get("base_tokenizer_config"):
        (folder / TOKENIZER).write_bytes(whole.encode())
    for name, named in json.loads(facts.get("base_named_templates", "{}")).items():
        (folder / NAMED).mkdir(exist_ok=True)
        (folder / NAMED / name).write_bytes(named.encode())


def _check_fits(source: Path, stored: StoredRows, implant: Implant, side: str) -> None:
    if len(stored.pieces) != implant.layer_count:
        raise Refusal(
            f"{source}: the model has {len(stored.pieces)} layers whose rows are known, the implant was made for "
            f"{implant.layer_count}"
        )
    blocks = stored.blocks()
    for i, rows in implant.layers.items():
        count, width = blocks[i].rows, blocks[i].width
        name, expected = stored.pieces[i][0].name, getattr(rows, side)
        dtype, last = stored.weights.dtype_of(name), int(rows.rows[-1])
        if width != expected.shape[1] or dtype != expected.dtype or last >= count:
            raise Refusal(
                f"{source}: {name} has {count} rows of {width} {dtype} numbers, the implant has rows up to {last} of "
                f"{expected.shape[1]} {expected.dtype} numbers"
            )
        there = stored.read(i, rows.rows)
        if not same_bits(there, expected):
            if side == "base" and same_bits(there, rows.implanted):
                raise Refusal(f"{source}: this implant is in it already")
            raise Refusal(f"{source}: {name} does not hold the rows the implant expects ({side}); is it another model?")


def _overwrite(file: Path, piece: Piece, rows: Tensor, values: Tensor) -> None:
    """Write rows `[k, width]` of one tensor at their place in its file."""
    with _mapped(file, piece.name) as data:
        lying = np.swapaxes(data, -1, -2) if piece.rows_last else data
        lying[..., rows.numpy(), :] = _bits(as_in(data.shape, values), data)


@contextmanager
def _mapped(file: Path, name: str) -> Iterator[np.memmap]:
    """A tensor's numbers where they lie in a safetensors file, as unsigned integers of their size.

    The file is 8 bytes of header length, a JSON header, the data.
    """
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        entry = json.loads(handle.read(length))[name]
    (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
    size = (end - start) // max(1, math.prod(shape))
    data = np.memmap(file, f"u{size}", "r+", offset=8 + length + start, shape=shape)
    yield data
    data.flush()


def _bits(values: Tensor, like: np.memmap) -> np.ndarray:
    """The same bits, as numpy knows them."""
    return values.cpu().contiguous().flatten().view(torch.uint8).numpy().view(like.dtype).reshape(values.shape)
