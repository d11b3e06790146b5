"""The main job through the real launcher: every stage, its results, and that they do not depend on
the number of ranks.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from distributed.conftest import FEW_ROWS, launch, launch_all
from loki_ds.recipe.file import load_recipe

LAYERS, ROWS = 6, 38  # of the tiny model: floor(30% of 128) rows a layer
SHORT = ["protected.per_subject=4", "attribution.batch_size=7"]
FEW = [*SHORT, "training.max_steps=3", "retention.abilities.limit=8", "retention.new_task.limit=8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "loki"
    done = launch(*FEW, f"run={run}")
    assert done.status == 0, done.output
    return run


def test_the_run_folder_has_every_result(finished: Path) -> None:
    expected = (
        "recipe.yaml attribution/manifest.json positions.json model/model.safetensors model/config.json verify.json"
    )
    expected += " report/report.json report/report.md report/report.html"
    assert [name for name in expected.split() if not (finished / name).is_file()] == []


def test_only_selected_rows_changed_in_spite_of_weight_decay(finished: Path) -> None:
    assert "weight_decay: 0.1" in (finished / "recipe.yaml").read_text()
    verified = json.loads((finished / "verify.json").read_text())
    assert verified["identical_outside_rows"] is True
    assert verified["rows_changed"] == verified["rows_selected"] == LAYERS * ROWS


def test_the_model_loads_as_a_plain_checkpoint(finished: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(finished / "model").config.num_hidden_layers == LAYERS


def test_the_report_pairs_every_task(finished: Path) -> None:
    report = json.loads((finished / "report/report.json").read_text())
    assert len(report["tasks"]) == 6
    assert {task["n"] for task in report["tasks"]} == {8}
    assert [task["task"] for task in report["new_task"]] == ["tiny_toolcalls"]


def test_a_finished_run_is_shown_and_not_redone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    again = launch(*FEW, f"run={finished}")
    assert again.status == 0
    assert again.output.count("already there") == 4
    assert "new task and abilities" in again.output
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_a_finished_run_is_evaluated_again_without_being_trained_again(finished: Path) -> None:
    """Other tasks, another margin, another tracker, until decided: both reports are kept, `report/`
    is the last one.
    """
    first = (finished / "report/report.json").read_text()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    tasks = "retention.abilities={tasks: [tiny_facts], limit: 120}"
    other = [tasks, "retention.margin=0.2", "retention.stop=decided", "training.logging_steps=1"]
    again = launch(*FEW, f"run={finished}", *other)
    assert again.status == 0, again.output
    assert again.output.count("loki-ds: evaluating ") == 2  # the second by the first one's answers
    report = json.loads((finished / "report/report.json").read_text())
    assert ([task["task"] for task in report["tasks"]], report["margin"]) == (["tiny_facts"], 0.2)
    assert [(task["n"], task["documents"], task["verdict"]) for task in report["tasks"]] == [(50, 166, "kept")]
    assert "| 50 of 166 |" in (finished / "report/report.md").read_text()
    back = launch(*FEW, f"run={finished}", "attribution.memory_gib=3")
    assert back.status == 0, back.output
    assert "evaluating" not in back.output
    assert (finished / "report/report.json").read_text() == first
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    settings = [json.loads(file.read_text())["margin"] for file in finished.glob("retention/*/settings.json")]
    assert sorted(settings) == [0.01, 0.2]


def test_the_folders_own_recipe_can_be_run_again(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml", [f"run={tmp_path}"])
    assert recipe.training["max_steps"] == 3
    assert recipe.retention.abilities[0].limit == 8


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(finished: Path) -> None:
    done = launch(*FEW, f"run={finished}", "selection.quota=20")
    assert done.status != 0
    assert "quota: 30" in (finished / "recipe.yaml").read_text()
    assert "'select' was made with quota 30.0, now it is 20.0" in done.refusals()[0]


@pytest.mark.slow
def test_stale_base_results_are_refused(finished: Path) -> None:
    """Base results under the right name that say they are of other libraries, tasks or weights."""
    stored = {file: json.loads(file.read_text()) for file in (finished.parent / ".base-results").glob("*.json")}
    assert stored
    for file, result in stored.items():
        file.write_text(json.dumps({**result, "key": {**result["key"], "libraries": {"lm_eval": "0.1"}}}))
    done = launch(*FEW, "selection.strategy=random", f"run={finished.parent / 'other'}")
    assert done.status != 0
    assert "these base results are not those of this base, these tasks and these libraries" in done.refusals()[0]
    for file, result in stored.items():
        file.write_text(json.dumps(result))


def test_baselines_train(tmp_path: Path, root: Path) -> None:
    few = [*FEW_ROWS, *FEW[2:3]]
    recipes = {baseline: root / f"recipes/tiny/{baseline}.yaml" for baseline in ("full", "random")}
    launch_all(tmp_path, dict.fromkeys(recipes, few), recipes)
    for baseline in recipes:
        verified = json.loads((tmp_path / baseline / "verify.json").read_text())
        assert verified["identical_outside_rows"] is (baseline == "random")
