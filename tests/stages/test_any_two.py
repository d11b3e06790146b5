"""Retention from Python: of folders and of what is loaded, the same as on the command line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import loki_ds
from loki_ds.recipe.file import load_pair
from loki_ds.refusal import Refusal
from loki_ds.stages.two_checkpoints import retain_two

BASE = ROOT / "recipes/tiny/model"
ASKED = {"include_path": str(ROOT / "eval/tasks/tiny"), "batch_size": 64}


def test_a_loaded_adapter_is_judged_as_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(BASE)
    lora = LoraConfig(r=4, lora_alpha=400, target_modules=["down_proj"], init_lora_weights=False)
    adapted = get_peft_model(loaded, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    kept = loki_ds.retain(BASE, adapted, ["tiny_facts"], margin=0.02, out=tmp_path / "one", **ASKED)
    asked = [f"retention.{key}={value}" for key, value in ASKED.items()]
    pair = load_pair(str(BASE), [*asked, "retention.abilities={tasks: [tiny_facts]}", "retention.margin=0.02"])
    expected = retain_two(pair, str(tmp_path / "adapter"), tmp_path / "two")
    assert kept.report["tasks"] == expected["tasks"]
    assert (kept.outcome, kept.gate()) == ("lost", 2)
    assert list(kept.abilities["task"]) == ["tiny_facts"]
    assert kept.abilities["model"][0] == expected["tasks"][0]["implanted"]
    assert len(kept.new_task) == 0
    assert "<!doctype html>" in kept._repr_html_()
    assert "Lost: tiny_facts" in repr(kept)


def test_a_loaded_model_is_saved_with_its_tokenizer(tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(BASE)
    kept = loki_ds.retain(BASE, loaded, ["tiny_facts"], new_task="tiny_copying", out=tmp_path / "out", **ASKED)
    assert kept.report["tasks"][0]["change"] == 0
    assert list(kept.new_task["task"]) == ["tiny_copying"]
    assert json.loads((tmp_path / "out/report/report.json").read_text())["mode"] == "checkpoint"


def test_a_base_with_an_adapter_in_it_is_refused(tmp_path: Path) -> None:
    """PEFT puts its modules into the very model that it is given."""
    loaded = AutoModelForCausalLM.from_pretrained(BASE)
    get_peft_model(loaded, LoraConfig(r=4, target_modules=["down_proj"]))
    with pytest.raises(Refusal, match="has an adapter of PEFT put into it; give the base by its name or folder"):
        loki_ds.retain(loaded, BASE, ["tiny_facts"], out=tmp_path, **ASKED)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="int is no model; give a name, a folder, or a model"):
        loki_ds.retain(BASE, 3, out=tmp_path)
