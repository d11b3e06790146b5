"""The user's own held-out chats as a task: a document for every answer, asked by the template that
trains, right if it makes the same calls.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from published import CALLS, TEMPLATES, TOOLACE
from transformers import AutoTokenizer

from loki_ds.checking.tasks import in_words
from loki_ds.judges.held_out_calls import documents, judged
from loki_ds.recipe.sections import ModelSection, RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.question import Arm, Question
from loki_ds.retention.worker import run_lm_eval
from loki_ds.tasks.loading import look_at_tasks

MODEL = ModelSection(path=str(ROOT / "recipes/tiny/model"), dtype="float32")
CALLED = [["f", {"a": 1}], ["g", {"a": 1}]]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """As the documentation says it."""
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (CALLS, TOOLACE)))
    (tmp_path / "calls.py").write_text("from loki_ds.judges.held_out_calls import HeldOutCalls\n")
    (tmp_path / "my_calls.yaml").write_text(
        "task: my_calls\nclass: !function calls.HeldOutCalls\n"
        f"dataset_kwargs: {{path: {tmp_path / 'chats.jsonl'}}}\n"
        "generation_kwargs: {until: [], max_gen_toks: 8}\n"  # the tiny model has room for 256 tokens
    )
    return tmp_path


def section(folder: Path, **changes: Any) -> RetentionSection:
    new_task = {"tasks": ["my_calls"], "apply_chat_template": True, **changes}
    own = {"abilities": {"tasks": ["tiny_facts"], "limit": 2}, "new_task": new_task, "include_path": [str(folder)]}
    return RetentionSection.model_validate(own)


def test_every_answer_is_a_document(own: Path) -> None:
    found = documents(str(own / "chats.jsonl"))["test"]
    assert [json.loads(one["expected"]) for one in found] == [CALLED, [], [["f", {"a": 1}]], [], []]
    assert [one["shown"] for one in found][1:3] == ["no call", "[f(a=1)]"]
    assert found["id"][:2] == ["line 1, turn 2", "line 1, turn 4"]
    assert [message["role"] for message in json.loads(found[1]["messages"])] == ["user", "assistant", "tool"]


def test_its_two_sides_are_two_tasks_of_one_file(own: Path) -> None:
    """The silent side names the other; check says so, and what is missing where it is not asked."""
    chats = str(own / "chats.jsonl")
    sides = {turns: documents(chats, turns)["test"]["expected"] for turns in ("calls", "silent")}
    assert [json.loads(expected) for expected in sides["calls"]] == [CALLED, [["f", {"a": 1}]]]
    assert sides["silent"] == ["[]"] * 3
    with pytest.raises(Refusal, match=r"dataset_kwargs\.turns is 'mute', allowed are all, calls, silent"):
        documents(chats, "mute")
    (own / "my_silence.yaml").write_text(
        (own / "my_calls.yaml")
        .read_text()
        .replace("my_calls", "my_silence")
        .replace("jsonl}", "jsonl, turns: silent}\nmetadata: {opposite: my_calls}")
    )
    silence, calls = look_at_tasks(["my_silence", "my_calls"], [str(own)], False, "retention")
    assert (silence.opposite, calls.opposite) == ("my_calls", None)
    asked = RetentionSection.model_validate(
        {"abilities": {"tasks": ["my_silence", "my_calls"], "apply_chat_template": True}}
    )
    assert in_words(asked, [silence, calls])[0][1].endswith("; the other side of my_calls")
    alone = RetentionSection.model_validate({"abilities": {"tasks": ["my_silence"], "apply_chat_template": True}})
    missing = "its opposite my_calls is not asked, and silence alone is no skill"
    assert in_words(alone, [silence])[0][1].endswith(missing)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("[g(a=1), f(a=1)]", True),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n' * 2, False),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {"a": 1.0}}', True),
        ("[f(a=1)]", False),
        ("[f(a=1), g(a=2)]", False),
        ("[f(a=1), g(a=1), g(a=1)]", False),
        ("I cannot.", False),
    ],
)
def test_the_same_calls_are_right_in_any_notation(answer: str, right: bool) -> None:
    assert judged({"expected": json.dumps(CALLED)}, [answer]) == {"calls_match": int(right)}


def test_where_nothing_is_called_nothing_is_right() -> None:
    assert [judged({"expected": "[]"}, [one])["calls_match"] for one in ("Sorry.", "[f(a=1)]")] == [1, 0]


def test_the_models_own_template_shows_the_functions(own: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    asked = section(own).model_copy(update={"chat_template_args": {"enable_thinking": False}})
    found = look_at_tasks(["my_calls"], [str(own)], False, "retention")
    question = Question(MODEL, asked.model_copy(update={"abilities": []}), found)
    request = question.request(Arm(ROOT / "recipes/tiny/model", "tiny", tokenizer=tmp_path / "tokenizer"))
    task = run_lm_eval(request, tmp_path)["tasks"]["my_calls"]
    (first, *_) = task["samples"]
    assert "<tools>" in first["prompt"]
    assert "does it" in first["prompt"]
    assert first["prompt"].endswith("</think>\n\n")
    assert (len(task["samples"]), task["metrics"][0]["name"]) == (5, "calls_match")


def test_without_a_template_it_is_refused_before_the_training(own: Path) -> None:
    found = look_at_tasks(["my_calls"], [str(own)], False, "retention")
    asked = section(own, apply_chat_template=False).model_copy(update={"abilities": []})
    with pytest.raises(Refusal, match="task my_calls puts chats to the model: apply_chat_template must be true"):
        in_words(asked, found)
    question = Question(MODEL, asked, found)
    with pytest.raises(Refusal, match="task my_calls puts chats to the model"):  # two checkpoints are asked unchecked
        run_lm_eval(question.request(Arm(ROOT / "recipes/tiny/model", "tiny")), own)


def test_what_is_no_chat_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(Refusal, match=r"t\.jsonl: line 1 is no chat"):
        documents(str(tmp_path / "t.jsonl"))
