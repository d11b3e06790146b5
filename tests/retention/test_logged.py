"""A verdict on what lm-eval itself logged: the same figures as when both models are asked, and one
sentence where the two were not asked alike.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from conftest import ROOT, damaged_copy
from datasets import load_dataset
from lm_eval import utils
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from loki_ds.recipe.file import load_pair
from loki_ds.refusal import Refusal
from loki_ds.report.schema import Report
from loki_ds.retention.as_logged import write_logged
from loki_ds.retention.logged import read_logged
from loki_ds.retention.messages import ArmResult, Sample
from loki_ds.stages.report import write_samples
from loki_ds.stages.two_checkpoints import retain_two
from loki_ds.stages.two_logs import retain_logged
from loki_ds.tasks.metrics import likelihood_metric, score

BASE = ROOT / "recipes/tiny/model"
CHOICE = {
    "task": "choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["berlin", "cairo"],
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITES = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "loose")],
}
ASKED = ["both", "choice"]  # groups come first in what is logged


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A choice, and a group of two tasks that write, each with two filters."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"copy {word}", "a": word} for word in ("berlin", "cairo") * 6]
    (folder / "d.jsonl").write_text("".join(json.dumps({**row, "n": i}) + "\n" for i, row in enumerate(rows)))
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "d.jsonl")}}}
    for task in (CHOICE, {**WRITES, "task": "one"}, {**WRITES, "task": "two"}):
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**task, **data}))
    (folder / "both.yaml").write_text("group: both\ntask: [one, two]\naggregate_metric_list: [{metric: exact_match}]\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"base": BASE, "model": damaged_copy(tmp_path_factory.mktemp("damaged") / "model")}


@pytest.fixture(scope="module")
def logs(tasks: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What lm-eval writes of each model, by its own tracker."""
    folder = tmp_path_factory.mktemp("logs")
    for name, model in models.items():
        tracker = EvaluationTracker(output_path=str(folder / name))
        results: Any = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={model},dtype=float32",
            tasks=ASKED,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            device="cpu",
            batch_size=12,
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        for task, lines in samples.items():
            tracker.save_results_samples(task, lines)
    return {name: folder / name for name in models}


def from_logs(base: Path, model: Path, out: Path, *asked: str) -> Report:
    return retain_logged(base, model, load_pair(str(base), list(asked)).retention, out)


def test_the_verdict_is_that_of_asking_both(
    logs: dict[str, Path], models: dict[str, Path], tasks: Path, tmp_path: Path
) -> None:
    own = [f"retention.include_path={tasks}", f"retention.abilities={{tasks: [{', '.join(ASKED)}]}}"]
    asked = [*own, "model.dtype=float32", "retention.batch_size=12"]
    expected = retain_two(load_pair(str(BASE), asked), str(models["model"]), tmp_path / "asked")
    report = from_logs(logs["base"], logs["model"], tmp_path / "logged")
    for figure in ("outcome", "headline", "losses_only", "losses_only_ci", "forgetting", "forgetting_ci"):
        assert report[figure] == pytest.approx(expected[figure]), figure  # type: ignore[literal-required]
    for kind in ("tasks", "likelihoods"):
        lines, wanted = ({line["task"]: line for line in made[kind]} for made in (report, expected))  # type: ignore[literal-required]
        assert lines.keys() == wanted.keys()
        for task in lines:
            for figure in ("metric", "n", "base", "implanted", "change", "ci", "verdict", "p_holm", "clusters"):
                assert lines[task][figure] == pytest.approx(wanted[task][figure]), (task, figure)
    assert {flip["implanted"] for flip in report["flips"]} == {flip["implanted"] for flip in expected["flips"]}
    assert (tmp_path / "logged/report/report.html").exists()


def test_a_new_task_is_named_and_counts_apart(logs: dict[str, Path], tmp_path: Path) -> None:
    report = from_logs(logs["base"], logs["model"], tmp_path / "out", "retention.new_task={tasks: [choice]}")
    assert ([line["task"] for line in report["tasks"]], report["new_task"][0]["task"]) == (["both"], "choice")
    with pytest.raises(Refusal, match=r"retention\.new_task: chioce is none of the logged tasks"):
        from_logs(logs["base"], logs["model"], tmp_path / "out", "retention.new_task={tasks: [chioce]}")


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The results of a folder, changed."""
    (file,) = folder.rglob("results_*.json")
    results = json.loads(file.read_text())
    change(results)
    file.write_text(json.dumps(results))
    return folder


def relined(folder: Path, task: str, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A task's samples of a folder, changed."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: changed(f, lambda r: r.update(chat_template_sha="ab")), "chat_template_sha is 'ab', and None in"),
        (lambda f: changed(f, lambda r: r["config"].update(limit=5)), "limit is 5, and None in"),
        (lambda f: changed(f, lambda r: r["config"].update(fewshot_seed=9)), "fewshot_seed is 9, and 1234 in"),
        (lambda f: changed(f, lambda r: r["versions"].update(choice=2)), "task choice: version is"),
        (lambda f: changed(f, lambda r: r["n-shot"].update(choice=5)), "task choice: shots is"),
        (lambda f: changed(f, lambda r: r.update(lm_eval_version="0.4.5")), "libraries differ"),
        (lambda f: relined(f, "choice", lambda lines: lines.pop()), "task choice: 1 documents were seen by one arm"),
        (
            lambda f: relined(f, "choice", lambda lines: lines[0].update(prompt_hash="x")),
            "task choice: 1 documents were",
        ),
        (lambda f: relined(f, "choice", lambda lines: lines[0].pop("doc_hash")), "line 1 is none of lm-eval's samples"),
        (lambda f: relined(f, "choice", lambda lines: lines[1].update(acc="NaN")), "document 1 has no acc that is a"),
        (lambda f: [file.unlink() for file in f.rglob("samples_choice_*")] and f, "only one of them has choice"),
        (lambda f: [file.unlink() for file in f.rglob("results_*")] and f, "no results_\\*.json beside the samples"),
        (lambda f: shutil.copytree(next(f.iterdir()), f / "another") and f, "the answers of 2 models"),
    ],
)
def test_what_was_not_asked_alike_is_named(
    change: Callable[[Path], Path], says: str, logs: dict[str, Path], tmp_path: Path
) -> None:
    other = change(Path(shutil.copytree(logs["model"], tmp_path / "other")))
    with pytest.raises(Refusal, match=says):
        from_logs(logs["base"], other, tmp_path / "out")


def test_tasks_of_two_dates_count_both(logs: dict[str, Path], tmp_path: Path) -> None:
    """lm-eval writes each start's files beside the others'."""
    both = []
    for name in ("base", "model"):
        folder = Path(shutil.copytree(logs[name], tmp_path / name))
        (results,) = folder.rglob("results_*.json")
        later = results.with_name("results_2099-01-01T00-00-00.000000.json")
        shutil.copyfile(results, later)
        (samples,) = folder.rglob("samples_choice_*")
        samples.rename(samples.with_name("samples_choice_2099-01-01T00-00-00.000000.jsonl"))
        both.append(folder)
    assert {line["task"] for line in from_logs(*both, tmp_path / "out")["tasks"]} == {"choice", "both"}
    (later,) = both[1].rglob("results_2099*")
    later.write_text(later.read_text().replace('"limit": null', '"limit": 3'))
    with pytest.raises(Refusal, match="limit is 3, and None on an earlier date"):
        from_logs(*both, tmp_path / "other")


def test_a_place_among_numbers_is_a_place(logs: dict[str, Path], tmp_path: Path) -> None:
    def numbered(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["target"] = "0"
            for place, request in enumerate(line["arguments"].values()):
                request["arg_1"] = f" {1 - place}"

    folder = relined(Path(shutil.copytree(logs["base"], tmp_path / "base")), "choice", numbered)
    assert read_logged(folder).answers["tasks"]["choice"]["samples"][0]["gold"] == "1"


def test_a_runs_report_is_not_lost(logs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(Refusal, match="a run's own folder"):
        from_logs(logs["base"], logs["model"], tmp_path)


def test_older_files_name_no_arguments_and_no_metrics(logs: dict[str, Path], tmp_path: Path) -> None:
    """As lm-eval 0.4.5 wrote them: arguments as lists, metrics as keys alone."""

    def older(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            del line["metrics"]
            line["arguments"] = [list(request.values()) for request in line["arguments"].values()]

    both = [relined(Path(shutil.copytree(logs[name], tmp_path / name)), "choice", older) for name in ("base", "model")]
    first, second = (from_logs(*pair, tmp_path / f"out{i}") for i, pair in enumerate((both, list(logs.values()))))
    assert first["tasks"] == second["tasks"]
    assert read_logged(both[0]).answers["tasks"]["choice"]["samples"][0]["answer"] in ("berlin", "cairo")


def test_our_answers_written_as_logs_give_the_same_verdict(
    models: dict[str, Path], tasks: Path, tmp_path: Path
) -> None:
    own = [f"retention.include_path={tasks}", f"retention.abilities={{tasks: [{', '.join(ASKED)}]}}"]
    pair = load_pair(str(BASE), [*own, "model.dtype=float32", "retention.batch_size=12"])
    expected = retain_two(pair, str(models["model"]), tmp_path / "asked")
    base, model = write_samples(tmp_path / "asked", tmp_path / "samples")
    report = from_logs(base, model, tmp_path / "logged")
    assert {name for name in expected if report[name] != expected[name]} == {  # type: ignore[literal-required]
        *("run", "mode", "base_digest", "origin", "settings", "costs")
    }


def test_lm_evals_own_tools_read_what_is_written(models: dict[str, Path], tasks: Path, tmp_path: Path) -> None:
    own = [f"retention.include_path={tasks}", f"retention.abilities={{tasks: [{', '.join(ASKED)}]}}"]
    report = retain_two(load_pair(str(BASE), own), str(models["model"]), tmp_path / "asked")
    folders = write_samples(tmp_path / "asked", tmp_path / "samples")
    for folder, arm in zip(folders, ("base", "implanted"), strict=True):
        files = [str(file) for file in folder.iterdir()]
        (named,) = utils.get_results_filenames(files)
        results = json.loads(Path(named).read_text())
        table = utils.make_table(results)
        lines = {line["task"]: line for line in report["tasks"]}
        for task, by in (("both", "exact_match,strict"), ("choice", "acc,none")):
            assert results["results"][task][by] == pytest.approx(lines[task][arm])  # type: ignore[literal-required]
        assert all(shown in table for shown in ("|both ", "| - one", "strict", "gold answer"))
        samples = utils.get_sample_results_filenames(files)
        assert {utils.get_file_task_name(Path(file).name) for file in samples} == {"one", "two", "choice"}
        two = next(file for file in samples if "_two_" in file)
        rows = load_dataset("json", data_files=two, split="train", cache_dir=str(tmp_path / "cache"))
        assert (len(rows), set(rows["filter"])) == (2 * 12, {"strict", "loose"})


def test_every_kind_of_answer_comes_back(tmp_path: Path) -> None:
    """Also of a group whose tasks weigh alike, of texts, and of numbers that a document lacks."""
    text = likelihood_metric("loglikelihood_rolling")
    assert text is not None
    scored = [score("acc", "none", ["none"], True), score("loss", "none", ["none"], False)]

    def sample(place: int, cluster: str | None, scores: list[float | None]) -> Sample:
        words = {"prompt": f"q{place}", "answer": "a", "gold": "7", "prompt_hash": f"p{place}"}
        return {"doc_hash": f"{cluster}{place}", "place": place, "cluster": cluster, "scores": scores, **words}  # type: ignore[typeddict-item]

    answers: ArmResult = {
        "tokenizer": "t",
        "libraries": {"lm_eval": "0.4.13"},
        "tasks": {
            "group": {
                "version": {"one": "1", "two": "1"},
                "shots": {"one": 0, "two": 0},
                "metrics": scored,
                "by_size": False,
                "samples": [sample(0, "one", [1.0, 0.5]), sample(1, "one", [0.0, None]), sample(0, "two", [1.0, 2.0])],
            },
            "texts": {
                "version": {"texts": "1"},
                "shots": {"texts": 0},
                "metrics": [score("score", "none", ["none"], True), text],
                "by_size": True,
                "samples": [sample(0, None, [0.25, 1.5])],
            },
        },
    }
    write_logged(answers, "mine", tmp_path)
    assert read_logged(tmp_path).answers["tasks"] == answers["tasks"]
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["group"]["acc,none"] == 0.75  # of one half, and of one


def test_answers_that_are_gone_are_named(models: dict[str, Path], logs: dict[str, Path], tmp_path: Path) -> None:
    from_logs(logs["base"], logs["model"], tmp_path / "logged")
    with pytest.raises(Refusal, match=r"answers\.json: does not name the answers of two models"):
        write_samples(tmp_path / "logged", tmp_path / "samples")
