"""A real model through the real lm-eval: any number of processes gives the same samples; groups,
calls and rankings are tasks.
"""

from typing import Any

import pytest
from conftest import ROOT

from loki_ds.recipe_file import load_suite
from loki_ds.refusal import Refusal
from loki_ds.retention.arm import run_lm_eval
from loki_ds.retention.evaluation import evaluate_arm
from loki_ds.retention.pairing import pair
from loki_ds.retention.parcels import Request
from loki_ds.tasks import check_tasks

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


def test_what_runs_model_written_code_is_refused_before_anything_else() -> None:
    include = REQUEST["include_path"]
    with pytest.raises(
        Refusal, match=r"humaneval run code that the model wrote, with all your rights.*allow_code_execution=true"
    ):
        check_tasks(["humaneval"], include, False, "retention")
    check_tasks(["humaneval"], include, True, "retention")


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
    check_tasks(names, "eval/tasks", True, "retention")
