"""A real model through the real lm-eval: any number of processes gives the same samples; groups,
calls and rankings are tasks.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from loki_ds.recipe_file import load_suite
from loki_ds.refusal import Refusal
from loki_ds.retention.arm import run_lm_eval
from loki_ds.retention.evaluation import evaluate_arm
from loki_ds.retention.pairing import pair
from loki_ds.retention.parcels import Request
from loki_ds.tasks import TaskFound, look_at_tasks, task_manager

PLAIN = {"num_fewshot": None, "limit": None, "apply_chat_template": False}
REQUEST: dict[str, Any] = {
    "model": str(ROOT / "recipes/tiny/model"),
    "dtype": "float32",
    "device": "cpu",
    "backend": "hf",
    "processes": 1,
    "tokenizer": None,
    "devices_per_model": 1,
    "batch_size": 8,
    "include_path": "tests/retention/data/tasks",
    "trust_remote_code": False,
    "allow_code_execution": False,
    "seed": 0,
    "groups": [
        {**PLAIN, "tasks": ["fixture_arithmetic"], "limit": 9},
        {**PLAIN, "tasks": ["fixture_calls"], "apply_chat_template": True},
        {**PLAIN, "tasks": ["fixture_reranking"], "apply_chat_template": True},
    ],
}


def request(**changes: Any) -> Request:
    return Request.model_validate({**REQUEST, **changes})


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return evaluate_arm(request())


def test_any_number_of_processes_gives_the_same_samples(one: dict[str, Any]) -> None:
    # bfcl's single irrelevance document leaves the second process none
    assert evaluate_arm(request(processes=2)) == one


def test_a_limit_is_a_random_sample_and_not_the_first(one: dict[str, Any]) -> None:
    places = [sample["place"] for sample in one["tasks"]["fixture_arithmetic"]["samples"]]
    assert len(places) == 9
    assert places != list(range(9))


def test_a_group_is_one_task_in_clusters(one: dict[str, Any]) -> None:
    task = one["tasks"]["fixture_calls"]
    assert [sample["cluster"] for sample in task["samples"]] == [
        "fixture_irrelevance",
        "fixture_simple",
        "fixture_simple",
    ]
    assert task["metrics"] == ["ast_match"]
    assert task["samples"][0]["scores"] == [1.0]  # whatever the tiny model says to "Hello", it is no call of this kind


def test_every_metric_of_a_ranking_is_paired(one: dict[str, Any]) -> None:
    rankings = [task for task in pair(one, one) if task.task == "fixture_reranking"]
    assert [task.metric for task in rankings] == ["ndcg@10", "map", "mrr"]
    assert all(0 < pairs.base <= 1 for task in rankings for pairs in task.pairs)


RUNS_CODE = {
    "unsafe_code": True,
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A task that runs code in a group and behind a tag, one of perplexity, and one whose data is
    not there.
    """
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answer": "2"}) + "\n")
    here, nowhere = ({"data_files": {"test": str(tmp_path / name)}} for name in ("d.jsonl", "gone.jsonl"))
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    error = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}
    lower = {"metric_list": [error, {"metric": "bleu"}]}
    # As LAMBADA has them: the perplexity first.
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    several = {"output_type": "loglikelihood", "metric_list": [perplexity, {"metric": "acc"}]}
    tasks = {
        "code": {**RUNS_CODE, "task": "code", "tag": "tagged", "dataset_kwargs": here},
        "grouped": {"group": "grouped", "task": ["code"]},
        "texts": {**RUNS_CODE, **rolling, "unsafe_code": False, "task": "texts", "dataset_kwargs": here},
        "lower": {**RUNS_CODE, **lower, "unsafe_code": False, "task": "lower", "dataset_kwargs": here},
        "several": {**RUNS_CODE, **several, "unsafe_code": False, "task": "several", "dataset_kwargs": here},
        "gone": {**RUNS_CODE, "unsafe_code": False, "task": "gone", "dataset_kwargs": nowhere},
    }
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("code", "code run code that the model wrote, with all your rights.*allow_code_execution=true"),
        ("grouped", r"code \(of grouped\) run code"),
        ("tagged", r"code \(of tagged\) run code"),
        ("texts", "task texts measures the perplexity of whole texts"),
        ("lower", "task lower has no metric .*: exact_match is better when lower, bleu is no mean over documents"),
        ("gone", "task gone cannot be loaded: .*gone.jsonl"),
    ],
)
def test_what_an_evaluation_would_find_after_the_training_is_refused_before(
    own_tasks: Path, name: str, says: str
) -> None:
    with pytest.raises(Refusal, match=says):
        look_at_tasks([name], str(own_tasks), False, "retention")


def test_tasks_are_found_with_their_documents(own_tasks: Path) -> None:
    found = look_at_tasks(["code", "grouped", "several"], str(own_tasks), True, "retention")
    assert found == [
        TaskFound("code", {"code": 1}, ["exact_match"]),
        TaskFound("grouped", {"code": 1}, ["exact_match"]),
        TaskFound("several", {"several": 1}, ["acc"]),
    ]


def test_the_main_metric_of_lambada_is_its_accuracy(own_tasks: Path) -> None:
    group = {**PLAIN, "tasks": ["several"]}
    found = run_lm_eval(request(groups=[group], include_path=str(own_tasks)))
    assert found["tasks"]["several"]["metrics"] == ["acc"]
    assert found["tasks"]["several"]["samples"][0]["scores"] in ([0.0], [1.0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backend": "vllm"}, "retention.backend is vllm, and vllm is not installed"),
        (
            {"groups": [{**PLAIN, "tasks": ["fixture_arithmetc"]}]},
            "lm-eval knows no task 'fixture_arithmetc'; did you mean",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        run_lm_eval(request(**changes))


@pytest.mark.parametrize("suite", sorted(path.stem for path in (ROOT / "eval/suites").glob("*.yaml")))
def test_lm_eval_knows_every_task_of_the_suites(suite: str) -> None:
    names = [task for group in load_suite(suite) for task in group.tasks]
    assert set(names) <= task_manager(names, "eval/tasks", "retention").task_index.keys()
