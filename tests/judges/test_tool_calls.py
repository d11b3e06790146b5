"""Calls are judged as BFCL judges them (over all of its data: `eval/reports/bfcl.md`), in every
notation, with bounded work.
"""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.judges.notations import parse_calls
from loki_ds.judges.python_calls import Call
from loki_ds.judges.tool_calls import judge

# A text for each of the leaderboard's rules, and real models' outputs: its own verdicts (bfcl-eval
# 2026.3.23).
VERDICTS = [json.loads(line) for line in (Path(__file__).parent / "data/bfcl_verdicts.jsonl").read_text().splitlines()]
WEATHER = [
    {
        "name": "weather.get",
        "description": "Weather of a city.",
        "parameters": {
            "type": "dict",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    }
]
PARIS = [{"weather.get": {"city": ["Paris", "Paris, France"], "days": [2, ""]}}]
CALL = {"name": "weather.get", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: case["rule"])
def test_the_leaderboards_own_verdict(case: dict) -> None:
    assert judge(case["text"], case["expected"], case["functions"], case["category"]) is case["right"]


@pytest.mark.parametrize(
    "text",
    [
        "[weather.get(city='Paris')]",
        "<think>\nWhich city? [weather.get(city='Rome')]\n</think>\n\n[weather.get(city='Paris')]",
        json.dumps([CALL]),
        json.dumps([{"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}]),
        f"```json\n{json.dumps([CALL])}\n```",
        f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
        f"Let me look.\n<tool_call>{json.dumps(CALL)}</tool_call>",
        json.dumps({"name": "weather.get", "parameters": {"city": "Paris"}}),
        '<|python_tag|>{"name": "weather.get", "parameters": {"city": "Paris"}}',
    ],
)
def test_every_notation_is_read(text: str) -> None:
    assert judge(text, PARIS, WEATHER, "simple_python")
    assert not judge(text.replace("Paris", "Oslo"), PARIS, WEATHER, "simple_python")
    assert judge(text, [], WEATHER, "live_relevance")
    assert not judge(text, [], WEATHER, "live_irrelevance")


def test_several_calls_in_every_notation() -> None:
    both, calls = PARIS * 2, [CALL, {**CALL, "arguments": {"city": "Paris", "days": 2}}]
    llama = [{"name": call["name"], "parameters": call["arguments"]} for call in calls]
    for text in (
        json.dumps(calls),
        "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>\n" for call in calls),
        "; ".join(map(json.dumps, llama)),
    ):
        assert judge(text, both, WEATHER, "parallel")
        assert not judge(text, PARIS, WEATHER, "simple_python")


@pytest.mark.parametrize(
    "text", ["{}", "[{}]", '{"a": 1}', json.dumps(WEATHER), "<tool_call>\nno\n</tool_call>", "null"]
)
def test_what_is_json_and_no_call(text: str) -> None:
    """A function's own description, which has a name and parameters, too, is none."""
    assert not parse_calls(text)


def test_nothing_in_a_text_is_run() -> None:
    assert parse_calls("[f(a=__import__('os').getcwd())]") == [Call("f", {"a": "__import__('os').getcwd()"})]
    assert parse_calls("[f(a=-1, b={'c': [None, 1.5]})]") == [Call("f", {"a": -1, "b": {"c": [None, 1.5]}})]


@pytest.mark.parametrize(
    "text",
    [
        f"[{', '.join(['weather.get(city=1)'] * 400)}]",
        "[f(a=9**9**9)]",
        "[f(a='a'*10**9)]",
        "[f(a=[1]*10**9)]",
        "[f(a='a'*1000000*1000000)]",
        "[f(a='%1000000000d' % 1)]",
        f"[f(a={'1+' * 5000}1)]",
        f"[f{'.a' * 5000}(b=1)]",
        f"[f(a={'[' * 5000}{']' * 5000})]",
        "[" * 100_000,
        '{"a":' * 50_000,
        "<tool_call>" * 20_000,
        "<think>" * 50_000,
        "x" * 1_000_000,
        f"[f(a={'9' * 1_000_000})]",
    ],
    ids=lambda text: text[:30],
)
def test_work_is_bounded_for_any_text(text: str) -> None:
    """400 equal calls against as many expected ones, all but the last right: no backtracking."""
    expected = [*PARIS * 399, {"weather.get": {"city": ["Rome"]}}]
    started = time.perf_counter()
    assert not judge(text.replace("city=1", "city='Paris'"), expected, WEATHER, "parallel")
    assert time.perf_counter() - started < 2


@given(st.text(max_size=40))
def test_any_text_is_judged(text: str) -> None:
    assert judge(text, PARIS, WEATHER, "simple_python") in (True, False)
