"""Implants go into a base and come out of it again bit for bit, on the disk and in memory; anything
else is refused by name.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki_ds import Positions, apply_implant, revert_implant
from loki_ds.disk.files import digest_of
from loki_ds.export.checkpoint import (
    TEMPLATE,
    apply_to_checkpoint,
    implant_between,
    revert_in_checkpoint,
    with_template,
)
from loki_ds.export.implant_file import FORMAT, Implant, LayerRows
from loki_ds.export.verification import verify
from loki_ds.refusal import Refusal

POSITIONS = Positions([[1, 5], [], [0], [31]])
OTHERS = Positions([[2], [7, 8], [1], []])
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(params=["float32", "bfloat16"])
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    build("llama", getattr(torch, request.param)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def implanted(base: Path, positions: Positions, name: str = "model") -> Path:
    """A copy of the base with other values in the selected rows."""
    folder = base.with_name(name)
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(len(name))
    for layer, rows in enumerate(positions.rows):
        weight = tensors[DOWN.format(layer)]
        weight[rows] += torch.randn(len(rows), weight.shape[1], generator=generator).to(weight.dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def weights_of(folder: Path) -> str:
    return digest_of(*sorted(folder.glob("*.safetensors")))


def test_apply_gives_the_model_and_revert_the_base_back(base: Path, tmp_path: Path) -> None:
    model = implanted(base, POSITIONS)
    implant_between(base, model, POSITIONS, {"base_model": "b"}).save(tmp_path / "i.safetensors")
    implant = Implant.load(tmp_path / "i.safetensors")
    assert implant.positions == POSITIONS
    assert implant.facts == {"base_model": "b"}
    apply_to_checkpoint(base, implant, tmp_path / "applied")
    assert load_file(tmp_path / "applied/model.safetensors")[DOWN.format(0)].equal(
        load_file(model / "model.safetensors")[DOWN.format(0)]
    )
    assert verify(model, tmp_path / "applied", Positions([[], [], [], []])).identical_outside_rows
    revert_in_checkpoint(tmp_path / "applied", implant, tmp_path / "reverted")
    assert weights_of(tmp_path / "reverted") == weights_of(base)
    AutoModelForCausalLM.from_pretrained(tmp_path / "applied")


@pytest.mark.parametrize("inside", [None, "{{ old }}", [{"name": "tool_use", "template": "{{ old }}"}]])
@pytest.mark.parametrize("own", ["{{ bos }}\r\n", None])
def test_the_template_that_trained_goes_in_and_out_with_the_rows(own: str | None, inside: Any, tmp_path: Path) -> None:
    """inside: what tokenizer_config.json holds, which converters to GGUF read first."""
    build("llama", torch.float32).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    if own:
        (base / TEMPLATE).write_bytes(own.encode())
    config = {"chat_template": inside} if inside else {}
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 8}))
    implant = implant_between(base, implanted(base, POSITIONS), POSITIONS, {})
    with_template(implant, "{{ messages }}\n", base).save(tmp_path / "i.safetensors")
    apply_to_checkpoint(base, Implant.load(tmp_path / "i.safetensors"), tmp_path / "applied")
    assert (tmp_path / "applied" / TEMPLATE).read_bytes() == b"{{ messages }}\n"
    assert json.loads((tmp_path / "applied/tokenizer_config.json").read_text()) == {"model_max_length": 8}
    revert_in_checkpoint(tmp_path / "applied", Implant.load(tmp_path / "i.safetensors"), tmp_path / "reverted")
    assert digest_of(tmp_path / "reverted") == digest_of(base)


def test_sharded_checkpoints(tmp_path: Path) -> None:
    build("llama", torch.float32).save_pretrained(tmp_path / "whole")
    build("llama", torch.float32).save_pretrained(tmp_path / "base", max_shard_size="20KB")
    implant = implant_between(tmp_path / "base", implanted(tmp_path / "whole", POSITIONS), POSITIONS, {})
    apply_to_checkpoint(tmp_path / "base", implant, tmp_path / "applied")
    assert verify(tmp_path / "base", tmp_path / "applied", POSITIONS).rows_changed == 4
    revert_in_checkpoint(tmp_path / "applied", implant, tmp_path / "reverted")
    assert weights_of(tmp_path / "reverted") == weights_of(tmp_path / "base")


def test_two_implants_on_other_rows_come_and_go_in_any_order(base: Path, tmp_path: Path) -> None:
    one = implant_between(base, implanted(base, POSITIONS, "one"), POSITIONS, {})
    two = implant_between(base, implanted(base, OTHERS, "two"), OTHERS, {})
    apply_to_checkpoint(base, one, tmp_path / "a")
    apply_to_checkpoint(tmp_path / "a", two, tmp_path / "ab")
    apply_to_checkpoint(base, two, tmp_path / "b")
    apply_to_checkpoint(tmp_path / "b", one, tmp_path / "ba")
    assert weights_of(tmp_path / "ab") == weights_of(tmp_path / "ba")
    revert_in_checkpoint(tmp_path / "ab", one, tmp_path / "only two")
    assert weights_of(tmp_path / "only two") == weights_of(tmp_path / "b")


def test_in_memory(base: Path, tmp_path: Path) -> None:
    model = implanted(base, POSITIONS)
    implant_between(base, model, POSITIONS, {}).save(tmp_path / "i.safetensors")
    loaded, expected = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (base, model))
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    apply_implant(loaded, tmp_path / "i.safetensors")
    assert all(value.equal(loaded.state_dict()[name]) for name, value in expected.state_dict().items())
    with pytest.raises(Refusal, match="layer 0 of the model does not hold the rows the implant expects"):
        apply_implant(loaded, tmp_path / "i.safetensors")
    revert_implant(loaded, tmp_path / "i.safetensors")
    assert all(value.equal(loaded.state_dict()[name]) for name, value in before.items())


def test_another_base_is_refused_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    implant = implant_between(base, implanted(base, POSITIONS), POSITIONS, {})
    other = implanted(base, Positions([[1], [], [], []]), "other")
    with pytest.raises(Refusal, match=r"layers\.0\.mlp\.down_proj\.weight does not hold the rows the implant expects"):
        apply_to_checkpoint(other, implant, tmp_path / "out")
    build("llama", torch.float32, num_hidden_layers=2).save_pretrained(tmp_path / "short")
    with pytest.raises(Refusal, match=r"has 2 layers whose rows are known, the implant was made for 4"):
        apply_to_checkpoint(tmp_path / "short", implant, tmp_path / "out")
    build("llama", torch.float16).save_pretrained(tmp_path / "half")
    with pytest.raises(Refusal, match=r"32 rows of 48 torch\.float16 numbers"):
        apply_to_checkpoint(tmp_path / "half", implant, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refusal, match="there already"):
        apply_to_checkpoint(base, implant, base)


ROWS, VALUES = torch.tensor([0, 2]), torch.zeros(2, 3)
DESCRIBED = {FORMAT: '{"layers": 2, "facts": {}}'}
WHOLE = {"layers.0.rows": ROWS, "layers.0.base": VALUES, "layers.0.implanted": VALUES + 1}
EDITS: dict[str, tuple[Callable[[dict], dict], dict, str]] = {
    "no implant": (lambda t: t, {}, "not an implant file"),
    "no layer count": (lambda t: t, {FORMAT: "{}"}, "does not hold a number of layers"),
    "layers beyond belief": (
        lambda t: t,
        {FORMAT: '{"layers": 99999999999, "facts": {}}'},
        "does not hold a number of layers",
    ),
    "a tensor missing": (
        lambda t: {k: v for k, v in t.items() if "base" not in k},
        None,
        "layer 0 needs rows, base and implanted",
    ),
    "a layer too many": (
        lambda t: {**t, "layers.7.rows": ROWS.clone()},
        None,
        "holds layers.7.rows, which no layer of 2 has",
    ),
    "negative rows": (lambda t: {**t, "layers.0.rows": torch.tensor([-1, 2])}, None, "different row numbers from 0"),
    "rows twice": (lambda t: {**t, "layers.0.rows": torch.tensor([2, 2])}, None, "different row numbers from 0"),
    "rows of another type": (lambda t: {**t, "layers.0.rows": ROWS.float()}, None, "different row numbers from 0"),
    "fewer values": (lambda t: {**t, "layers.0.base": VALUES[:1]}, None, r"layer 0 has 2 rows, base \[1, 3\]"),
    "another dtype": (lambda t: {**t, "layers.0.base": VALUES.half()}, None, "layer 0 has 2 rows"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_other_files_are_refused(edit: str, tmp_path: Path) -> None:
    change, metadata, says = EDITS[edit]
    save_file(change(WHOLE), tmp_path / "i", DESCRIBED if metadata is None else metadata or None)
    with pytest.raises(Refusal, match=says):
        Implant.load(tmp_path / "i")


def test_missing_and_cut_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be read"):
        Implant.load(tmp_path / "nowhere")
    save_file(WHOLE, tmp_path / "i", DESCRIBED)
    (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:-5])
    with pytest.raises(Refusal, match="not a whole safetensors file"):
        Implant.load(tmp_path / "i")


@given(
    st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 30), min_size=1, max_size=5), max_size=4),
    st.integers(1, 4),
)
def test_files_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, layers: dict[int, set[int]], d_ff: int
) -> None:
    path = tmp_path_factory.mktemp("implants") / "i"
    made = {
        i: LayerRows(torch.tensor(sorted(rows)), torch.randn(len(rows), d_ff), torch.randn(len(rows), d_ff))
        for i, rows in layers.items()
    }
    Implant(4, made, {"x": "y"}).save(path)
    loaded = Implant.load(path)
    assert loaded.facts == {"x": "y"}
    assert loaded.positions.rows == [sorted(layers.get(i, ())) for i in range(4)]
    assert all(torch.equal(loaded.layers[i].implanted, found.implanted) for i, found in made.items())
