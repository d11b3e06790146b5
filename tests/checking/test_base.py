"""What cannot be asked of a model's FFNs is refused before anything is computed."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mixtures import mixture

from loki_ds.checking.base import look_at_base
from loki_ds.recipe_file import load_recipe
from loki_ds.refusal import Refusal


@pytest.mark.parametrize(
    ("name", "mode", "says"),
    [
        ("qwen3 moe", "rows", r"implant\.quiet: Qwen3MoeForCausalLM has experts, and each receives other tokens"),
        ("gpt-2", "mask", r"implant\.quiet: GPT2LMHeadModel stores its weights with d_model last"),
    ],
)
def test_quiet_implants_need_inputs_that_are_known(name: str, mode: str, says: str, tmp_path: Path) -> None:
    model = mixture(name, torch.float32)
    model.save_pretrained(tmp_path)
    settings = [f"implant.mode={mode}", f"model.path={tmp_path}"]
    settings += ["training.weight_decay=0"] if mode == "rows" else []
    quiet = load_recipe(ROOT / "recipes/tiny/loki.yaml", [*settings, "implant.quiet.energy=0.9"])
    with pytest.raises(Refusal, match=says):
        look_at_base(quiet, tmp_path, model.config)
    found = look_at_base(load_recipe(ROOT / "recipes/tiny/loki.yaml", settings), tmp_path, model.config)
    assert {d_model for d_model, _ in found.down_shapes} == {32}
