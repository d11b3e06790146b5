"""The adapter is stock PEFT: it loads, computes and merges like the implanted model, whatever rows
the layers have.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import build, down_weights
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from loki_ds.export.adapter import Adapted, from_low_rank, from_rows, save_adapter

NAME = "model.layers.{}.mlp.down_proj"
ROWS = {0: torch.tensor([1, 5, 9]), 2: torch.tensor([31])}  # layers of unequal rank, and layers with none
SPREAD = {
    "unequal": ROWS,
    "one layer": {3: torch.tensor([0, 2])},
    "all alike": {layer: torch.tensor([4, 7]) for layer in range(4)},
    "whole layers": {layer: torch.arange(32) for layer in (0, 1)},
}
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def deltas(d_ff: int, chosen: dict[int, Tensor] = ROWS) -> dict[int, Tensor]:
    torch.manual_seed(1)
    return {layer: torch.randn(len(rows), d_ff) for layer, rows in chosen.items()}


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_row_deltas_load_and_merge(family: str, spread: str, tmp_path: Path) -> None:
    rows, base, changed = SPREAD[spread], build(family, torch.float32), build(family, torch.float32)
    d_model, d_ff = down_weights(base)[0].shape
    with torch.no_grad():
        for layer, delta in deltas(d_ff, rows).items():
            down_weights(changed)[layer][rows[layer]] += delta
    save_adapter(
        {Adapted(NAME.format(i)): from_rows(rows[i], d, d_model) for i, d in deltas(d_ff, rows).items()},
        "base",
        tmp_path / "adapter",
    )
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.allclose(adapted(IDS).logits, changed(IDS).logits, atol=1e-5)
    merged = adapted.merge_and_unload()
    assert all(torch.equal(one, other) for one, other in zip(down_weights(merged), down_weights(changed), strict=True))


def test_low_rank_factors_stay_low_rank(tmp_path: Path) -> None:
    base, changed = build("llama", torch.float32), build("llama", torch.float32)
    d_model, d_ff = down_weights(base)[0].shape
    torch.manual_seed(2)
    a, b = torch.randn(3, 2), torch.randn(2, d_ff)
    with torch.no_grad():
        down_weights(changed)[0][ROWS[0]] += a @ b
    factors = from_low_rank(ROWS[0], a, b, d_model)
    assert factors.lora_a.shape == (2, d_ff)
    save_adapter({Adapted(NAME.format(0)): factors}, "base", tmp_path / "adapter")
    merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    assert torch.allclose(down_weights(merged)[0], down_weights(changed)[0], atol=1e-5)


def test_any_engine_reads_it(tmp_path: Path) -> None:
    """By `r` and `lora_alpha` alone: the layers' own scaling is that of the whole, and what is not
    said is PEFT's default.
    """
    factors = {Adapted(NAME.format(i)): from_rows(ROWS[i], d, 32) for i, d in deltas(48).items()}
    save_adapter(factors, "base", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert config.keys().isdisjoint({"rank_pattern", "alpha_pattern", "loftq_config", "use_dora"})
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for layer, delta in deltas(48).items():
        name = f"base_model.model.{NAME.format(layer)}"
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (a.shape, b.shape) == ((3, 48), (32, 3))
        expected = torch.zeros(32, 48)
        expected[ROWS[layer]] = delta
        assert (b @ a).equal(expected)


def test_the_adapter_names_the_revision_of_its_base(tmp_path: Path) -> None:
    base = build("qwen2", torch.float32)
    d_model, d_ff = down_weights(base)[0].shape
    factors = {Adapted(NAME.format(0)): from_rows(ROWS[0], deltas(d_ff)[0], d_model)}
    save_adapter(factors, "some-org/base", tmp_path / "pinned", revision="v1")
    save_adapter(factors, "some-org/base", tmp_path / "newest")
    said = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("pinned", "newest")]
    assert [config.get("revision") for config in said] == ["v1", None]
