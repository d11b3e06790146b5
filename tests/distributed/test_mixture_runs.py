"""Mixtures of experts on two ranks whose tokens go to different experts: modes x ZeRO stages keep
every other byte, agree with one another, and leave an adapter that is the model.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, in_mode
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distributed.conftest import FEW_ROWS, asked_for, distance, launch_all, write_configurations

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MANY = {"moe_intermediate_size": 16, "num_experts": 16, "num_experts_per_tok": 1}  # more than a rank's tokens come to
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
BASES = {
    "experts per file": ("Qwen3MoeConfig", {**MANY, "head_dim": 8}),
    "experts in one": ("GptOssConfig", {"num_local_experts": 16, "num_experts_per_tok": 1, "head_dim": 8}),
    # Of its layers two writers are added up; TRL asks its configuration for a name that it does not
    # have.
    "added up": (
        "GraniteMoeSharedConfig",
        {"num_local_experts": 16, "num_experts_per_tok": 1, "shared_intermediate_size": 16},
    ),
    "hybrid": (
        "Qwen3_5MoeTextConfig",
        {
            **{**MANY, **LINEAR, "head_dim": 8, "shared_expert_intermediate_size": 16},
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
SETTINGS = {
    "rows zero0": [*in_mode("rows"), "deepspeed={folder}/zero0.json"],
    "rows zero2": [*in_mode("rows"), "deepspeed={folder}/zero2.json"],
    "rows zero3": [*in_mode("rows"), "deepspeed={folder}/zero3.json"],
    "rows checkpointed": [*in_mode("rows"), "deepspeed={folder}/zero3.json", "training.activation_checkpointing=true"],
    "mask zero2": ["implant.mode=mask", "deepspeed={folder}/zero2.json"],
    "mask zero3": ["implant.mode=mask", "deepspeed={folder}/zero3.json"],
    "lora zero3": [*in_mode("lora"), "deepspeed={folder}/zero3.json"],
    "full zero3": ["implant.mode=full", "deepspeed={folder}/zero3.json"],
}
CONFINED = [name for name in SETTINGS if not name.startswith("full")]
# Of the other bases what differs is how their experts lie, not how ranks hold them.
OFTEN = ("rows zero3", "mask zero3", "lora zero3", "full zero3")
FIRST = next(iter(BASES))
CASES = [
    (base, name) if base == FIRST or name in OFTEN else pytest.param(base, name, marks=pytest.mark.slow)
    for base, name in product(BASES, CONFINED)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Three steps of every base in every setting that is asked for, all in one start."""
    folder = tmp_path_factory.mktemp("mixtures")
    write_configurations(folder)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    cases = {}
    for base, (config_class, own) in BASES.items():
        torch.manual_seed(0)
        marks = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "vocab_size": len(tokenizer)}
        config = getattr(transformers, config_class)(**{**SIZES, **marks, "num_key_value_heads": 2, **own})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / base / "model")
        tokenizer.save_pretrained(folder / base / "model")
        for name, settings in SETTINGS.items():
            few = [*FEW_ROWS, "training.max_steps=3", "training.warmup_steps=0", "training.weight_decay=0"]
            chosen = [] if name.startswith("full") else ["selection.strategy=random", "selection.quota=10"]
            cases[f"{base}/{name}"] = [
                f"model.path={folder / base / 'model'}",
                *(setting.format(folder=folder) for setting in settings),
                *few,
                *chosen,
            ]
    asked = {f"{base}/{name}" for base, name in asked_for(request, "base", "name")}
    cases = {name: cases[name] for name in cases if name.partition("/")[2] in OFTEN or name in asked}
    full = {name: ROOT / "recipes/tiny/full.yaml" for name in cases if "/full" in name}
    launch_all(folder, cases, full)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("base", "name"), CASES)
def test_every_other_byte_is_the_bases(base: str, name: str, runs: Path) -> None:
    found = json.loads((runs / base / name / "verify.json").read_text())
    assert found["identical_outside_rows"]
    assert found["rows_changed"] == found["rows_selected"] == 6


@pytest.mark.parametrize("base", BASES)
def test_stages_and_modes_agree(base: str, runs: Path) -> None:
    start = tensors(runs / base / "model")
    one = tensors(runs / base / "rows zero3/model")
    moved = distance(one, start)
    others = ("rows zero0", "rows zero2", "rows checkpointed", "mask zero2", "mask zero3")
    made = [other for other in others if (runs / base / other).exists()]
    assert "mask zero3" in made
    for other in made:
        assert distance(one, tensors(runs / base / other / "model")) < 1e-3 * moved, other


@pytest.mark.parametrize("name", ["rows zero3", "mask zero3", "lora zero3"])
@pytest.mark.parametrize("base", BASES)
def test_stock_peft_merges_the_adapter_to_the_model(base: str, name: str, runs: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(runs / base / "model")
    merged = PeftModel.from_pretrained(plain, str(runs / base / name / "adapter")).merge_and_unload()
    model = AutoModelForCausalLM.from_pretrained(runs / base / name / "model")
    for (own, one), other in zip(merged.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), own


@pytest.mark.parametrize("base", BASES)
def test_full_fine_tuning_writes_the_bases_own_tensors(base: str, runs: Path) -> None:
    start, trained = tensors(runs / base / "model"), tensors(runs / base / "full zero3/model")
    assert {name: one.shape for name, one in trained.items()} == {name: one.shape for name, one in start.items()}
    assert distance(start, trained) > 0
    AutoModelForCausalLM.from_pretrained(runs / base / "full zero3/model")
