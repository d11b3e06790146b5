"""Tasks of one's own, asked before anything trains: prompts that would be cut, answers longer than
the context, shots that hold their own answer, files beside the task."""

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
from loki_ds.tasks.loading import look_at_tasks, task_manager
from loki_ds.tasks.prompts import draws_shots_by_document

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
MOST = 256
ROWS = [
    {"question": f"where does {name} live", "answer": f"town{i}"} for i, name in enumerate("maria john rosa".split())
]
TASK = {
    "task": "homes",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "homes.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def own(folder: Path, rows: list[dict] = ROWS, **changes: Any) -> str:
    """A folder with a task and its questions beside it."""
    (folder / "homes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "homes.yaml").write_text(yaml.safe_dump(TASK | changes))
    return str(folder)


def said(folder: str, **group: Any) -> list[str]:
    asked = {"abilities": {"tasks": ["homes"], **group}, "include_path": folder}
    return [line for _, line in prompts_in_words(RetentionSection.model_validate(asked), TOKENIZER, MOST)]


def test_data_files_are_found_beside_the_task(tmp_path: Path) -> None:
    (found,) = look_at_tasks(["homes"], [own(tmp_path)], False, "retention")
    assert found.documents == {"homes": 3}
    assert said(own(tmp_path)) == []


def test_answers_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    folder = own(tmp_path, generation_kwargs={"until": ["\n"], "max_gen_toks": 300})
    with pytest.raises(Refusal, match=r"task homes asks for answers of up to 300 tokens \(max_gen_toks\), .* 256"):
        said(folder)


@pytest.mark.parametrize(("kind", "metric"), [("generate_until", "exact_match"), ("loglikelihood", "acc")])
def test_prompts_that_would_be_cut_are_counted(kind: str, metric: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "copy a b " * 200, "answer": "x"}]
    (line,) = said(own(tmp_path, rows, output_type=kind, metric_list=[{"metric": metric, "aggregation": "mean"}]))
    assert line.startswith("homes: 1 of 4 prompts looked at lose their beginning: they have up to ")
    assert line.endswith("the model's room is 256")


def test_more_shots_than_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="task homes asks for 5 shots, and has 3 documents to draw them from"):
        said(own(tmp_path), num_fewshot=5)


@pytest.mark.parametrize("seed", range(10))
def test_no_shot_is_the_document_itself(seed: int, tmp_path: Path) -> None:
    """Where a task has a test split alone, lm-eval draws shots from what is asked."""
    folder = own(tmp_path, num_fewshot=2)
    loaded = task_manager(["homes"], [folder], "retention").load(["homes"])["tasks"]
    task = draws_shots_by_document(loaded["homes"], seed)
    for row in task.eval_docs:
        prompt = task.fewshot_context(row, num_fewshot=2)
        assert row["answer"] not in prompt
        assert prompt.count(" town") == 2
