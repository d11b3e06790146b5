"""Rows of any linear layer train on two ranks: only they change, in every mode, and masks and
deltas give the same weights.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, in_mode
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distributed.conftest import distance, launch_all, write_configurations

SHORT = ["selection.strategy=random", "training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=0"]
CASES = {
    "gate_up rows zero3": ["selection.where=gate_up", *in_mode("rows"), "deepspeed={folder}/zero3.json"],
    "gate_up mask zero2": ["selection.where=gate_up", *in_mode("mask"), "deepspeed={folder}/zero2.json"],
    "attention lora zero3": ["selection.where=attention", *in_mode("lora"), "deepspeed={folder}/zero3.json"],
    "all rows zero0": ["selection.where=all", *in_mode("rows"), "deepspeed={folder}/zero0.json"],
    "two layers": ["selection.where=all", "selection.layers=[2, 3]", *in_mode("rows"), "deepspeed={folder}/zero3.json"],
    **{
        f"{kind}{mode} zero3": [
            "selection.where=all",
            f"implant.mode={mode}",
            "training.weight_decay=0",
            "deepspeed={folder}/zero3.json",
            *(["model.path={experts}"] if kind else []),
        ]
        for kind in ("", "experts ")
        for mode in ("rows", "mask")
    },
}


@pytest.fixture(scope="module")
def runs(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_configurations(folder)
    launch_all(
        folder,
        {
            name: [*SHORT, *(override.format(folder=folder, experts=experts) for override in overrides)]
            for name, overrides in CASES.items()
        },
    )
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_only_the_rows_change(case: str, runs: Path) -> None:
    verified = json.loads((runs / case / "verify.json").read_text())
    assert verified["identical_outside_rows"] is True
    assert (
        0.9 * verified["rows_selected"] < verified["rows_changed"] <= verified["rows_selected"]
    )  # no token: no change


def test_only_the_chosen_layers_change(runs: Path) -> None:
    chosen = json.loads((runs / "two layers/positions.json").read_text())
    assert {name.partition(".")[0] for name, rows in chosen.items() if rows} == {"2", "3"}


@pytest.mark.parametrize("kind", ["", "experts "])
def test_mask_and_rows_give_the_same_weights(kind: str, runs: Path, experts: Path) -> None:
    base = load_file((experts if kind else ROOT / "recipes/tiny/model") / "model.safetensors")
    rows, mask = (weights(runs / f"{kind}{mode} zero3") for mode in ("rows", "mask"))
    assert distance(rows, mask) < 1e-4 * distance(rows, base)


@pytest.mark.parametrize("case", ["gate_up rows zero3", "attention lora zero3", "experts rows zero3"])
def test_stock_peft_merges_what_leaves(case: str, runs: Path, experts: Path) -> None:
    folder = experts if case.startswith("experts") else ROOT / "recipes/tiny/model"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(runs / case / "adapter")).merge_and_unload()
    model = AutoModelForCausalLM.from_pretrained(runs / case / "model", dtype=torch.float32)
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], rtol=1e-6, atol=1e-7), name
