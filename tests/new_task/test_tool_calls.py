"""Calls are judged as BFCL judges them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.new_task.tool_calls import Call, judge, parse_calls

WEATHER = {"weather.get": {"city": ["Paris", "Paris, France"], "days": [2, ""]}}
BUY = {
    "buy": {
        "item": ["lamp"],
        "count": [3],
        "price": [2.0, ""],
        "tags": [["new", "red"], ""],
        "to": [{"name": ["Ann"], "zip": ["", 7]}, ""],
    }
}


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("[weather.get(city='Paris', days=2)]", [WEATHER], True),
        ("weather.get(city='paris france')", [WEATHER], True),  # case, comma and an optional argument
        ("```weather.get(city='Paris')```", [WEATHER], True),
        ("[weather.get(city='Rome')]", [WEATHER], False),
        ("[weather.get(days=2)]", [WEATHER], False),  # a required argument is missing
        ("[weather.get(city='Paris', country='FR')]", [WEATHER], False),  # an argument nobody asked for
        ("[weather.get('Paris')]", [WEATHER], False),  # arguments have names
        ("[weather.set(city='Paris')]", [WEATHER], False),
        ("[weather.get(city='Paris', days='2')]", [WEATHER], False),
        ("[weather.get(city='Paris', days=2.0)]", [WEATHER], False),
        ("[weather.get(city='Paris', days=True)]", [WEATHER], False),
        ("The call is weather.get(city='Paris')", [WEATHER], False),
        ("[buy(item='lamp', count=3, price=2)]", [BUY], True),  # an integer for a float
        ("[buy(item='lamp', count=3, tags=['New', 'red'])]", [BUY], True),
        ("[buy(item='lamp', count=3, tags=['red', 'new'])]", [BUY], False),
        ("[buy(item='lamp', count=3, to={'name': 'ann'})]", [BUY], True),
        ("[buy(item='lamp', count=3, to={'zip': 7})]", [BUY], False),
        ("[buy(item='lamp', count=3), weather.get(city='Paris')]", [WEATHER, BUY], True),  # parallel, in any order
        ("[weather.get(city='Paris'), weather.get(city='Paris')]", [WEATHER, BUY], False),
        ("[weather.get(city='Paris')]", [WEATHER, BUY], False),
        ("[]", [], True),
        ("I cannot do that.", [], True),
        ("[buy(item='lamp')]", [], False),
    ],
)
def test_by_hand(text: str, expected: list, right: bool) -> None:
    assert judge(text, expected) is right


def test_values_are_literals_only() -> None:
    assert parse_calls("[f(a=__import__('os').getcwd())]") is None
    assert parse_calls("[f(a=-1, b={'c': [None, 1.5]})]") == [Call("f", {"a": -1, "b": {"c": [None, 1.5]}})]


@given(st.text(max_size=40))
def test_any_text_is_judged(text: str) -> None:
    assert judge(text, [WEATHER]) in (True, False)
