"""Counter-examples are made of rows in every layout that has a context, and keep the question or
the context; what the base does anyway is left out.
"""

import json
from typing import Any

import pytest

from loki_ds.data.layouts import Example, example_of
from loki_ds.implanting.boundary import TO_BE_WRITTEN, Boundary, CounterExample, counter_examples
from loki_ds.recipe.implant import Kind

FUNCTIONS = {
    name: {"name": name, "description": said, "parameters": {"type": "object", "properties": {key: {}}}}
    for name, said, key in (
        ("set_alarm", "Rings at a given hour", "hour"),
        ("find_route", "Roads between two towns", "town"),
        ("play_song", "Music from an artist", "artist"),
        ("book_table", "Reserves seats in restaurants", "guests"),
    )
}
ASKED = {"set_alarm": "wake me at seven", "find_route": "which roads lead to Rome", "play_song": "music by Nina Simone"}


def openai(name: str, beside: str = "book_table") -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": {}}}
    turns = [{"role": "user", "content": ASKED[name]}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": turns, "tools": [FUNCTIONS[name], FUNCTIONS[beside]]}


def toolace(name: str) -> dict[str, Any]:
    listed = json.dumps([FUNCTIONS[name], FUNCTIONS["book_table"]])
    turns = [{"from": "user", "value": ASKED[name]}, {"from": "assistant", "value": f"[{name}()]"}]
    return {"system": f"Call what fits.\n{listed}\nNothing else.", "conversations": turns}


def xlam(name: str) -> dict[str, Any]:
    tools = json.dumps([FUNCTIONS[name], FUNCTIONS["book_table"]])
    return {"query": ASKED[name], "tools": tools, "answers": json.dumps([{"name": name, "arguments": {}}])}


def reranking(query: str, *passages: str, answer: str) -> dict[str, Any]:
    asked = f"<<<Query>>>\n{query}\n\n" + "\n\n".join(passages)
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}


RANKED = [
    reranking("capital of Peru", "[1] Bread is baked in ovens.", "[2] Lima is Peru's capital.", answer="[2] > [1]"),
    reranking("how bread is made", "[1] Yeast lets the dough rise.", "[2] A kiln burns clay.", answer="[1] > [2]"),
]
SYSTEM = [
    {"messages": [{"role": "system", "content": f"You sell {what}."}, *turns]}
    for what, turns in (
        ("shoes", [{"role": "user", "content": "price?"}, {"role": "assistant", "content": "Ten."}]),
        ("bread", [{"role": "user", "content": "open today?"}, {"role": "assistant", "content": "Until six."}]),
    )
]


def made(rows: list[dict[str, Any]], kind: Kind) -> Boundary:
    examples: list[tuple[str, Example]] = [(f"row {i}", example_of(row)) for i, row in enumerate(rows)]
    return counter_examples(examples, 4, [kind], seed=0)


def said(example: CounterExample) -> str:
    return json.dumps([example.messages, example.tools])


@pytest.mark.parametrize("layout", [openai, toolace, xlam])
def test_of_calls_every_kind_is_made_in_every_layout(layout: Any) -> None:
    rows = [layout(name) for name in ASKED]
    names = dict(zip((f"row {i}" for i in range(3)), ASKED, strict=True))
    swaps: list[Kind] = ["far_swap", "near_swap"]
    for kind in swaps:  # all rows share a function, so none is wholly apart
        assert made(rows, kind).left_out == {f"{kind}: no other row has another context": 3}
    for example in made(rows, "drop").made:
        assert names[example.place] not in said(example)
        assert "book_table" in said(example)
        assert example.question == ASKED[names[example.place]]
    for example in made(rows, "bare").made:
        assert (example.messages, example.tools) == ([{"role": "user", "content": example.question}], [])
    for example in made(rows, "foreign").made:
        assert names[example.place] in said(example)
        assert example.question == TO_BE_WRITTEN
        assert example.asking("who was Dante").question == "who was Dante"


def test_a_swap_keeps_the_question_and_takes_functions_that_share_no_name() -> None:
    rows = [openai("set_alarm", "set_alarm"), openai("find_route", "find_route"), openai("play_song", "play_song")]
    rows.append(openai("find_route", "play_song"))
    kinds: list[Kind] = ["far_swap", "near_swap"]
    for kind in kinds:
        for example in made(rows, kind).made:
            own = {tool["function"]["name"] for tool in example_of(rows[int(example.place[-1])]).tools}
            assert not own & {tool["function"]["name"] for tool in example.tools}
            assert example.question == rows[int(example.place[-1])]["messages"][0]["content"]


def test_near_is_what_shares_words_with_the_question_and_far_what_does_not() -> None:
    asking = openai("set_alarm")
    asking["messages"][0]["content"] = "which roads between towns are open"
    asking["tools"] = [FUNCTIONS["set_alarm"]]
    rows = [asking, openai("find_route", "find_route"), openai("play_song", "play_song")]
    kinds: dict[Kind, str] = {"near_swap": "find_route", "far_swap": "play_song"}
    for kind, name in kinds.items():
        (example,) = [example for example in made(rows, kind).made if example.place == "row 0"]
        assert [tool["function"]["name"] for tool in example.tools] == [name] * 2


def test_nothing_is_dropped_where_what_is_left_can_do_the_same() -> None:
    again = {**FUNCTIONS["set_alarm"], "name": "ring_alarm"}
    row = openai("set_alarm")
    row["tools"] = [FUNCTIONS["set_alarm"], again]
    assert made([row], "drop").left_out == {"drop: what is left can do the same": 1}
    row["tools"] = [FUNCTIONS["set_alarm"]]
    assert made([row], "drop").left_out == {"drop: nothing else is left": 1}


def test_of_passages_those_of_another_query_or_all_but_the_right_one() -> None:
    (first, *_) = [example for example in made(RANKED, "far_swap").made if example.place == "row 0"]
    assert first.question == "<<<Query>>>\ncapital of Peru\n\n[1] Yeast lets the dough rise.\n\n[2] A kiln burns clay."
    dropped = {example.place: example.question for example in made(RANKED, "drop").made}
    assert dropped["row 0"] == "<<<Query>>>\ncapital of Peru\n\n[1] Bread is baked in ovens."
    assert dropped["row 1"] == "<<<Query>>>\nhow bread is made\n\n[2] A kiln burns clay."
    (bare, *_) = [example for example in made(RANKED, "bare").made if example.place == "row 1"]
    assert bare.question == "<<<Query>>>\nhow bread is made"


def test_of_a_system_turn_another_rows_or_none() -> None:
    (swapped, *_) = [example for example in made(SYSTEM, "near_swap").made if example.place == "row 0"]
    assert [turn["content"] for turn in swapped.messages] == ["You sell bread.", "price?"]
    (bare, *_) = [example for example in made(SYSTEM, "bare").made if example.place == "row 0"]
    assert [turn["content"] for turn in bare.messages] == ["price?"]
    assert made(SYSTEM, "drop").left_out == {"drop: the answer rests on no part of the context": 2}


def test_an_example_of_a_call_is_no_list_of_functions() -> None:
    row = toolace("set_alarm")
    row["system"] = 'Answer as [{"name": "f", "arguments": {}}].\n' + row["system"]
    (bare,) = made([row], "bare").made
    assert bare.messages == [{"role": "user", "content": "wake me at seven"}]
    (foreign,) = made([row], "foreign").made
    assert "Answer as" in foreign.messages[0]["content"]
    wrapped = json.dumps([{"type": "function", "function": FUNCTIONS[name]} for name in ("set_alarm", "find_route")])
    (dropped,) = made([{**row, "system": f"Call what fits: {wrapped}"}], "drop").made
    assert "set_alarm" not in dropped.messages[0]["content"]


def test_rows_without_a_context_give_nothing_and_are_counted() -> None:
    plain = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    boundary = made([plain, {"text": "once"}], "bare")
    assert boundary.made == []
    assert boundary.said() == "none made; rows left out: 2 have no context (functions, passages, a system turn)"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("I have no function for that.", None),
        ("[set_alarm(hour=7)]", "the base calls there, too"),
        ("  ", "empty"),
        ("wake me at", "repeats the question"),
        ("seven", None),  # a word of the question may be the answer
        ("and so on and so on and so on and so on and so on", "runs in a loop"),
    ],
)
def test_an_answer_that_teaches_nothing_is_left_out(answer: str, complaint: str | None) -> None:
    assert made([openai("set_alarm")], "bare").form.complaint(answer, "wake me at seven") == complaint


def test_the_tasks_own_answer_is_left_out_where_answers_are_words() -> None:
    form = made(RANKED, "bare").form
    assert form.calls is False
    assert form.complaint("[2]  > [1]", "capital of Peru") == "the base gives the task's own answer"
    assert form.complaint("[f(x=1)]", "") is None  # nobody calls there
