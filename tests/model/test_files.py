"""Which tensor is whose `W_down`: names as they are published, of one stack of layers or of two."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki_ds.export.checkpoint import apply_to_checkpoint, copy_model, implant_between
from loki_ds.export.verification import verify
from loki_ds.model.files import INDEX, open_weights
from loki_ds.model.stored_rows import StoredRows
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

OWN = "model.layers.{}.mlp.down_proj.weight"
# What predicts further tokens has a layer of the same shape: Qwen3.5's in a stack of its own,
# DeepSeek's behind the last one.
FURTHER = ["mtp.layers.0.mlp.down_proj.weight", OWN.format(4)]
NAMES = """
from pathlib import Path
from loki_ds.model.files import open_weights
from loki_ds.model.stored_rows import StoredRows
with open_weights(Path({!r})) as weights:
    print({{i: pieces[0].name for i, pieces in StoredRows(weights).pieces.items()}})
"""


def with_tensors(folder: Path, *names: str) -> Path:
    """A small model whose files hold further `W_down`s."""
    build("qwen2", torch.float32).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[OWN.format(0)] + 1 for name in names}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_single_file_is_the_model_where_an_index_is_left_over(tmp_path: Path) -> None:
    """As transformers reads it; a result leaves without the index."""
    model = build("qwen2", torch.float32)
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    with torch.no_grad():
        model.model.norm.weight.fill_(2.0)
    model.save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole/model.safetensors", tmp_path / "m")
    assert (tmp_path / "m" / INDEX).exists()
    with open_weights(tmp_path / "m") as weights:
        assert weights.read("model.norm.weight").equal(
            AutoModelForCausalLM.from_pretrained(tmp_path / "m").model.norm.weight
        )
    copy_model(tmp_path / "m", tmp_path / "copy")
    assert sorted(file.name for file in (tmp_path / "copy").glob("*safetensors*")) == ["model.safetensors"]


@pytest.mark.parametrize("further", FURTHER)
def test_rows_go_into_the_models_own_layer(further: str, tmp_path: Path) -> None:
    base, positions = with_tensors(tmp_path / "base", further), Positions([[1], [], [], []])
    shutil.copytree(base, tmp_path / "trained")
    tensors = load_file(base / "model.safetensors")
    tensors[OWN.format(0)][1] += 1
    save_file(tensors, tmp_path / "trained/model.safetensors", {"format": "pt"})
    apply_to_checkpoint(base, implant_between(base, tmp_path / "trained", positions, {}), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found[OWN.format(0)].equal(tensors[OWN.format(0)])
    assert found[further].equal(load_file(base / "model.safetensors")[further])
    assert verify(base, tmp_path / "out", positions).identical_outside_rows


def test_a_change_in_another_stack_is_a_change_outside(tmp_path: Path) -> None:
    base = with_tensors(tmp_path / "base", FURTHER[0])
    shutil.copytree(base, tmp_path / "model")
    tensors = load_file(base / "model.safetensors")
    tensors[FURTHER[0]][1] += 1
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    found = verify(base, tmp_path / "model", Positions([[1], [], [], []]))
    assert (found.rows_changed, found.changed_outside) == (0, [FURTHER[0]])


def test_the_names_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path / "base", FURTHER[0])
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", NAMES.format(str(folder))],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    assert {one.communicate()[0].strip() for one in asked} == {str({i: OWN.format(i) for i in range(4)})}


def test_names_of_a_wrapper_are_found_by_its_text_part(tmp_path: Path) -> None:
    """As Gemma 3 and Mistral 3 store them."""
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 1}}')
    names = [
        "language_model.model.layers.0.mlp.down_proj.weight",
        "vision_tower.layers.0.mlp.fc2.weight",
        "visual.blocks.0.mlp.down_proj.weight",
    ]
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights:
        assert {i: [piece.name for piece in own] for i, own in StoredRows(weights).pieces.items()} == {0: names[:1]}


def test_two_whole_stacks_are_refused(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path / "base", *(f"draft.layers.{i}.mlp.down_proj.weight" for i in range(4)))
    with (
        open_weights(folder) as weights,
        pytest.raises(Refusal, match=r"draft.layers.0.* and model.layers.0.* could both be layer 0's W_down"),
    ):
        StoredRows(weights)
