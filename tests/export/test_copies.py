"""A result is a copy of the base's own files with other values in some tensors: whatever the
model's class does not load is carried along, and no other set of weights is.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from loki_ds.export.checkpoint import write_tensors
from loki_ds.export.verification import verify
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

MODEL = ROOT / "recipes/tiny/model"
NORM = "model.norm.weight"
HEAD = "model.mtp.0.weight"  # a prediction head, which the class of a causal model does not load
OF_OTHERS = ("params.json", "consolidated.safetensors.index.json", "pytorch_model.bin.index.json")
OTHERS = ("consolidated.safetensors", "pytorch_model.bin", "model.gguf", "tf_model.h5", "flax_model.msgpack")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The tiny model as models are published: with tensors that nobody loads, two dtypes, other
    sets of weights, a generation configuration that transformers does not save again, read-only.
    """
    folder = tmp_path / "base"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {HEAD: torch.randn(3, 5), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(16).float()}
    tensors[NORM] = tensors[NORM].bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9, "eos_token_id": 1}')
    for name in OTHERS:
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "LICENSE").write_text("Apache 2.0")
    (folder / "words.json").write_text("{}")  # of a tokenizer in code
    for name in OF_OTHERS:
        (folder / name).write_text("{}")
    (folder / ".cache").mkdir()
    for file in [*folder.iterdir(), folder]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    return folder


def test_tensors_are_written_in_and_the_rest_is_the_bases(base: Path, tmp_path: Path) -> None:
    new = {NORM: torch.full((128,), 0.5), "model.layers.1.mlp.down_proj.weight": torch.randn(128, 384)}
    write_tensors(base, new.items(), tmp_path / "out")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        assert tensor.equal(new[name].to(tensor.dtype) if name in new else before[name]), name
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files.isdisjoint([*OTHERS, *OF_OTHERS, ".cache", "README.md"])
    assert {"generation_config.json", "LICENSE", "words.json", "tokenizer.json", "config.json"} <= files
    assert (tmp_path / "out/generation_config.json").read_text() == (base / "generation_config.json").read_text()
    assert not verify(base, tmp_path / "out", None).not_compared


def read_only_files(folder: Path) -> Path:
    for file in folder.iterdir():
        file.chmod(0o444)
    return folder


def a_shared_store(folder: Path) -> Path:
    for file in folder.iterdir():
        file.chmod(0o440)
    folder.chmod(0o550)
    return folder


def a_hub_cache(folder: Path) -> Path:
    """As `huggingface_hub` keeps a model: a snapshot of links to read-only blobs."""
    snapshot, blobs = folder.parent / "models--a--b/snapshots/1f2e", folder.parent / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for place, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, blobs / f"{place:040x}")
        (blobs / f"{place:040x}").chmod(0o400)
        (snapshot / file.name).symlink_to(Path("../../blobs", f"{place:040x}"))
    return snapshot


@pytest.mark.parametrize("kept", [read_only_files, a_shared_store, a_hub_cache])
def test_the_copy_of_a_read_only_base_is_its_owners_to_write(kept: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = kept(Path(shutil.copytree(MODEL, tmp_path / "base")))
    write_tensors(folder, {NORM: torch.full((128,), 0.5)}.items(), tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors")[NORM].unique().item() == 0.5
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in folder.iterdir()}
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode & 0o200
        assert not file.is_symlink()
    assert load_file(folder / "model.safetensors")[NORM].equal(load_file(MODEL / "model.safetensors")[NORM])


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"model.layers.9.mlp.down_proj.weight": torch.ones(128, 384)},
            "layers.9.* of the trained model is not stored",
        ),
        ({NORM: torch.ones(64)}, r"tensor model.norm.weight is \[64\], in the base it is \[128\]"),
    ],
)
def test_what_the_base_does_not_store_is_refused(
    tensors: dict[str, torch.Tensor], says: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=says):
        write_tensors(base, tensors.items(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_the_shards_that_the_index_names_are_the_model(tmp_path: Path) -> None:
    """Mistral's repositories: `consolidated.safetensors` beside the shards, under other names."""
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, base / file, {"format": "pt"})
    save_file({"layers.0.feed_forward.w2.weight": torch.ones(2)}, base / "consolidated.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    write_tensors(base, {NORM: torch.zeros(128)}.items(), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").glob("*.safetensors")) == sorted(set(where.values()))
    assert verify(base, tmp_path / "out", None).changed_outside == [NORM]


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_were_not_compared_are_named(name: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(b"anything")
    assert verify(MODEL, tmp_path / "model", None).not_compared == [name]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0]], "the positions have 1 layers, the model has 6"),
        ([[128], [], [], [], [], []], "row 128"),
        ([[]] * 7, "the positions have 7 layers, the model has 6"),
    ],
)
def test_positions_of_another_model_are_refused(rows: list[list[int]], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        verify(MODEL, MODEL, Positions(rows))
