"""One rendering: the tokens and labels that TRL itself would make, and what the assistant says
found by difference just where TRL's own marks are.
"""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from datasets import Dataset
from published import CALLS, TEMPLATES, TOOLACE, template, tokenizer
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import has_generation_markers

from loki_ds.data.layouts import example_of
from loki_ds.data.messages import NotUnderstood
from loki_ds.data.rendering import NOT_LEARNED, Renderer
from loki_ds.data.templates import ChatTemplate, Needs, fitted, marked, own_template, unmarked
from loki_ds.judges.notations import parse_calls

PLAIN = {"messages": [{"role": "user", "content": "copy a b"}, {"role": "assistant", "content": "a b"}]}
TWICE = {"messages": [*PLAIN["messages"], {"role": "user", "content": "again"}, {"role": "assistant", "content": "a"}]}


def learned(row: dict[str, Any], one: ChatTemplate, only_assistant: bool = True) -> str:
    found = Renderer(one.tokenizer, one, only_assistant).render(example_of(row))
    return one.tokenizer.decode([token for token in found.labels if token != NOT_LEARNED])


# --- as TRL does ----------------------------------------------------------------------------------


def by_trl(rows: list[dict[str, Any]], **settings: Any) -> list[tuple[list[int], list[int]]]:
    """TRL's own preparation of a data set."""
    core = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    arguments = SFTConfig(
        output_dir="/tmp/none", max_length=None, use_cpu=True, bf16=False, report_to="none", **settings
    )
    pairs = arguments.completion_only_loss if arguments.completion_only_loss is not None else "completion" in rows[0]
    trainer = SimpleNamespace(_tokenizer=core, chat_template=None, completion_only_loss=pairs)
    prepared = SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), core, arguments, False, None, "train")  # type: ignore[arg-type]
    return [(row["input_ids"], row["labels"]) for row in prepared]


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([PLAIN, TWICE], {"assistant_only_loss": True}),
        ([PLAIN, TWICE], {}),
        ([{"text": "one"}, {"text": "two three"}], {}),
        ([{"prompt": "copy a", "completion": " a"}], {}),
        ([{"prompt": "copy a", "completion": " a"}], {"completion_only_loss": False}),
        ([{"prompt": PLAIN["messages"][:1], "completion": PLAIN["messages"][1:]}], {}),
        ([{"prompt": TWICE["messages"][:3], "completion": TWICE["messages"][3:]}], {"assistant_only_loss": True}),
    ],
)
def test_tokens_and_labels_are_those_that_trl_makes(rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    core = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    renderer = Renderer(
        core,
        own_template(core, None, "m"),
        settings.get("assistant_only_loss", False),
        settings.get("completion_only_loss"),
    )
    ours = [renderer.render(example_of(row)) for row in rows]
    assert [(one.input_ids, one.labels) for one in ours] == by_trl(rows, **settings)


# --- what the assistant says ----------------------------------------------------------------------


@pytest.mark.parametrize("row", [PLAIN, TWICE], ids=["one answer", "two"])
@pytest.mark.parametrize(
    "name", ["cohere", "gemma", "gemma3", "lfm2_v2", "llama3", "phi3", "phi3_5", "qwen3_instruct_2507"]
)
def test_by_difference_is_what_trl_marks(name: str, row: dict[str, Any]) -> None:
    """No mark is needed: both find the same tokens of the same text."""
    stock = template(name)
    with_marks, _ = marked(stock, stock.text)
    assert with_marks.text != stock.text
    found = [Renderer(one.tokenizer, one, only_assistant=True).render(example_of(row)) for one in (stock, with_marks)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama3_1", "a b<|eot_id|>a<|eot_id|>"),
        ("llama3_2", "a b<|eot_id|>a<|eot_id|>"),
        ("olmo2", "a b</s>\na</s>"),
        ("mistral", " a b</s> a</s>"),
    ],
)
def test_templates_that_nobody_marked_learn_the_answers_with_their_ends(name: str, said: str) -> None:
    assert learned(TWICE, template(name)) == said


# Those of models for pictures want parts of text, and are refused (tests/stages/test_check.py).
FOR_PICTURES = {"idefics3", "llava_next", "smolvlm"}
ALL = [
    path.stem
    for path in sorted(TEMPLATES.glob("*.jinja"))
    if not path.stem.endswith("_training") and path.stem not in FOR_PICTURES
]


@pytest.mark.parametrize("row", [TWICE, TOOLACE, CALLS], ids=["chat", "ToolACE", "calls"])
@pytest.mark.parametrize("name", [*ALL, "olmo2", "mistral"])
def test_every_published_template_learns_the_answers_and_nothing_else(name: str, row: dict[str, Any]) -> None:
    example, stock = example_of(row), template(name)
    by_difference = not has_generation_markers(marked(stock, stock.text)[0].text)
    one, _ = fitted(stock, Needs.of(example), by_difference)
    found = learned(row, marked(one, stock.text)[0])
    for message in example.messages:
        if message["role"] == "assistant":
            assert message["content"] in found
            assert all(call["function"]["name"] in found for call in message.get("tool_calls", ()))
        else:
            assert message["content"] not in found


@pytest.mark.parametrize("name", sorted(FOR_PICTURES))
def test_templates_of_models_for_pictures_show_no_text(name: str) -> None:
    assert template(name).complaint is not None


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3", "gemma3"])
@pytest.mark.parametrize("row", [TWICE, CALLS], ids=["chat", "calls"])
def test_without_marks_it_renders_the_same(name: str, row: dict[str, Any]) -> None:
    """For engines that know no `{% generation %}` (llama.cpp's)."""
    example, stock = example_of(row), template(name)
    one = marked(fitted(stock, Needs.of(example))[0], stock.text)[0]
    plain = ChatTemplate(one.tokenizer, unmarked(one.text))
    assert "generation %}" in one.text
    assert "generation %}" not in plain.text
    assert plain.render(example.messages, example.tools) == one.render(example.messages, example.tools)


def test_a_turn_on_which_other_text_depends_is_refused() -> None:
    counting = (
        "{% for m in messages %}{{ m.role ~ (messages | map(attribute='content') | join | length) ~ m.content }}"
        "{% endfor %}"
    )
    with pytest.raises(NotUnderstood, match=r"on which more of the text depends than itself.*generation"):
        learned(TWICE, ChatTemplate(tokenizer(), counting))


THINK = "qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 nemotron_3_nano nemotron_3_super glm4moe".split()


@pytest.mark.parametrize("name", THINK)
def test_an_empty_thought_is_shown_and_not_learned(name: str) -> None:
    """Or the model would learn never to think; a thought of its own is learned."""
    one = marked(template(name), template(name).text)[0]
    assert re.search(r"<think>\s*</think>", one.render(PLAIN["messages"]))
    pair = {"prompt": PLAIN["messages"][:1], "completion": PLAIN["messages"][1:]}
    for row, only_assistant in ((PLAIN, True), (pair, True), (pair, False)):
        assert learned(row, one, only_assistant).lstrip().startswith("a b")
    thought = {"messages": [PLAIN["messages"][0], {**PLAIN["messages"][1], "reasoning_content": "copy"}]}
    assert "copy" in learned(thought, one)
    assert "</think>" in learned(thought, one)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3"])
def test_most_templates_put_nothing_before_an_answer(name: str) -> None:
    assert template(name).empty_thought == ""


# --- what a template has no place for -------------------------------------------------------------


@pytest.mark.parametrize("row", [TOOLACE, CALLS], ids=["ToolACE", "calls"])
@pytest.mark.parametrize(
    "name",
    ["llama3_1", "llama3_2", "llama3", "gemma", "gemma3", "qwen2_5", "qwen3", "phi3", "phi3_5", "olmo2", "mistral"],
)
def test_nothing_that_a_conversation_says_is_dropped(name: str, row: dict[str, Any]) -> None:
    example = example_of(row)
    one, _ = fitted(template(name), Needs.of(example))
    text = one.render(example.messages, example.tools)
    for message in example.messages:
        assert message["content"].strip() in text
        for call in message.get("tool_calls", ()):
            assert call["function"]["name"] in text
            assert "a" in text
    for tool in example.tools:
        assert tool["function"]["description"] in text
    answers = learned(row, marked(one, template(name).text)[0])
    assert "one" in answers
    assert "[1]" not in answers


@pytest.mark.parametrize("name", ["gemma3", "mistral", "olmo2", "llama3_1"])
def test_conversations_that_a_template_takes_are_rendered_as_ever(name: str) -> None:
    stock = template(name)
    for lacking in (Needs(tool_turns=True), Needs(system=True, tool_turns=True), Needs(calls=True, several_calls=True)):
        one, _ = fitted(stock, lacking)
        for row in (PLAIN, TWICE):
            messages = example_of(row).messages
            assert one.render(messages) == stock.render(messages)
            prompt = {"add_generation_prompt": True}
            assert one.render(messages[:1], **prompt) == stock.render(messages[:1], **prompt)


def test_what_is_written_elsewhere_is_said() -> None:
    one, said = fitted(template("gemma"), Needs.of(example_of(TOOLACE)))
    assert said == ["what a tool gave is a turn of the user's", "the system turn opens the first turn of the user"]
    text = one.render(example_of(TOOLACE).messages)
    assert "<start_of_turn>user\nfunctions: f\n\ncall f<end_of_turn>" in text
    assert "<start_of_turn>user\n[1]<end_of_turn>" in text


ARGUMENTS = {"city": "Lima", "on": True, "day": None, "n": 1.5, "deep": {"q": 'it\'s "so"', "all": [1, False, {}]}}


@pytest.mark.parametrize("name", ["llama3_1", "gemma", "olmo2"])
def test_calls_as_text_are_read_back_as_they_were(name: str) -> None:
    """Several in a turn, which Llama 3.1's own template refuses; its prompt for JSON goes, too."""
    called = [{"type": "function", "function": {"name": one, "arguments": ARGUMENTS}} for one in ("f", "g")]
    row = {**CALLS, "messages": [CALLS["messages"][0], {"role": "assistant", "content": "", "tool_calls": called}]}
    example = example_of(row)
    one, said = fitted(template(name), Needs.of(example))
    text = one.render(example.messages, example.tools)
    assert text.count('"name": "f"') == 1  # where the functions are listed
    assert "functions are listed in the system turn, as JSON" in said
    assert "Respond in the format" not in text
    assert parse_calls(text[text.rindex("[f(") : text.rindex(")]") + 2]) == [("f", ARGUMENTS), ("g", ARGUMENTS)]


def test_a_template_with_all_places_stays_as_it_is() -> None:
    stock = template("qwen2_5")
    assert fitted(stock, Needs.of(example_of(CALLS))) == (stock, [])
