"""Answers are kept by all that determines them, and by nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from loki_ds.disk.files import weights_digest
from loki_ds.recipe.sections import ModelSection, RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.question import Answers, Arm, Asked, Question, model_digest
from loki_ds.tasks.loading import look_at_tasks


def asked(model: Path, rows: list[str], folder: Path, **changes: Any) -> dict[str, Any]:
    """The key of a model's answers to a task over these rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": row, "answer": "2"}) + "\n" for row in rows))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks/own.yaml").write_text(json.dumps(task))
    given = {"abilities": {"tasks": ["own"]}, "include_path": str(folder / "tasks"), **changes}
    section = RetentionSection.model_validate(given)
    found = look_at_tasks(["own"], section.include_path, False, "retention")
    question = Question(ModelSection(path=str(model), dtype="float32"), section, found)
    return question.key(Arm(model, model_digest(model, weights_digest(model))))


def nothing(model: Path) -> None:
    pass


def another_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")


def another_norm(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))


def a_card(model: Path) -> None:
    (model / "README.md").write_text("hello")


@pytest.mark.parametrize(
    ("edit", "rows", "changes", "same"),
    [
        (nothing, ["a", "b"], {}, True),
        (a_card, ["a", "b"], {}, True),
        (nothing, ["a", "b"], {"margin": 0.2}, True),
        (another_template, ["a", "b"], {}, False),
        (another_norm, ["a", "b"], {}, False),
        (nothing, ["a", "c"], {}, False),  # as many documents, of a file that lies anywhere
        (nothing, ["a", "b"], {"seed": 1}, False),
    ],
)
def test_answers_are_asked_for_again_when_anything_changes(
    edit: Callable[[Path], None], rows: list[str], changes: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(ROOT / "recipes/tiny/model", tmp_path / "model"))
    before = Answers(tmp_path).file(asked(model, ["a", "b"], tmp_path))
    edit(model)
    assert (Answers(tmp_path).file(asked(model, rows, tmp_path, **changes)) == before) is same


def test_published_answers_of_something_else_are_refused(tmp_path: Path) -> None:
    """Under the right name, and of other libraries by what they say."""
    here, key = Answers(tmp_path / "here", tmp_path / "shared"), {"model": "a", "libraries": {"lm_eval": "0.4.9"}}
    of_base: Any = Asked(request=None, key=key, of_all_runs=True)
    here.write(of_base, {"tasks": {}, "tokenizer": "", "libraries": {}})
    there = Answers(tmp_path / "there", tmp_path / "shared")
    assert there.hold(of_base)
    assert there.read(key) == here.read(key)
    published = next((tmp_path / "shared").iterdir())
    published.write_text(json.dumps({"key": {**key, "libraries": {"lm_eval": "0.1"}}}))
    with pytest.raises(Refusal, match="are not those of this base, these tasks and these libraries; delete the file"):
        Answers(tmp_path / "elsewhere", tmp_path / "shared").hold(of_base)
