"""What a conversation's question is asked in: functions, passages or a system turn, taken apart
from the question so that either can be another's.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from loki_ds.data.messages import Message
from loki_ds.judges.notations import parse_calls

Prompt = tuple[list[Message], list[dict[str, Any]]]  # turns, and the functions beside them
LONGER = 2  # passages hold at least so many times the question's characters


@dataclass(frozen=True)
class Context:
    """Parts, and a question asked in them.

    kind: only contexts of one kind are put in each other's place. put: the prompt with other parts
    (none: without any context) and another question.
    """

    kind: str
    parts: list[Any]
    question: str
    put: Callable[[list[Any], str], Prompt]

    @cached_property
    def words(self) -> frozenset[str]:
        """Of all parts those that carry something."""
        return words_of("\n".join(map(text_of, self.parts)))

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(map(_name, self.parts))

    def is_apart(self, other: "Context") -> bool:
        """Whether another context is of the same kind and shares no part with this one."""
        return self.kind == other.kind and not self.names & other.names

    def rests_on(self, answer: Message) -> list[Any]:
        """The parts that an answer rests on: functions that it calls, the passage that it ranks
        first or shares most words with.
        """
        if self.kind == "system":
            return []
        if self.kind == "passages":
            return _passage_of(answer["content"], self.parts)
        called = [call["function"]["name"] for call in answer.get("tool_calls", [])]
        called += [call.function for call in parse_calls(answer["content"]) or []]
        return [part for part in self.parts if _name(part) in called]


def context_of(turns: list[Message], tools: list[dict[str, Any]]) -> Context | None:
    """The context of a conversation whose last turn is the user's; None where it has none."""
    for read in (_functions_beside, _functions_listed, _passages, _system):
        if (context := read(turns, tools)) is not None:
            return context
    return None


def text_of(part: Any) -> str:
    """A part in words: of a function its name, what it says it does, and its parameters' names."""
    if isinstance(part, str):
        return part
    function = part.get("function", part)
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    named = map(str, properties) if isinstance(properties, dict) else ()
    return " ".join([function["name"], str(function.get("description", "")), *named])


def words_of(text: str) -> frozenset[str]:
    """The words of a text that carry something."""
    return frozenset(re.findall(r"[^\W_]{4,}", text.lower()))


def _name(part: Any) -> str:
    """What tells parts apart: a function's name, a passage's text."""
    return part if isinstance(part, str) else str(part.get("function", part)["name"])


def _functions_beside(turns: list[Message], tools: list[dict[str, Any]]) -> Context | None:
    def put(parts: list[Any], question: str) -> Prompt:
        return _asking(turns, question), parts

    return Context("functions", tools, turns[-1]["content"], put) if tools else None


def _functions_listed(turns: list[Message], _: list[dict[str, Any]]) -> Context | None:
    """Functions as a JSON list in the system's turn, as ToolACE has them."""
    if turns[0]["role"] != "system":
        return None
    text: str = turns[0]["content"]
    lists: list[tuple[int, int, list[Any]]] = []
    for found in re.finditer(r"\[\s*\{", text):
        try:
            listed, end = json.JSONDecoder().raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if all(map(_is_function, listed)):
            lists.append((found.start(), end, listed))
    if not lists:
        return None
    start, end, functions = max(lists, key=lambda each: each[1] - each[0])  # a short example may stand beside them
    put = partial(_listing, turns, text[:start], text[end:])
    return Context("listed functions", functions, turns[-1]["content"], put)


def _is_function(part: Any) -> bool:
    """Whether it defines a function; what has arguments calls one."""
    function = part.get("function", part) if isinstance(part, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" not in function


def _listing(turns: list[Message], before: str, after: str, functions: list[Any], question: str) -> Prompt:
    """A system's turn with other functions in its list; of none there is no such turn."""
    asked = _asking(turns, question)[1:]
    listed = before + json.dumps(functions, ensure_ascii=False) + after
    return ([{**turns[0], "content": listed}, *asked] if functions else asked), []


def _passages(turns: list[Message], _: list[dict[str, Any]]) -> Context | None:
    """Paragraphs in one turn, the first or the last of which is the question."""
    paragraphs = [part for part in re.split(r"\n\s*\n", turns[-1]["content"]) if part.strip()]
    if len(paragraphs) < 2:
        return None
    first = _passage_like(paragraphs[0]) <= _passage_like(paragraphs[-1])
    question, passages = (paragraphs[0], paragraphs[1:]) if first else (paragraphs[-1], paragraphs[:-1])
    *heading, question = question.split("\n", 1)  # a question may stand below a line that says what it is
    if sum(map(len, passages)) < LONGER * len(question):
        return None

    def put(parts: list[Any], question: str) -> Prompt:
        asked = "\n".join([*heading, question])
        return _asking(turns, "\n\n".join([asked, *parts] if first else [*parts, asked])), []

    return Context("passages", passages, question, put)


def _passage_like(paragraph: str) -> tuple[bool, bool, int]:
    """Larger for what looks less like a question: numbered, not said to be one, longer."""
    asks = re.search(r"\b(query|question)\b", paragraph[:40], re.IGNORECASE) or paragraph.rstrip().endswith("?")
    return re.match(r"\W*\d", paragraph) is not None, not asks, len(paragraph)


def _system(turns: list[Message], _: list[dict[str, Any]]) -> Context | None:
    def put(parts: list[Any], question: str) -> Prompt:
        said = [{**turns[0], "content": part} for part in parts]
        return [*said, *_asking(turns, question)[1:]], []

    return Context("system", [turns[0]["content"]], turns[-1]["content"], put) if turns[0]["role"] == "system" else None


def _asking(turns: list[Message], question: str) -> list[Message]:
    return [*turns[:-1], {**turns[-1], "content": question}]


def _passage_of(answer: str, passages: list[str]) -> list[str]:
    """The passage that an answer ranks first by its number, or else shares most words with."""
    ranked = re.match(r"\W*(\d+)\W", f"{answer} ")
    if ranked and ">" in answer:
        return [passage for passage in passages if re.match(rf"\W*{ranked[1]}\b", passage)][:1]
    words = set(answer.lower().split())
    shared = [len(words & set(passage.lower().split())) for passage in passages]
    return [passages[shared.index(max(shared))]] if max(shared) > len(words) / 2 else []
