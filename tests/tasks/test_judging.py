"""A task's own code is tried on its documents before a model is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from transformers import AutoTokenizer

from loki_ds.checking.prompts import prompts_in_words
from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.tasks.loading import look_at_tasks
from loki_ds.tasks.metrics import Metric, number_of

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
WRITES = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
}
CHOOSES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["x", "y"],
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "acc"}],
}
CODE = """
def raises(document, results):
    return {"exact_match": document["boom"]}


def gives_another(document, results):
    return {"accc": 1.0}


def gives_text(document, results):
    return {"exact_match": "yes"}


def gives_its_own(document, results):
    return {"exact_match": float(results[0] == document["a"])}
"""


def section(folder: Path, task: dict[str, Any], functions: str = "", **row: str) -> RetentionSection:
    """One task, of one row."""
    (folder / "utils.py").write_text(CODE)
    (folder / "rows.jsonl").write_text(json.dumps({"q": "copy", "a": "x", **row}) + "\n")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test"}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"task": "mine", **data, **task}) + functions)
    return RetentionSection.model_validate({"abilities": {"tasks": ["mine"]}, "include_path": str(folder)})


def generating(**changes: Any) -> dict[str, Any]:
    return {**WRITES, "generation_kwargs": {"until": [], "max_gen_toks": 4, **changes}}


def process(name: str) -> str:
    return f"process_results: !function utils.{name}\n"


@pytest.mark.parametrize(
    ("task", "functions", "says"),
    [
        (
            {**WRITES, "metric_list": [{"metric": "exakt", "aggregation": "mean"}]},
            "",
            "cannot judge a document .*Type",
        ),
        (WRITES, process("raises"), "cannot judge a document .*KeyError: 'boom'"),
        (WRITES, process("gives_another"), "declares the metric exact_match, and its own code gives accc"),
        (WRITES, process("gives_text"), "declares the metric exact_match, and its own code gives exact_match"),
        (
            {
                **WRITES,
                "filter_list": [{"name": "n", "filter": [{"function": "regex", "regex_pattern": "("}]}],
            },
            "",
            r"cannot judge a document .*missing \)",
        ),
        (
            generating(foo=2),
            "",
            r"generation_kwargs\.foo is nothing that",
        ),
        (
            generating(until=None),
            "",
            r"generation_kwargs\.until is None, allowed is a text",
        ),
        (generating(max_gen_toks=0), "", "asks for answers of 0 tokens"),
        ({**WRITES, "doc_to_text": "{{''}}"}, "", "has a document with an empty prompt"),
        ({**CHOOSES, "doc_to_target": "X"}, "", "has a document whose right answer is none of its choices"),
    ],
)
def test_what_lm_eval_would_find_late_is_named(task: dict[str, Any], functions: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=f"task mine:? {says}"):
        prompts_in_words(section(tmp_path, task, functions), TOKENIZER, 256)


@pytest.mark.parametrize(
    ("task", "functions"),
    [(WRITES, ""), (CHOOSES, ""), (WRITES, process("gives_its_own")), ({**WRITES, "repeats": 3}, "")],
)
def test_tasks_that_judge_are_taken(task: dict[str, Any], functions: str, tmp_path: Path) -> None:
    assert prompts_in_words(section(tmp_path, task, functions), TOKENIZER, 256) == []


def test_another_name_is_taken_where_it_is_the_same_metrics() -> None:
    """HumanEval declares `pass_at_k` and gives `pass@1`."""

    def number(name: str, numbers: Any) -> float | None:
        metric: Metric = {"name": name, "metric": name, "filter": "n", "unit": "score", "higher_is_better": True}
        return number_of(metric, [metric], numbers)

    assert number("pass_at_k", {"pass@1": 1.0}) == 1.0
    assert number("exact_match", {"accc": 1.0}) is None
    assert number("acc", {"acc": True, "acc_norm": 0.0}) == 1.0


@pytest.mark.parametrize(
    ("files", "asked", "says"),
    [
        ({"mine.yaml": "task: mine\n\tbroken"}, "mine", r"lm-eval cannot read .*mine\.yaml, which has the task 'mine'"),
        ({"mine.yaml": "task: mine\ninclude: gone.yaml\n"}, "mine", r"lm-eval cannot read .*mine\.yaml"),
        ({"g.yaml": "group: g\ntask: [gone_task]\n"}, "g", "the group g names the task 'gone_task'"),
        ({"mine.yaml": "task: mine\ndoc_to_text: !function gone.f\n"}, "mine", "task mine cannot be loaded"),
        ({"a.yaml": "task: mine\n", "b.yaml": "task: mine\n"}, "mine", r"the task 'mine' stands in .*a\.yaml and in"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_named(files: dict[str, str], asked: str, says: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(Refusal, match=f"retention: {says}"):
        look_at_tasks([asked], [str(tmp_path)], False, "retention")


@pytest.mark.parametrize("asked", ["mine", "grouped"])
@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("metadata: {version: 1, version: 2}\n", r"in line \d+ has the key 'version' twice"),
        ("include: more.yaml\n", r"more\.yaml: what begins in line 1 has the key 'num_fewshot' twice"),
    ],
)
def test_a_key_twice_in_a_task_is_refused(part: str, says: str, asked: str, tmp_path: Path) -> None:
    section(tmp_path, WRITES, part)
    (tmp_path / "more.yaml").write_text("num_fewshot: 0\nnum_fewshot: 1\n")
    (tmp_path / "group.yaml").write_text("group: grouped\ntask: [mine]\n")
    with pytest.raises(Refusal, match=says):
        look_at_tasks([asked], [str(tmp_path)], False, "retention")


def test_a_broken_neighbour_is_nobodys_business(tmp_path: Path) -> None:
    good = section(tmp_path, WRITES)
    broken = "task: other\ndoc_to_text: !function gone.f\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
    (tmp_path / "other.yaml").write_text(broken)
    assert prompts_in_words(good, TOKENIZER, 256) == []


def test_a_folder_of_tasks_must_be_one(tmp_path: Path) -> None:
    from loki_ds.tasks.loading import task_manager

    with pytest.raises(Refusal, match=r"retention\.include_path is .*nowhere, which is no folder of tasks"):
        task_manager(["tiny_facts"], [str(tmp_path / "nowhere")], "retention.abilities")


def test_tasks_may_stand_in_several_folders(tmp_path: Path) -> None:
    folders = [str(ROOT / "eval/tasks/tiny"), str(ROOT / "tests/retention/data/tasks")]
    found = look_at_tasks(["tiny_facts", "fixture_calls"], folders, False, "retention")
    assert [task.name for task in found] == ["tiny_facts", "fixture_calls"]
    (tmp_path / "facts.yaml").write_text("task: tiny_facts")
    with pytest.raises(
        Refusal, match=r"the task 'tiny_facts' stands in .*tiny/facts\.yaml and in .*facts\.yaml, allowed"
    ):
        look_at_tasks(["tiny_facts"], [*folders, str(tmp_path)], False, "retention")
