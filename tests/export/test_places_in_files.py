"""An implant of rows of any linear layer in a checkpoint's files and in a loaded model: in, out
again bit for bit, proven, and exact as a stock PEFT adapter.
"""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, HYBRIDS, build
from mixtures import MIXTURES, OTHERS, mixture
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loki_ds import apply_implant, revert_implant
from loki_ds.disk.run_folder import RunFolder
from loki_ds.export.checkpoint import apply_to_checkpoint, read_rows, revert_in_checkpoint
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.products import save_implant
from loki_ds.export.verification import verify
from loki_ds.model.base import Base
from loki_ds.model.row_blocks import blocks_of, row_blocks
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import select_random

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(params=[*MIXTURES, *OTHERS, *HYBRIDS, "fused qwen3 moe", "llama", "phi3", "gemma3"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as transformers writes it, which is as it is published, or with fused experts."""
    for name, hybrid in HYBRIDS.items():
        monkeypatch.setitem(FAMILIES, name, hybrid)
    name, fused = request.param.removeprefix("fused "), request.param.startswith("fused")
    model = build(name, torch.float32) if name in FAMILIES else mixture(name, torch.float32, scale=1)
    model.save_pretrained(tmp_path / "base", save_original_format=not fused)
    return tmp_path / "base"


def implant_on(base: Path, where: str) -> Implant:
    blocks = blocks_of(row_blocks(AutoModelForCausalLM.from_pretrained(base), where))
    positions = select_random(blocks, 20, seed=0)
    torch.manual_seed(1)
    layers = {
        i: LayerRows(torch.tensor(positions.rows[i]), rows, rows + torch.randn_like(rows) / 8)
        for i, rows in read_rows(base, positions).items()
    }
    return Implant(len(positions.rows), layers, {}, positions.blocks)


def test_it_goes_in_and_out_and_peft_computes_the_same(base: Path, tmp_path: Path) -> None:
    made = implant_on(base, "all")
    made.save(tmp_path / "implant.safetensors")
    implant = Implant.load(tmp_path / "implant.safetensors")
    assert implant.positions == made.positions
    apply_to_checkpoint(base, implant, tmp_path / "model")
    verification = verify(base, tmp_path / "model", implant.positions)
    assert (verification.identical_outside_rows, verification.rows_changed) == (True, implant.positions.count)
    model = AutoModelForCausalLM.from_pretrained(base)
    section = ModelSection(path=str(base), dtype="float32")
    save_implant(implant, None, Base(base, "", section), RunFolder(tmp_path / "run"))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "run/adapter"))
    with torch.no_grad():
        before = model(IDS).logits
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits
        close = {"rtol": 1e-5, "atol": 1e-5 * expected.abs().max().item()}
        assert torch.allclose(adapted(IDS).logits, expected, **close)
        assert torch.allclose(adapted.merge_and_unload()(IDS).logits, expected, **close)
        apply_implant(model, tmp_path / "implant.safetensors")
        assert torch.equal(model(IDS).logits, expected)
        revert_implant(model, tmp_path / "implant.safetensors")
        assert torch.equal(model(IDS).logits, before)
    revert_in_checkpoint(tmp_path / "model", implant, tmp_path / "reverted")
    assert verify(base, tmp_path / "reverted", None).changed_outside == []


@pytest.mark.parametrize("where", ["down", "attention"])
def test_a_change_in_another_place_is_a_change_outside(where: str, tmp_path: Path) -> None:
    build("llama", torch.float32).save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "model")
    tensors = load_file(tmp_path / "base/model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][7, 2] += 1
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    positions = implant_on(tmp_path / "base", where).positions
    assert verify(tmp_path / "base", tmp_path / "model", positions).changed_outside == [
        "model.layers.2.mlp.up_proj.weight"
    ]
    holding = Positions([[7]], ("2.mlp.up_proj",))
    assert verify(tmp_path / "base", tmp_path / "model", holding).identical_outside_rows


def test_another_models_files_are_refused(tmp_path: Path) -> None:
    build("llama", torch.float32).save_pretrained(tmp_path / "base")
    with pytest.raises(Refusal, match=r"no tensor there is known to hold the rows '2.mlp.gate_up_proj'"):
        read_rows(tmp_path / "base", Positions([[1]], ("2.mlp.gate_up_proj",)))
