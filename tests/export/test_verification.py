"""The byte check sees every change outside the rows and forgives none, sharded or not, tied
or not.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build
from safetensors.torch import load_file, save_file

from loki_ds.export.verification import verify
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build("llama", torch.float32, tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def changed(base: Path, changes: dict[str, tuple[int, int]]) -> Path:
    """A copy of the base with one element of each named tensor moved."""
    model = base.with_name("model")
    shutil.copytree(base, model)
    tensors = load_file(model / "model.safetensors")
    for name, where in changes.items():
        tensors[name][where] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def test_changes_in_selected_rows_are_counted(base: Path) -> None:
    found = verify(base, changed(base, {DOWN.format(0): (5, 3), DOWN.format(3): (31, 0)}), POSITIONS)
    assert found.identical_outside_rows
    assert (found.rows_changed, found.rows_selected) == (2, 4)
    tensors = load_file(base / "model.safetensors")
    assert found.tensors == len(tensors)
    assert found.bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_the_size_of_the_change(base: Path) -> None:
    """Two elements moved by 1 each."""
    found = verify(base, changed(base, {DOWN.format(0): (5, 3), "lm_head.weight": (0, 0)}), POSITIONS)
    tensors = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    whole = sum(float(tensor.square().sum()) for tensor in tensors.values())
    assert found.change == pytest.approx((2 / whole) ** 0.5)
    first = 1 / float(tensors[DOWN.format(0)].norm())
    assert found.change_by_layer == pytest.approx([first, 0, 0, 0])


@pytest.mark.parametrize(
    "name", [DOWN.format(0), DOWN.format(1), "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
)
def test_a_change_elsewhere_is_found(base: Path, name: str) -> None:
    assert verify(base, changed(base, {name: (2, 2)}), POSITIONS).changed_outside == [name]


def test_the_sign_of_zero_is_a_change(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = 0.0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    model = changed(base, {})
    tensors["model.norm.weight"][0] = -0.0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert verify(base, model, POSITIONS).changed_outside == ["model.norm.weight"]


def test_sharded_against_whole(base: Path, tmp_path: Path) -> None:
    model = build("llama", torch.float32, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert verify(base, tmp_path / "sharded", POSITIONS).identical_outside_rows


def test_a_tied_head_that_only_one_side_stored(tmp_path: Path) -> None:
    build("qwen2", torch.float32, tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    model = changed(tmp_path / "base", {})
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert verify(tmp_path / "base", model, POSITIONS).identical_outside_rows
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert verify(tmp_path / "base", model, POSITIONS).changed_outside == ["lm_head.weight"]


def test_a_missing_tensor_is_refused(base: Path) -> None:
    model = changed(base, {})
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"tensor model\.norm\.weight of .*base is missing"):
        verify(base, model, POSITIONS)


def test_another_dtype_is_refused(base: Path) -> None:
    model = changed(base, {})
    tensors = {name: tensor.half() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"torch\.float16 .* in the base it is torch\.float32"):
        verify(base, model, POSITIONS)


def test_a_missing_or_broken_shard_is_refused(base: Path) -> None:
    model = changed(base, {})
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(Refusal, match="not a whole safetensors checkpoint"):
        verify(base, model, POSITIONS)
    (model / "model.safetensors").unlink()
    with pytest.raises(Refusal, match=r"the file model\.safetensors is missing"):
        verify(base, model, POSITIONS)


def test_json_says_what_was_compared(base: Path) -> None:
    found = verify(base, changed(base, {"model.norm.weight": (0, ...)}), POSITIONS).as_json()  # type: ignore[dict-item]
    assert json.loads(json.dumps(found))["identical_outside_rows"] is False
