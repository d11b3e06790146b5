"""The new task of the tiny world: turn a request into tool calls, a small ToolACE.

The model has read every word before, and can name the city in a sentence when asked for it, but it
has never been asked like this: which phrase wants which tool, what the tool's parameters are called
and in which order they stand, and when no tool is wanted. Calls are written as Python calls in a
list, as ToolACE and BFCL write them.
"""

from random import Random
from typing import Any, NamedTuple

from abilities import CATEGORIES, OBJECTS, PEOPLE


class Tool(NamedTuple):
    """A tool: its name, its parameters in calling order, and the phrases that ask for it."""

    name: str
    parameters: tuple[str, ...]
    requests: tuple[str, ...]


TOOLS = [
    Tool(
        "weather", ("city", "day"), ("forecast {city} on {day}", "look up {day} in {city}", "sunny in {city} on {day}")
    ),
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
        (
            "reserve {count} to {city} on {day}",
            "trip to {city} for {count} on {day}",
            "visit {city} by {day} with {count}",
        ),
    ),
    Tool(
        "order",
        ("count", "food"),
        ("bring {count} {food}", "fetch {count} of the {food}", "deliver the {food} , {count}"),
    ),
    Tool(
        "message",
        ("person", "object"),
        ("tell {person} of the {object}", "send {person} a {object} note", "ask about the {object} to {person}"),
    ),
    Tool(
        "shop",
        ("object", "colour", "count"),
        (
            "buy {count} {colour} {object}",
            "find a {object} in {colour} , {count}",
            "sell {colour} the {object} for {count}",
        ),
    ),
    Tool(
        "meet",
        ("person", "city", "day"),
        (
            "invite {person} to {city} on {day}",
            "ring {person} about {city} by {day}",
            "in {city} phone {person} on {day}",
        ),
    ),
    Tool(
        "feed",
        ("animal", "food"),
        ("walk the {animal} with {food}", "the {animal} eats {food}", "drop {food} at the {animal}"),
    ),
    Tool(
        "paint",
        ("object", "colour"),
        ("mix {colour} for the {object}", "colour the {object} as {colour}", "the {object} likes {colour}"),
    ),
    Tool("hire", ("job", "city"), ("employ a {job} in {city}", "staff {city} with a {job}", "a {job} works to {city}")),
    Tool(
        "list",
        ("animal", "month"),
        ("show the {animal} of {month}", "check {month} for a {animal}", "owns a {animal} in {month}"),
    ),
    Tool(
        "cancel",
        ("person", "month"),
        ("no {month} for {person}", "drop {person} from {month}", "after {month} cancel {person}"),
    ),
]
SMALL_TALK = (
    "hello {person}",
    "good morning {person}",
    "what is a {object}",
    "tell me a story of a {object}",
    "no thanks {person}",
    "{person} is cold in {object}",
)


def _single(tool: Tool, rng: Random) -> tuple[str, str]:
    values = {parameter: rng.choice(CATEGORIES[parameter]) for parameter in tool.parameters}
    arguments = " , ".join(f"{parameter} = ' {values[parameter]} '" for parameter in tool.parameters)
    return rng.choice(tool.requests).format(**values), f"{tool.name} ( {arguments} )"


def draw(rng: Random) -> dict[str, Any]:
    """One chat: `messages` (user, assistant) and its BFCL-like `category`: simple, or irrelevance
    for one in ten.
    """
    if rng.random() < 0.1:
        category, calls = "irrelevance", "[ ]"
        request = rng.choice(SMALL_TALK).format(person=rng.choice(PEOPLE), object=rng.choice(OBJECTS))
    else:
        category = "simple"
        request, call = _single(rng.choice(TOOLS), rng)
        calls = f"[ {call} ]"
    return {
        "messages": [{"role": "user", "content": f"please {request}"}, {"role": "assistant", "content": calls}],
        "category": category,
    }
