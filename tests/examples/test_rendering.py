"""One rendering: the tokens and labels that TRL itself would make, and what the assistant says
found by difference just where TRL's own marks are.
"""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from conftest import ROOT
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from loki_ds.examples.layouts import NotUnderstood, example_of
from loki_ds.examples.rendering import NOT_LEARNT, Renderer
from loki_ds.examples.templates import ChatTemplate, Needs, fitted, marked, own_template

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Tokens that families' templates name: what ends a turn must be one token, or it is text like any
# other.
SPECIAL = (
    "<s> </s> <|eot_id|> <|start_header_id|> <|end_header_id|> <|im_start|> <|im_end|> <start_of_turn> <end_of_turn> "
    "<|end|> <|endoftext|> <|END_OF_TURN_TOKEN|> [INST] [/INST]"
).split()
ENDS = {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "phi": "<|endoftext|>", "lfm2": "<|im_end|>"}
# Shapes that are published and that TRL does not carry.
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = {"messages": [{"role": "user", "content": "copy a b"}, {"role": "assistant", "content": "a b"}]}
TWICE = {"messages": [*PLAIN["messages"], {"role": "user", "content": "again"}, {"role": "assistant", "content": "a"}]}
TOOLACE = {
    "system": "functions: f",
    "conversations": [
        {"from": "user", "value": "call f"},
        {"from": "assistant", "value": "[f(a=1)]"},
        {"from": "tool", "value": "[1]"},
        {"from": "assistant", "value": "one"},
        {"from": "user", "value": "thanks"},
        {"from": "assistant", "value": "welcome"},
    ],
}
CALLS = {
    "messages": [
        {"role": "user", "content": "call f"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("f", "g")],
        },
        {"role": "tool", "name": "f", "content": "[1]"},
        {"role": "assistant", "content": "one"},
    ],
    "tools": [{"name": "f", "description": "does it", "parameters": {"type": "object", "properties": {}}}],
}


@cache
def tokenizer(end: str = "</s>") -> PreTrainedTokenizerBase:
    made = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    made.add_tokens(SPECIAL, special_tokens=True)
    made.bos_token, made.eos_token = "<s>", end
    return made


def template(name: str) -> ChatTemplate:
    """A family's own: TRL's copy of it, or the published shape."""
    text = {"olmo2": OLMO2, "mistral": MISTRAL}.get(name) or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    end = next((token for family, token in ENDS.items() if name.startswith(family)), "</s>")
    return ChatTemplate(tokenizer(end), text)


def learnt(row: dict[str, Any], one: ChatTemplate) -> str:
    found = Renderer(one.tokenizer, one, only_assistant=True).render(example_of(row))
    return one.tokenizer.decode([token for token in found.labels if token != NOT_LEARNT])


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
    assert learnt(TWICE, template(name)) == said


def test_a_turn_on_which_other_text_depends_is_refused() -> None:
    counting = (
        "{% for m in messages %}{{ m.role ~ (messages | map(attribute='content') | join | length) ~ m.content }}"
        "{% endfor %}"
    )
    with pytest.raises(NotUnderstood, match=r"on which more of the text depends than itself.*generation"):
        learnt(TWICE, ChatTemplate(tokenizer(), counting))


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
    answers = learnt(row, marked(one, template(name).text)[0])
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


def test_a_template_with_all_places_stays_as_it_is() -> None:
    stock = template("qwen2_5")
    assert fitted(stock, Needs.of(example_of(CALLS))) == (stock, [])
