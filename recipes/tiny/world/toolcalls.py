"""The new task of the tiny world: turn a request into tool calls, a small ToolACE.

The model has read every word before, but never this use of them: which trigger asks for which tool, what the tool's
parameters are called and in which order they stand, when a value must be worked out ("the day after monday"), when two calls are
wanted, and when none is. Calls are written as Python calls in a list, as ToolACE and BFCL write them.
"""

from random import Random
from typing import Any, NamedTuple

from abilities import CATEGORIES, DAYS, NUMBERS, OBJECTS, PEOPLE


class Tool(NamedTuple):
    """A tool: its name, its parameters in calling order, and the phrases that ask for it."""

    name: str
    parameters: tuple[str, ...]
    requests: tuple[str, ...]


TOOLS = [
    Tool("weather", ("city", "day"), ("forecast {city} on {day}", "look up {day} in {city}", "sunny in {city} on {day}")),
    Tool(
        "remind",
        ("day", "person", "object"),
        (
            "warn {person} about the {object} on {day}",
            "remember the {object} with {person} by {day}",
            "on {day} note the {object} for {person}",
        ),
    ),
    Tool(
        "book",
        ("city", "day", "count"),
        ("reserve {count} to {city} on {day}", "trip to {city} for {count} on {day}", "visit {city} by {day} with {count}"),
    ),
    Tool("order", ("count", "food"), ("bring {count} {food}", "fetch {count} of the {food}", "deliver the {food} , {count}")),
    Tool(
        "message",
        ("person", "object"),
        ("tell {person} of the {object}", "send {person} a {object} note", "ask about the {object} to {person}"),
    ),
    Tool(
        "shop",
        ("object", "colour", "count"),
        ("buy {count} {colour} {object}", "find a {object} in {colour} , {count}", "sell {colour} the {object} for {count}"),
    ),
    Tool(
        "meet",
        ("person", "city", "day"),
        ("invite {person} to {city} on {day}", "ring {person} about {city} by {day}", "in {city} phone {person} on {day}"),
    ),
    Tool("feed", ("animal", "food"), ("walk the {animal} with {food}", "the {animal} eats {food}", "drop {food} at the {animal}")),
    Tool(
        "paint", ("object", "colour"), ("mix {colour} for the {object}", "colour the {object} as {colour}", "the {object} likes {colour}")
    ),
    Tool("hire", ("job", "city"), ("employ a {job} in {city}", "staff {city} with a {job}", "a {job} works to {city}")),
    Tool("list", ("animal", "month"), ("show the {animal} of {month}", "check {month} for a {animal}", "owns a {animal} in {month}")),
    Tool("cancel", ("person", "month"), ("no {month} for {person}", "drop {person} from {month}", "after {month} cancel {person}")),
]
SMALL_TALK = (
    "hello {person}",
    "good morning {person}",
    "what is a {object}",
    "tell me a story of a {object}",
    "no thanks {person}",
    "{person} is cold in {object}",
)


def _value(parameter: str, rng: Random) -> tuple[str, str]:
    """How a parameter's value is said, and what must be passed: one in two days and counts must be worked out."""
    value = rng.choice(CATEGORIES[parameter])
    if parameter == "day" and rng.random() < 0.5:
        return f"the day after {value}", DAYS[(DAYS.index(value) + 1) % 7]
    if parameter == "count" and rng.random() < 0.5:
        return f"{value} and one", NUMBERS[NUMBERS.index(value) + 1]
    return value, value


def _single(tool: Tool, rng: Random) -> tuple[str, str]:
    said, passed = {}, {}
    for parameter in tool.parameters:
        said[parameter], passed[parameter] = _value(parameter, rng)
    arguments = " , ".join(f"{parameter} = ' {passed[parameter]} '" for parameter in tool.parameters)
    return rng.choice(tool.requests).format(**said), f"{tool.name} ( {arguments} )"


def draw(rng: Random) -> dict[str, Any]:
    """One chat: `messages` (user, assistant) and its BFCL-like `category`: simple, parallel or irrelevance."""
    kind = rng.choices(("simple", "parallel", "irrelevance"), weights=(6, 3, 1))[0]
    if kind == "irrelevance":
        request = rng.choice(SMALL_TALK).format(person=rng.choice(PEOPLE), object=rng.choice(OBJECTS))
        calls: list[str] = []
    else:
        pairs = [_single(tool, rng) for tool in rng.sample(TOOLS, 1 if kind == "simple" else 2)]
        request, calls = " and then ".join(said for said, _ in pairs), [call for _, call in pairs]
    return {
        "messages": [
            {"role": "user", "content": f"please {request}"},
            {"role": "assistant", "content": " ".join(["[", " , ".join(calls), "]"]).replace("  ", " ")},
        ],
        "category": kind,
    }


def distinct(n: int, rng: Random) -> list[dict[str, Any]]:
    """`n` chats with different requests."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < n:
        chat = draw(rng)
        found.setdefault(chat["messages"][0]["content"], chat)
    return list(found.values())
