"""A verdict on what lighteval kept: its own figures, paired, and one sentence where the two were
not asked alike.

`data/lighteval.zip` was written by lighteval 0.13.0 with transformers as its backend: the tiny
model and its damaged copy, in batches of 12 and of 5, by the tasks and the script in it.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import ROOT
from pyarrow import parquet

from loki_ds.disk.files import holds_logs
from loki_ds.recipe.file import load_pair
from loki_ds.refusal import Refusal
from loki_ds.report.schema import Report
from loki_ds.retention.lighteval_details import read_details
from loki_ds.stages.two_logs import retain_logged

BASE = str(ROOT / "recipes/tiny/model")
GROUP = {"group": ["group:one|1", "group:two|1"], "both": ["both|0"], "choice": ["choice|0"]}


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Path]:
    """The two models' folders."""
    with zipfile.ZipFile(Path(__file__).with_name("data") / "lighteval.zip") as archive:
        archive.extractall(tmp_path / "kept")
    return {name: tmp_path / "kept" / name for name in ("base", "model")}


def verdict(base: Path, model: Path, *asked: str) -> Report:
    return retain_logged(base, model, load_pair(BASE, list(asked)).retention, base.parent / "out")


def results_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The results of a folder, changed."""
    (file,) = folder.rglob("results_*.json")
    results = json.loads(file.read_text())
    change(results)
    file.write_text(json.dumps(results))


def rewritten(folder: Path, task: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """A task's rows, changed."""
    (file,) = (each for each in folder.rglob("*.parquet") if each.name.startswith(f"details_{task}_"))
    rows = parquet.read_table(file).to_pylist()
    change(rows)
    parquet.write_table(pa.Table.from_pylist(rows), file)


def test_the_scores_are_those_that_lighteval_wrote(kept: dict[str, Path]) -> None:
    report = verdict(kept["base"], kept["model"])
    lines = {line["task"]: line for line in report["tasks"]}
    assert lines.keys() == GROUP.keys()
    for arm, name in (("base", "base"), ("implanted", "model")):
        wrote = results_of(kept[name])["results"]
        for task, keys in GROUP.items():
            metric = lines[task]["metric"]
            mean = sum(wrote[key][metric] for key in keys) / len(keys)
            assert lines[task][arm] == pytest.approx(mean), (task, arm)  # type: ignore[literal-required]
    assert report["outcome"] == "lost"
    assert (lines["both"]["worse"], lines["both"]["better"], lines["both"]["verdict"]) == (11, 0, "lost")
    assert (lines["group"]["n"], lines["group"]["clusters"]) == (32, 2)
    assert lines["choice"]["asked"] | {"limit": None} == {
        "shots": "0",
        "limit": None,
        "chat_template": False,
        "filter": "none",
        "version": "1",
    }
    assert {line["task"] for line in report["likelihoods"]} == {"both", "choice"}


def test_a_document_has_its_words_and_its_likelihood(kept: dict[str, Path]) -> None:
    tasks = read_details(kept["model"]).answers["tasks"]
    assert [metric["metric"] for metric in tasks["choice"]["metrics"]] == ["acc", "gold answer"]  # no mean: mcc
    assert [metric["metric"] for metric in tasks["both"]["metrics"]] == ["em", "acc", "gold answer"]
    asked = next(sample for sample in tasks["choice"]["samples"] if sample["prompt"] == "sven lives in")
    assert (asked["answer"], asked["gold"]) == ("perth", "perth")
    asked = next(sample for sample in tasks["both"]["samples"] if sample["prompt"] == "sven lives in")
    assert asked["scores"][:2] == [0.0, 1.0]  # of two ways of asking
    (row,) = (
        row
        for file in kept["model"].rglob("details_choice*.parquet")
        for row in parquet.read_table(file).to_pylist()
        if row["doc"]["query"] == "sven lives in"
    )
    assert asked["scores"][2] == pytest.approx(row["model_response"]["logprobs"][2], abs=1e-5)


def test_a_new_task_is_named_and_counts_apart(kept: dict[str, Path]) -> None:
    report = verdict(kept["base"], kept["model"], "retention.new_task={tasks: [choice]}")
    assert ({line["task"] for line in report["tasks"]}, report["new_task"][0]["task"]) == ({"group", "both"}, "choice")


def test_words_are_compared_where_the_backend_keeps_them(kept: dict[str, Path]) -> None:
    """As vLLM's does; and they show whether a chat template was used."""

    def worded(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["model_response"].update(input=f"<|user|> {row['doc']['query']}<|assistant|>", input_tokens=[1])

    for folder in kept.values():
        for task in ("choice|0", "both|0", "group:one|1", "group:two|1"):
            rewritten(folder, task, worded)
        changed(folder, lambda r: r["config_general"]["model_config"].update(override_chat_template=None))
    report = verdict(kept["base"], kept["model"])
    assert report["tasks"][0]["asked"]["chat_template"] is True
    rewritten(kept["model"], "choice|0", lambda rows: rows[0]["model_response"].update(input="other"))
    with pytest.raises(Refusal, match="task choice: 1 documents were asked in other words"):
        verdict(kept["base"], kept["model"])


def test_what_lighteval_does_not_say_of_a_template_is_not_said(kept: dict[str, Path]) -> None:
    for folder in kept.values():
        changed(folder, lambda r: r["config_general"]["model_config"].update(override_chat_template=None))
    report = verdict(kept["base"], kept["model"])
    assert report["tasks"][0]["asked"]["chat_template"] is None
    assert "not said" in (kept["base"].parent / "out/report/report.md").read_text()


def of_model(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, lambda r: r["config_general"]["model_config"].update(values))


def of_choice(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, lambda r: r["config_tasks"]["choice|0"].update(values))


def in_choice(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, "choice|0", change)


def without(pattern: str) -> Callable[[Path], None]:
    return lambda folder: [file.unlink() for file in folder.rglob(pattern)] and None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_model(system_prompt="be brief"), "system_prompt is 'be brief', and None in"),
        (of_model(override_chat_template=True), "override_chat_template is True, and False in"),
        (of_model(generation_parameters={"temperature": 0.7}), "generation_parameters.temperature is 0.7, and 0 in"),
        (lambda f: changed(f, lambda r: r["config_general"].update(max_samples=5)), "max_samples is 5, and None in"),
        (of_choice(generation_size=9), "generation_size of choice is 9, and None in"),
        (of_choice(version=2), "task choice: version is"),
        (of_choice(num_fewshots=5), "task choice: shots is"),
        (
            lambda f: changed(f, lambda r: r["config_tasks"]["choice|0"]["metrics"][1].update(sample_level_fn="Other")),
            "how acc of choice is computed is 'Other', and 'LoglikelihoodAcc",
        ),
        (
            lambda f: changed(f, lambda r: r["config_tasks"]["choice|0"].update(metrics=[])),
            "none of its metrics .* is a mean over documents",
        ),
        (lambda f: changed(f, lambda r: r["config_tasks"].pop("choice|0")), "no config_tasks of choice.0"),
        (lambda f: changed(f, lambda r: r["config_general"].pop("model_config")), "no config_general.model_config"),
        (lambda f: changed(f, lambda r: r["config_general"].update(lighteval_sha="ab")), "libraries differ"),
        (in_choice(lambda rows: rows.pop()), "task choice: 1 documents were seen by one arm"),
        (
            in_choice(lambda rows: rows[0]["model_response"]["input_tokens"].append(3)),
            "task choice: 1 documents were asked in other words",
        ),
        (in_choice(lambda rows: rows[1]["metric"].update(acc=None)), "document .* has no acc that is a number"),
        (
            in_choice(lambda rows: [row.pop("doc") for row in rows] and None),
            "no column doc, which lighteval writes since 0.11",
        ),
        (without("details_choice*"), "only one of them has choice"),
        (without("results_*"), "no results_.*json beside the details"),
    ],
)
def test_what_was_not_asked_alike_is_named(change: Callable[[Path], None], says: str, kept: dict[str, Path]) -> None:
    change(kept["model"])
    with pytest.raises(Refusal, match=says):
        verdict(kept["base"], kept["model"])


def test_a_file_that_is_none_of_lightevals_is_refused(kept: dict[str, Path]) -> None:
    (file,) = kept["model"].rglob("details_choice*")
    file.write_bytes(b"nothing")
    with pytest.raises(Refusal, match=r"details_choice.*: not a parquet file"):
        read_details(kept["model"])
    file.rename(file.with_name("details_of_mine.parquet"))
    with pytest.raises(Refusal, match=r"details_of_mine\.parquet: no file of lighteval's"):
        read_details(kept["model"])


def test_of_two_models_one_is_named(kept: dict[str, Path]) -> None:
    for part in ("details", "results"):
        shutil.copytree(kept["base"] / part / "models/base", kept["model"] / part / "models/base")
    with pytest.raises(Refusal, match=r"the answers of 2 models, allowed is one; name .*/models/base or another"):
        read_details(kept["model"])
    named = read_details(kept["model"] / "details/models/damaged")
    assert (named.model, holds_logs(named.folder)) == ("models/damaged", True)


def test_of_two_dates_the_newest_counts(kept: dict[str, Path]) -> None:
    (choice,) = kept["model"].rglob("details_choice*")
    (results,) = kept["model"].rglob("results_*.json")
    first = choice.parent.name
    later = choice.parent.with_name("2099-01-01T00-00-00.000000")
    later.mkdir()
    shutil.copyfile(choice, later / choice.name.replace(first, later.name))
    shutil.copyfile(results, results.with_name(f"results_{later.name}.json"))
    choice.write_bytes(b"")  # is not read
    assert {line["task"] for line in verdict(kept["base"], kept["model"])["tasks"]} == GROUP.keys()
    file = results.with_name(f"results_{later.name}.json")
    file.write_text(file.read_text().replace('"max_samples": null', '"max_samples": 3'))
    with pytest.raises(Refusal, match="max_samples is 3, and None on another date"):
        read_details(kept["model"])


def test_one_task_with_two_numbers_of_shots_is_two(kept: dict[str, Path]) -> None:
    for folder in kept.values():
        (file,) = folder.rglob("details_choice*")
        shutil.copyfile(file, file.with_name(file.name.replace("|0", "|5")))
        changed(
            folder,
            lambda r: r["config_tasks"].update({"choice|5": {**r["config_tasks"]["choice|0"], "num_fewshots": 5}}),
        )
    tasks = {line["task"]: line["asked"]["shots"] for line in verdict(kept["base"], kept["model"])["tasks"]}
    assert (tasks["choice, 0 shots"], tasks["choice, 5 shots"]) == ("0", "5")


def test_lightevals_and_lm_evals_do_not_pair(kept: dict[str, Path], tmp_path: Path) -> None:
    date = "2026-01-01T00-00-00.000000"
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / f"results_{date}.json").write_text("{}")
    sample = {"doc_id": 0, "doc_hash": "a", "prompt_hash": "b", "resps": [["x"]], "target": "x", "acc": 1.0}
    (tmp_path / "lm" / f"samples_choice_{date}.jsonl").write_text(json.dumps({**sample, "metrics": ["acc"]}) + "\n")
    with pytest.raises(Refusal, match="the evaluating program is 'lighteval', and 'lm-eval' in"):
        verdict(tmp_path / "lm", kept["model"])
