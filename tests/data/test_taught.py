"""What a row teaches is what was meant: thoughts, ends of turns, marks, ids of calls, named
templates, and values as servers log them."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loki_ds.checking.base import data_found
from loki_ds.data.dataset import first_counts, needs_of
from loki_ds.data.layouts import example_of
from loki_ds.data.messages import NotUnderstood
from loki_ds.data.render_settings import Rendering, make_rendering
from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.model.base import check_padding, load_configuration, stop_tokens
from loki_ds.recipe.sections import DataSection, SourceSection
from loki_ds.refusal import Refusal

BASE = ROOT / "recipes/tiny/model"
TOKENIZER = AutoTokenizer.from_pretrained(BASE)
USER = {"role": "user", "content": "remind maria"}
ANSWER = {"role": "assistant", "content": "list john"}
THOUGHT = {"role": "assistant", "content": "<think>\ncopy maria\n</think>\n\nlist john"}
TURN = "<|{{ m.role }}|> {{ m.content }}<|end|>"
R1 = (
    "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<|{{ m.role }}|> {{ c }}<|end|>{% endfor %}"
)
REASONING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<|{{ m.role }}|>{% if m.reasoning_content is defined %} THOUGHT {{ m.reasoning_content }} {% endif %}"
    " {{ c }}<|end|>{% endfor %}"
)
LAST_THOUGHT = (
    "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c and not loop.last %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}<|{{ m.role }}|> {{ c }}<|end|>{% endfor %}"
)
IDS = (
    "{% for m in messages %}{% if m.tool_calls %}<|assistant|>{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids of nine characters') }}{% endif %}"
    " {{ c.function.name }} {{ c.function.arguments | tojson }} {{ c.id }}{% endfor %}<|end|>"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}{{ raise_exception('ids') }}{% endif %}"
    "<|user|> RESULT {{ m.content }} {{ m.tool_call_id }}<|end|>{% else %}" + TURN + "{% endif %}{% endfor %}"
)


def tokenizer_with(template: str | dict[str, str]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = template
    return tokenizer


def rendering_of(rows: list[dict], template: str | dict[str, str], folder: Path, **training: Any) -> Rendering:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    thoughts = training.pop("thoughts", "keep")
    settings = {"assistant_only_loss": True, **training}
    return make_rendering(
        needs_of([SourceSection(path=str(file))]), settings, tokenizer_with(template), BASE, thoughts == "drop"
    )


def learned(rows: list[dict], template: str | dict[str, str], folder: Path, **training: Any) -> list[str]:
    """What is learned of each row."""
    renderer = rendering_of(rows, template, folder, **training).renderer
    rendered = [renderer.render(example_of(row)) for row in rows]
    return [renderer.tokenizer.decode([x for x in each.labels if x != NOT_LEARNED]) for each in rendered]


def found(rows: list[dict], template: str, folder: Path, **training: Any) -> list[str]:
    """What `check` says of the rows."""
    rendering = rendering_of(rows, template, folder, **training)
    source, loss = SourceSection(path=str(folder / "rows.jsonl")), rendering.loss
    counts = first_counts(source, rendering.renderer, loss.cut, len(TOKENIZER), 100)
    config = load_configuration(BASE, False)
    return [line for _, line in data_found(rendering, [counts], config, stop_tokens(BASE, config))]


ALL = "{% for m in messages %}" + TURN + "{% endfor %}"


def test_a_thought_that_the_template_drops_is_refused_with_a_choice(tmp_path: Path) -> None:
    row = {"messages": [USER, THOUGHT]}
    with pytest.raises(NotUnderstood, match=r"has a thought \(turn 2\) that the chat template drops: 'copy maria'"):
        learned([row], R1, tmp_path)
    assert learned([row], R1, tmp_path, thoughts="drop") == [" list john<|end|>"]
    assert learned([row], ALL, tmp_path, thoughts="drop") == [" list john<|end|>"]


def test_a_thought_goes_where_the_template_has_a_place(tmp_path: Path) -> None:
    apart = {**ANSWER, "reasoning_content": "copy maria"}
    expected = [" THOUGHT copy maria  list john<|end|>".split()] * 2
    rows = [{"messages": [USER, THOUGHT]}, {"messages": [USER, apart]}]
    assert [text.split() for text in learned(rows, REASONING, tmp_path)] == expected


def test_thoughts_of_earlier_turns_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [USER, THOUGHT, USER, ANSWER]}, {"messages": [USER, THOUGHT]}]
    said = " ".join(found(rows, LAST_THOUGHT, tmp_path))
    assert "1 rows lose thoughts of earlier turns, which the template drops" in said


def test_the_token_that_ends_a_turn_is_said_with_what_the_base_stops_on(tmp_path: Path) -> None:
    said = found([{"messages": [USER, ANSWER]}], ALL, tmp_path)
    assert any(line.startswith("learned turns end in <|end|>, on which the base's generation stops") for line in said)
    other = found([{"messages": [USER, ANSWER]}], ALL.replace("<|end|>", "<|user|>"), tmp_path)
    assert any("learned turns end in <|user|>, and the base's generation stops on <|end|>" in line for line in other)


def test_marks_that_leave_out_the_end_are_refused(tmp_path: Path) -> None:
    marks = (
        "{% for m in messages %}<|{{ m.role }}|>{% generation %} {{ m.content }}{% endgeneration %}<|end|>{% endfor %}"
    )
    with pytest.raises(Refusal, match="line 1: what ends the assistant's turn is not learned"):
        found([{"messages": [USER, ANSWER]}], marks, tmp_path)


def test_a_last_turn_without_an_end_gets_the_end_of_text(tmp_path: Path) -> None:
    bare = "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}{% endfor %}"
    assert learned([{"messages": [USER, ANSWER]}], bare, tmp_path) == [f" list john{TOKENIZER.eos_token}"]


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"loss": False}, {"train": False}, {"trainable": 0}, {"loss_mask": 0}, {"masked": True}]
)
@pytest.mark.parametrize("only_assistant", [True, False])
def test_turns_that_a_mark_forbids_are_not_learned(mark: dict, only_assistant: bool, tmp_path: Path) -> None:
    forbidden = {**ANSWER, "content": "copy copy", **mark}
    sharegpt = [{"from": "human", "value": "remind"}, {"from": "gpt", "value": "copy copy", **mark}]
    rows = [
        {"messages": [USER, forbidden, USER, ANSWER]},
        {"conversations": [*sharegpt, {"from": "human", "value": "a"}, {"from": "gpt", "value": "list john"}]},
        {"prompt": [USER], "completion": [forbidden, USER, ANSWER], "system": "be brief"},
    ]
    for text in learned(rows, ALL, tmp_path, assistant_only_loss=only_assistant):
        assert "copy copy" not in text
        assert "list john<|end|>" in text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"messages": [USER, {**ANSWER, "loss_weight": 0.5}]},
            r"a turn of loss_weight 0.5 \(turn 2\), allowed",
        ),
        ({"messages": [USER, {**ANSWER, "mask": 1}]}, r"the mark 'mask' \(turn 2\), which means both; say 'train'"),
        ({"prompt": "a", "completion": "b", "label": False}, "a completion with the label false"),
        ({"query": "q", "tools": "[]", "answers": "[]"}, "has no call in 'answers' and no text beside them"),
    ],
)
def test_marks_that_say_neither_are_refused(row: dict, says: str) -> None:
    with pytest.raises(NotUnderstood, match=says):
        example_of(row)


def test_a_mark_on_a_question_needs_the_loss_on_answers_alone(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "train": False}, ANSWER]}]
    assert learned(rows, ALL, tmp_path) == [" list john<|end|>"]
    with pytest.raises(NotUnderstood, match=r"turn 1 is not to be learned; training.assistant_only_loss=true"):
        learned(rows, ALL, tmp_path, assistant_only_loss=False)


@pytest.mark.parametrize("ids", ["abcdefghi", "call_0123456789", None])
def test_calls_have_the_ids_that_the_template_wants(ids: str | None, tmp_path: Path) -> None:
    named = {} if ids is None else {"id": ids}
    call = {"type": "function", "function": {"name": "list", "arguments": {"person": "maria"}}, **named}
    result = {"role": "tool", "content": "done", **({} if ids is None else {"tool_call_id": ids})}
    row = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, result, ANSWER]}
    rendering = rendering_of([row], IDS, tmp_path)
    assert rendering.moved_by_template == []
    text = rendering.renderer.tokenizer.decode(rendering.renderer.render(example_of(row)).input_ids)
    assert text.count("call00001") == 2


def test_of_named_templates_the_one_for_these_rows_trains_and_leaves(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    named = {"default": ALL, "tool_use": "{% if tools %}TOOLS {{ tools | tojson }}{% endif %}" + ALL}
    with_tools = rendering_of([{"messages": [USER, ANSWER], "tools": [tool]}], named, tmp_path)
    assert with_tools.exported_template == named["tool_use"]
    assert any("default, tool_use the one taken for these rows trains, and alone" in note for note in with_tools.notes)
    assert rendering_of([{"messages": [USER, ANSWER]}], named, tmp_path).exported_template == named["default"]
    # One template leaves, so where only some rows have functions it renders the others, too.
    mixed = rendering_of([{"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER], "tools": [tool]}], named, tmp_path)
    assert mixed.exported_template == mixed.template == named["tool_use"]


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_a_call_without_arguments_is_one_of_a_function_without_parameters(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    example = example_of({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert example.messages[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_functions_and_parameters_may_be_json_texts() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    as_text = {"type": "function", "function": {"name": "f", "parameters": json.dumps(parameters)}}
    for tools in ([as_text], [json.dumps(tool)], json.dumps([as_text])):
        assert example_of({"messages": [USER, ANSWER], "tools": tools}).tools == [tool]


def test_another_end_of_text_than_the_bases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"training.eos_token is '<\|user\|>', allowed is the base's own"):
        rendering_of([{"messages": [USER, ANSWER]}], ALL, tmp_path, eos_token="<|user|>")


def test_dropping_thoughts_is_a_key_of_the_data() -> None:
    assert DataSection().thoughts == "keep"


def test_padding_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    rendering = rendering_of([{"messages": [USER, ANSWER]}], ALL, tmp_path)
    rendering.renderer.tokenizer.add_special_tokens({"pad_token": "<|beyond|>"})
    config = load_configuration(ROOT / "recipes/tiny/model", False)
    with pytest.raises(Refusal, match=r"mine: .* filled up by '<\|beyond\|>' \(id \d+\), and the model's"):
        check_padding(rendering.renderer.tokenizer, config, "mine")
