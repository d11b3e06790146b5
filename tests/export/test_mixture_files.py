"""An implant in a mixture's files, one tensor for all experts or one for each: put in, taken out,
verified, and as an adapter that stock PEFT loads.
"""

import shutil
from pathlib import Path

import pytest
import torch
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
from loki_ds.model.files import open_weights
from loki_ds.model.row_blocks import blocks_of, row_blocks
from loki_ds.model.stored_rows import StoredRows
from loki_ds.recipe.sections import ModelSection
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions

POSITIONS = Positions([[1, 5], [], [0], [31]])
IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(params=[*MIXTURES, *OTHERS, "fused qwen3 moe"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model as transformers writes it, which is as it is published; and one whose experts are
    one tensor, as newer ones are.
    """
    fused = request.param.endswith("fused qwen3 moe")
    model = mixture("qwen3 moe" if fused else request.param, torch.float32, scale=1)
    model.save_pretrained(tmp_path / "base", save_original_format=not fused)
    return tmp_path / "base"


def implant_on(base: Path) -> Implant:
    torch.manual_seed(1)
    layers = {
        i: LayerRows(torch.tensor(POSITIONS.rows[i]), rows, rows + torch.randn_like(rows) / 8)
        for i, rows in read_rows(base, POSITIONS).items()
    }
    return Implant(4, layers, {})


def test_the_files_hold_the_rows_of_the_class(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with open_weights(base) as weights:
        assert StoredRows(weights).blocks() == blocks_of(row_blocks(model))


def test_it_goes_in_and_out_and_nothing_else_changes(base: Path, tmp_path: Path) -> None:
    implant = implant_on(base)
    apply_to_checkpoint(base, implant, tmp_path / "model")
    found = verify(base, tmp_path / "model", POSITIONS)
    assert (found.identical_outside_rows, found.rows_changed) == (True, 4)
    assert [change > 0 for change in found.change_by_layer] == [True, False, True, True]
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = model(IDS).logits
        implant.save(tmp_path / "implant.safetensors")
        apply_implant(model, tmp_path / "implant.safetensors")
        assert torch.equal(model(IDS).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits)
        assert not torch.equal(model(IDS).logits, before)
        revert_implant(model, tmp_path / "implant.safetensors")
        assert torch.equal(model(IDS).logits, before)
    revert_in_checkpoint(tmp_path / "model", implant, tmp_path / "reverted")
    assert verify(base, tmp_path / "reverted", None).changed_outside == []


def test_stock_peft_computes_what_the_model_does(base: Path, tmp_path: Path) -> None:
    implant, folder = implant_on(base), RunFolder(tmp_path / "run")
    apply_to_checkpoint(base, implant, tmp_path / "model")
    section = ModelSection(path=str(base), dtype="float32")
    save_implant(implant, None, Base(base, "", section), folder)
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(plain, str(folder.adapter))
    implanted = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = implanted(IDS).logits
        assert torch.allclose(adapted(IDS).logits, expected, atol=1e-5)
        assert torch.allclose(adapted.merge_and_unload()(IDS).logits, expected, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_change_in_one_expert_outside_the_rows_is_seen(fused: bool, tmp_path: Path) -> None:
    mixture("qwen3 moe", torch.float32).save_pretrained(tmp_path / "base", save_original_format=not fused)
    shutil.copytree(tmp_path / "base", tmp_path / "model")
    tensors = load_file(tmp_path / "base/model.safetensors")
    if fused:
        name = "model.layers.2.mlp.experts.down_proj"
        tensors[name][3, 7, 2] += 1
    else:
        name = "model.layers.2.mlp.experts.3.down_proj.weight"
        tensors[name][7, 2] += 1
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    found = verify(tmp_path / "base", tmp_path / "model", POSITIONS)
    assert (found.changed_outside, found.rows_changed) == ([name], 0)


def test_experts_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    mixture("qwen3 moe", torch.float32).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.1.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(Refusal, match=r"experts.0.down_proj.* and .*experts.3.down_proj.* are not one layer's experts"):
        read_rows(tmp_path, POSITIONS)
