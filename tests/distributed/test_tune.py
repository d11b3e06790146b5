"""The dial on a trained run: chosen on one half of the documents, reported on the other, and every
product of the run at the chosen scale.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import in_mode
from safetensors.torch import load_file

from distributed.conftest import ROOT, launch
from loki_ds.disk.run_folder import RunFolder
from loki_ds.export.implant_file import Implant

TRAINING = [
    "training.max_steps=3",
    "training.warmup_steps=0",
    "training.learning_rate=0.01",
    "selection.strategy=random",
]
TASKS = ["retention.abilities={tasks: [tiny_facts], limit: 30}", "retention.new_task.limit=20"]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("tune") / "run"
    dial = "tune={scales: [0.5], budget: {forgetting: 0.99}}"
    done = launch(*in_mode("rows"), *TRAINING, *TASKS, dial, f"run={folder}")
    assert done.status == 0, done.output
    return RunFolder(folder)


def test_the_runs_products_are_those_of_the_chosen_scale(tuned: RunFolder) -> None:
    trained, implant = Implant.load(tuned.tune / "trained.safetensors"), Implant.load(tuned.implant)
    base, model = (load_file(folder / "model.safetensors") for folder in (ROOT / "recipes/tiny/model", tuned.model))
    for layer, whole in trained.layers.items():
        half = torch.lerp(whole.base.double(), whole.implanted.double(), 0.5).float()
        assert implant.layers[layer].implanted.equal(half)
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert model[name][whole.rows].equal(half)
        assert not base[name][whole.rows].equal(half)
    assert read(tuned.verification)["identical_outside_rows"] is True
    assert implant.facts["scale"] == "0.5"
    assert "0.5 of the trained change, for a budget of forgetting 0.99" in (tuned.report / "report.md").read_text()


def test_no_document_is_in_both_halves(tuned: RunFolder) -> None:
    answers = [read(file) for file in (tuned.retention / "answers").glob("*.json")]
    by_half: dict[str, set[str]] = {}
    for one in answers:
        found = {sample["doc_hash"] for sample in one["tasks"]["tiny_facts"]["samples"]}
        by_half.setdefault(one["key"]["half"], set()).update(found)
    assert {half: len(found) for half, found in by_half.items()} == {"choosing": 15, "confirming": 15}
    assert not by_half["choosing"] & by_half["confirming"]


def test_another_budget_of_the_same_run(tuned: RunFolder) -> None:
    """And other scales: the whole change, bit for bit as it was trained. A share of a skill that
    was not gained is no budget, and changes nothing.
    """
    command = [sys.executable, "-m", "loki_ds.cli.commands", "tune", str(tuned.root)]
    of_nothing = subprocess.run([*command, "tune.budget={skill: 0.95}"], cwd=ROOT, capture_output=True, text=True)
    assert (of_nothing.returncode, "it gained nothing" in of_nothing.stderr) == (2, True)
    assert read(tuned.tune / "chosen.json")["scale"] == 0.5
    wider = ["tune.scales=[0.5, 1.0]", "tune.budget={forgetting: 0.98}"]
    done = subprocess.run([*command, *wider], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read(tuned.tune / "chosen.json")["scale"] == 1.0
    assert [point["scale"] for point in read(tuned.tune / "curve.json")] == [0.5, 1.0]
    trained, implant = Implant.load(tuned.tune / "trained.safetensors"), Implant.load(tuned.implant)
    chosen = read(tuned.tune / "chosen.json")["scale"]
    assert all(
        rows.implanted.equal(torch.lerp(rows.base.double(), trained.layers[i].implanted.double(), chosen).float())
        for i, rows in implant.layers.items()
    )
    assert f"scale: {chosen:g} of the trained change" in done.stdout
