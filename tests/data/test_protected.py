"""Prompts and chats become token ids; subjects are sampled evenly; mistakes are named by line."""

import copy
import json
from pathlib import Path

import pytest
from conftest import ROOT
from published import TEMPLATES
from transformers import AutoTokenizer

from loki_ds.data.protected import ProtectedPrompt, ProtectedSet, load_protected
from loki_ds.recipe.sections import ProtectedSection
from loki_ds.refusal import Refusal

TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")


def section(path: Path, rows: list, **settings: object) -> ProtectedSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ProtectedSection(prompts=str(path), **settings)


def test_text_is_taken_as_it_is_and_chats_are_rendered(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "hello"}
    answered = [asked, {"role": "assistant", "content": "lamp"}]
    rows = [{"prompt": "copy lamp :"}, {"messages": [asked]}, {"messages": answered}]
    text, chat, whole = load_protected(section(tmp_path / "p", rows), TOKENIZER).prompts
    assert TOKENIZER.decode(text.tokens) == "copy lamp :"
    assert TOKENIZER.decode(chat.tokens) == "<|user|> hello<|assistant|>"
    assert TOKENIZER.decode(whole.tokens) == TOKENIZER.apply_chat_template(answered, tokenize=False)


def test_a_chats_tools_are_shown(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "does it", "parameters": {}}}]
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    rows = [{**chat, "tools": tools}, {**chat, "tools": json.dumps(tools)}, chat]
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    with_tools, as_text, without = load_protected(section(tmp_path / "p.jsonl", rows), tokenizer).tokens
    assert with_tools == as_text
    assert len(with_tools) > len(without) + 50


def test_sampling_is_by_subject_and_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"copy {i} :", "subject": "ab"[i % 2]} for i in range(40)]
    drawn = load_protected(section(tmp_path / "p", rows, per_subject=5, seed=1), TOKENIZER).prompts
    assert [prompt.subject for prompt in drawn].count("a") == 5
    assert len(drawn) == 10
    assert drawn == load_protected(section(tmp_path / "p", rows, per_subject=5, seed=1), TOKENIZER).prompts
    assert drawn != load_protected(section(tmp_path / "p", rows, per_subject=5, seed=2), TOKENIZER).prompts
    assert {p.subject for p in load_protected(section(tmp_path / "p", rows, subjects=["b"]), TOKENIZER).prompts} == {
        "b"
    }


def test_attribution_can_look_at_an_earlier_token(tmp_path: Path) -> None:
    rows = [{"prompt": "copy lamp chair :"}]
    (prompt,) = load_protected(section(tmp_path / "p", rows, token=-2), TOKENIZER).prompts
    assert TOKENIZER.decode(prompt.tokens) == "copy lamp chair"
    with pytest.raises(Refusal, match=r"line 1 is \d+ tokens long; attribution was asked to look at token -40"):
        load_protected(section(tmp_path / "p", rows, token=-40), TOKENIZER)


def test_lm_eval_tasks_are_sources_with_their_own_prompts_and_shots() -> None:
    settings = {
        "tasks": ["tiny_facts", "tiny_copying"],
        "include_path": str(ROOT / "eval/tasks/tiny"),
        "per_subject": 3,
    }
    plain = load_protected(ProtectedSection(**settings), TOKENIZER).prompts
    assert [prompt.subject for prompt in plain] == ["tiny_facts"] * 3 + ["tiny_copying"] * 3
    documents = [
        json.loads(line)["prompt"]
        for line in (ROOT / "recipes/tiny/data/abilities/copying.jsonl").read_text().splitlines()
    ]
    assert TOKENIZER.decode(plain[3].tokens) == documents[plain[3].line - 1]
    shots = load_protected(ProtectedSection(**settings, num_fewshot=2), TOKENIZER).prompts
    assert TOKENIZER.decode(shots[3].tokens).endswith(documents[plain[3].line - 1])
    assert TOKENIZER.decode(shots[3].tokens).count("copy") == 3
    assert shots == load_protected(ProtectedSection(**settings, num_fewshot=2), TOKENIZER).prompts
    with pytest.raises(Refusal, match="lm-eval knows no task 'tiny_fact'; did you mean 'tiny_facts'"):
        load_protected(ProtectedSection(tasks=["tiny_fact"], include_path=settings["include_path"]), TOKENIZER)


def test_a_tasks_prompt_is_the_one_it_is_evaluated_with(tmp_path: Path) -> None:
    """Shots as turns of their own, its beginning of an answer, and no shots where it fixes none."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"q": f"copy {x}", "a": x}) + "\n" for x in "abc"))
    task = {
        **{"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}}},
        **{"test_split": "test", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"},
    }
    (tmp_path / "begun.yaml").write_text(json.dumps({**task, "task": "begun", "gen_prefix": "It is"}))
    (tmp_path / "bare.yaml").write_text(json.dumps({**task, "task": "bare", "num_fewshot": 0}))
    own = {"include_path": str(tmp_path), "apply_chat_template": True, "num_fewshot": 1, "per_subject": 1}
    begun, bare = (load_protected(ProtectedSection(tasks=[name], **own), TOKENIZER) for name in ("begun", "bare"))
    (text,), (alone,) = ([TOKENIZER.decode(one) for one in found.tokens] for found in (begun, bare))
    assert text.count("It is") == 2
    assert text.endswith("It is")
    assert text.count("user") == 2
    assert alone.count("copy") == 1


def test_interleaving_takes_one_of_each_subject_in_turn() -> None:
    prompts = [ProtectedPrompt([1], subject, i) for i, subject in enumerate("aaabbc")]
    assert ProtectedSet(prompts).order == [0, 3, 5, 1, 4, 2]


@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([], {}, "the protected set is empty"),
        ([{"text": "a"}], {}, "line 1 has neither 'prompt' nor 'messages'"),
        ([["a"]], {}, "line 1 has neither"),
        ([{"prompt": "a"}, {"prompt": ""}], {}, "line 2 is an empty prompt"),
        (
            [{"prompt": "a", "subject": "facts"}],
            {"subjects": ["fact"]},
            "no prompt has the subject 'fact'.*did you mean 'facts'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: list, settings: dict, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        load_protected(section(tmp_path / "p", rows, **settings), TOKENIZER)


@pytest.mark.parametrize(
    ("content", "says"), [(b"{\n", "line 1 is not JSON"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be read")]
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(Refusal, match=says):
        load_protected(ProtectedSection(prompts=str(tmp_path / "p")), TOKENIZER)
