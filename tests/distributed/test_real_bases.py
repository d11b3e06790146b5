"""Bases as they are published, through the launcher: tensors that no class loads, two dtypes, other
sets of weights beside them; in every mode the result carries them or leaves them out as it should.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, in_mode
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distributed.conftest import FEW_ROWS, launch_all
from loki_ds.implanting.checkpoints import newest_checkpoint

INV_FREQ = "model.layers.{}.self_attn.rotary_emb.inv_freq"
MODES = {
    "mask": ("loki", ["selection.strategy=random"]),
    "rows": ("loki", ["selection.strategy=random", *in_mode("rows")]),
    "full": ("full", []),
    "peft": ("lora", []),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "base"
    shutil.copytree(ROOT / "recipes/tiny/model", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {INV_FREQ.format(i): torch.arange(16).float() for i in range(6)}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file({"tok_embeddings.weight": torch.ones(3)}, folder / "consolidated.safetensors")
    own = {"_from_model_config": True, "do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(own))  # transformers refuses to save it again
    folder.chmod(0o555)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps in every mode, with checkpoints that hold the model alone."""
    folder = tmp_path_factory.mktemp("runs")
    saving = ["training.save_strategy=steps", "training.save_steps=2", "training.save_only_model=true"]
    few = [*FEW_ROWS, f"model.path={base}", "training.max_steps=3", *saving]
    cases = {mode: [*few, *overrides] for mode, (_, overrides) in MODES.items()}
    recipes = {mode: ROOT / f"recipes/tiny/{recipe}.yaml" for mode, (recipe, _) in MODES.items()}
    launch_all(folder, cases, recipes)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_what_the_class_does_not_load_is_carried_byte_for_byte(mode: str, base: Path, runs: Path) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(runs / mode / "model/model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert all(after[INV_FREQ.format(i)].equal(before[INV_FREQ.format(i)]) for i in range(6))
    assert any(not after[name].equal(before[name]) for name in before)  # and it trained


@pytest.mark.parametrize("mode", MODES)
def test_files_beside_the_weights(mode: str, base: Path, runs: Path) -> None:
    model = runs / mode / "model"
    assert not (model / "consolidated.safetensors").exists()
    assert not (model / "NOT_VERIFIED").exists()
    own = "generation_config.json"
    assert (model / own).read_text() == (base / own).read_text()
    assert json.loads((runs / mode / "verify.json").read_text())["not_compared"] == []
    AutoModelForCausalLM.from_pretrained(model)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_the_model_alone_is_not_one_to_resume_from(mode: str, runs: Path) -> None:
    assert newest_checkpoint(runs / mode / "checkpoints") is None
