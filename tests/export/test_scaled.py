"""Models, implants and adapters at a scale: the base at 0, the trained bits at 1, in between the
share that was asked, rounded once.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loki_ds.disk.files import weights_digest
from loki_ds.export.checkpoint import apply_to_checkpoint, read_rows, write_tensors
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.scaled import between, keep, scaled_adapter, scaled_implant, scaled_tensors
from loki_ds.selection.positions import Positions

BASE = ROOT / "recipes/tiny/model"
ROWS = Positions([[0, 5], [], [3], [127], [1], [64]])


@pytest.fixture
def trained() -> Implant:
    torch.manual_seed(0)
    layers = {
        i: LayerRows(torch.tensor(ROWS.rows[i]), rows, rows + 0.1 * torch.randn_like(rows))
        for i, rows in read_rows(BASE, ROWS).items()
    }
    return Implant(len(ROWS.rows), layers, {"base_model": "tiny"})


def test_at_0_it_is_the_base_byte_for_byte_at_1_what_was_trained(trained: Implant, tmp_path: Path) -> None:
    for name, implant in (
        ("none", scaled_implant(trained, 0)),
        ("all", scaled_implant(trained, 1)),
        ("trained", trained),
    ):
        apply_to_checkpoint(BASE, implant, tmp_path / name)
    assert weights_digest(tmp_path / "none") == weights_digest(BASE)
    assert weights_digest(tmp_path / "all") == weights_digest(tmp_path / "trained")


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_every_scale_is_a_file(scale: float, trained: Implant, tmp_path: Path) -> None:
    scaled = scaled_implant(trained, scale)
    scaled.save(tmp_path / "scaled.safetensors")
    for layer, rows in Implant.load(tmp_path / "scaled.safetensors").layers.items():
        assert rows.implanted.equal(scaled.layers[layer].implanted)


def test_each_layer_keeps_the_share(trained: Implant) -> None:
    scaled = scaled_implant(trained, 0.25)
    assert scaled.facts == {"base_model": "tiny", "scale": "0.25"}
    for layer, rows in scaled.layers.items():
        whole = trained.layers[layer]
        expected = whole.base.double() + 0.25 * (whole.implanted.double() - whole.base.double())
        assert torch.allclose(rows.implanted.double(), expected, rtol=1e-7)
        assert rows.base.equal(whole.base)


def test_it_is_rounded_once() -> None:
    base, new = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([1.0078125, 258.0]).bfloat16()
    assert between(base, new, 0.75).tolist() == [1.0078125, 258.0]  # 1.00586 and 257.5, to bfloat16's nearest


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    before = load_file(BASE / "model.safetensors")
    name = "model.layers.2.self_attn.q_proj.weight"
    new = before[name] + 1
    write_tensors(BASE, [(name, new)], tmp_path / "trained")
    write_tensors(BASE, scaled_tensors(BASE, tmp_path / "trained", 0.5), tmp_path / "half")
    half = load_file(tmp_path / "half/model.safetensors")
    assert half[name].equal(between(before[name], new, 0.5))
    assert all(half[other].equal(value) for other, value in before.items() if other != name)


def test_an_adapters_product_is_scaled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), LoraConfig(r=4, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "trained")
    scaled_adapter(tmp_path / "trained", 0.25, tmp_path / "scaled")
    base, whole, part = load_file(BASE / "model.safetensors"), merged(tmp_path / "trained"), merged(tmp_path / "scaled")
    for layer in range(6):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.allclose(part[name] - base[name], 0.25 * (whole[name] - base[name]), atol=1e-5)


def merged(adapter: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def test_what_was_trained_is_kept_once(tmp_path: Path) -> None:
    (tmp_path / "implant").write_text("trained")
    keep(tmp_path / "implant", tmp_path / "kept")
    (tmp_path / "implant").write_text("scaled")
    keep(tmp_path / "implant", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "trained"
    keep(tmp_path / "missing", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
