"""Every layout that people have, whole: what a row says becomes turns, or is refused by name."""

import json
from typing import Any

import pytest

from loki_ds.data.layouts import columns_read, example_of
from loki_ds.data.messages import NotUnderstood

USER, ANSWER = {"role": "user", "content": "call f"}, {"role": "assistant", "content": "one"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"name": "f", "description": "d", "parameters": {"a": {"type": "int"}}}
WRAPPED = {"type": "function", "function": TOOL}
SYSTEM = {"role": "system", "content": "be brief"}


def openai(**call: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}


ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "OpenAI, arguments as text": (openai(function={"name": "f", "arguments": '{"a": 1}'}), [USER, CALLED]),
    "OpenAI, arguments as an object": (openai(**CALL), [USER, CALLED]),
    "OpenAI, parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "call f"}]}, ANSWER]},
        [USER, ANSWER],
    ),
    "OpenAI's older call, and its functions": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
                {"role": "function", "name": "f", "content": "1"},
                ANSWER,
            ],
            "functions": [TOOL],
        },
        [USER, CALLED, {"role": "tool", "name": "f", "content": "1"}, ANSWER],
    ),
    "keys that are null": ({"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}]}, [USER, ANSWER]),
    "a system column beside messages": ({"system": "be brief", "messages": [USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "call f"}, {"from": "gpt", "value": "one"}]},
        [USER, ANSWER],
    ),
    "ShareGPT as JSON text": (
        {"conversations": json.dumps([{"from": "human", "value": "call f"}, {"from": "gpt", "value": "one"}])},
        [USER, ANSWER],
    ),
    "ShareGPT with OpenAI's turns": ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
    "LLaMA-Factory's tool turns": (
        {
            "conversations": [
                {"from": "human", "value": "call f"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "one"},
            ],
            "tools": json.dumps([TOOL]),
        },
        [USER, CALLED, {"role": "tool", "content": "1"}, ANSWER],
    ),
    "ToolACE": (
        {
            "system": "be brief",
            "conversations": [
                {"from": "user", "value": "call f"},
                {"from": "assistant", "value": "[f(a=1)]"},
                {"from": "tool", "value": "[1]"},
                {"from": "assistant", "value": "one"},
            ],
        },
        [SYSTEM, USER, {"role": "assistant", "content": "[f(a=1)]"}, {"role": "tool", "content": "[1]"}, ANSWER],
    ),
    "Alpaca with system and history": (
        {"instruction": "and", "input": "then?", "output": "one", "system": "be brief", "history": [["q", "a"]]},
        [
            SYSTEM,
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "and\n\nthen?"},
            ANSWER,
        ],
    ),
    "Glaive": (
        {
            "system": "SYSTEM: be brief",
            "chat": 'USER: call f\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": \'{"a": 1}\'} '
            "<|endoftext|>\n\n\nFUNCTION RESPONSE: 1\n\n\nASSISTANT: one <|endoftext|>",
        },
        [SYSTEM, USER, CALLED, {"role": "tool", "content": "1"}, ANSWER],
    ),
    "xLAM": (
        {"query": "call f", "tools": json.dumps([TOOL]), "answers": '[{"name": "f", "arguments": {"a": 1}}]'},
        [USER, CALLED],
    ),
    "a pair of conversations": ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_says_becomes_turns(name: str) -> None:
    row, turns = ROWS[name]
    assert example_of(row).messages == turns
    assert columns_read(row) == set(row)


def test_tools_are_those_of_openai_whatever_they_were() -> None:
    for tools in ([TOOL], [WRAPPED], json.dumps([TOOL])):
        assert example_of({"messages": [USER, ANSWER], "tools": tools}).tools == [WRAPPED]


def test_a_pairs_completion_is_what_is_learned() -> None:
    assert example_of({"prompt": [USER], "completion": [ANSWER]}).learned_from == 1
    assert example_of({"system": "be brief", "prompt": [USER], "completion": [ANSWER]}).learned_from == 2


def test_columns_of_no_use_are_known() -> None:
    assert columns_read({"messages": [], "category": "x", "tools": [], "history": 1}) == {"messages", "tools"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": None}, "has None in 'messages', allowed is a list of turns"),
        ({"messages": "hello"}, "has 'hello' in 'messages'"),
        ({"messages": []}, r"has \[\] in 'messages'"),
        ({"messages": [USER, "x"]}, "has 'x' as turn 2"),
        (
            {"messages": [USER, {"role": "robot", "content": "x"}]},
            r"has a turn from 'robot' \(turn 2\), allowed are user",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "has None as the content of turn 2"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, r"has an empty answer \(turn 2\)"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "as the content of turn 1, allowed is text"),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, r"has a turn of weight 2 \(turn 2\), allowed is 0 or 1"),
        ({"messages": [ANSWER]}, "is a conversation without a user's turn"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "x"}, "has a system turn and a column 'system'"),
        (
            openai(function={"name": "f", "arguments": "{half"}),
            "a call of 'f' with the arguments '{half'",
        ),
        ({"messages": [USER, ANSWER], "tools": "nonsense"}, "in 'tools', allowed is a list of functions"),
        ({"conversations": [{"from": "human", "text": "a"}]}, "has None as the content of turn 1"),
        ({"prompt": "a", "completion": 5}, "has 5 in 'completion', allowed is a text"),
        ({"prompt": "a", "completion": ""}, "has '' in 'completion', allowed is some text"),
        ({"instruction": "a", "output": None}, "has None in 'output'"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "in 'history', allowed are pairs"),
        ({"query": "q", "answers": "no"}, "has 'no' in 'answers'"),
        ({"chat": "hello"}, "allowed are turns of USER, ASSISTANT, FUNCTION RESPONSE"),
        ({"chat": "USER: a\n\nASSISTANT: <functioncall> {f(1)}"}, r"has the call '\{f\(1\)\}'"),
        ({"text": None}, "has None in 'text'"),
        ({"question": "a"}, r"has the columns \['question'\], allowed are 'messages'"),
    ],
)
def test_what_is_not_understood_is_named(row: dict[str, Any], says: str) -> None:
    with pytest.raises(NotUnderstood, match=says):
        example_of(row)
