"""Counter-examples of the new task, made from rows that train: the row's question or its context,
and beside it something that does not fit.

Each shares its question or its context with a row, so that neither alone tells the two apart. What
to say there is not written here: it is what the base says.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, NamedTuple

from loki_ds.data.layouts import Example
from loki_ds.data.messages import Message
from loki_ds.implanting.contexts import Context, context_of, text_of, words_of
from loki_ds.judges.notations import parse_calls
from loki_ds.recipe.implant import Kind

MOST_ROWS = 20_000  # of all sources together that are looked at
COMPARED = 64  # contexts of other rows that a swap chooses from
TO_BE_WRITTEN = "(a question that the base writes)"
ECHO = 3  # words of an answer that repeats how its question begins
LOOP = 4  # times that a run of three words may stand in an answer


class Situation(NamedTuple):
    """What a row puts to the model before its first answer. place: the row's, in words."""

    place: str
    context: Context
    answer: Message


@dataclass(frozen=True)
class CounterExample:
    """A conversation that ends with a question, and the functions beside it.

    place: of the row that it is made from.
    """

    kind: Kind
    place: str
    messages: list[Message]
    tools: list[dict[str, Any]]

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    def asking(self, question: str) -> "CounterExample":
        """A foreign one with a question that the base wrote."""
        asked = self.question.replace(TO_BE_WRITTEN, question)
        return replace(self, messages=[*self.messages[:-1], {**self.messages[-1], "content": asked}])


@dataclass(frozen=True)
class Form:
    """What the new task's answers look like: whether they call functions, and which there are."""

    calls: bool = False
    answers: frozenset[str] = frozenset()

    def complaint(self, answer: str, question: str) -> str | None:
        """Why a base's answer to a counter-example teaches nothing; None where it does."""
        words = answer.lower().split()
        if not words:
            return "empty"
        if self.calls and parse_calls(answer):
            return "the base calls there, too"
        if _plain(answer) in self.answers:
            return "the base gives the task's own answer"
        runs = Counter(zip(words, words[1:], words[2:], strict=False))
        if runs and max(runs.values()) >= LOOP:
            return "runs in a loop"
        if len(words) >= ECHO and _plain(question).startswith(_plain(answer)):
            return "repeats the question"
        return None


@dataclass
class Boundary:
    """What was made of a data set's rows, and why other rows gave nothing.

    form: what an answer of the new task looks like.
    """

    made: list[CounterExample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    form: Form = Form()

    def of(self, kind: Kind) -> list[CounterExample]:
        return [example for example in self.made if example.kind == kind]

    def said(self) -> str:
        """The counts in a sentence."""
        made = [f"{count:,} {kind}" for kind, count in Counter(example.kind for example in self.made).items()]
        left_out = [f"{count:,} {why}" for why, count in self.left_out.items()]
        return f"{', '.join(made) or 'none'} made" + (f"; rows left out: {', '.join(left_out)}" if left_out else "")


def counter_examples(rows: Iterable[tuple[str, Example]], count: int, kinds: Sequence[Kind], seed: int) -> Boundary:
    """About `count` of them, as many of each kind, from rows in an order drawn by the seed.

    rows: with their places in words.
    """
    boundary, situations = Boundary(), []
    for place, example in rows:
        situation = _situation(place, example)
        if situation is None:
            boundary.left_out["have no context (functions, passages, a system turn)"] += 1
        else:
            situations.append(situation)
    boundary.form = _form(situations)
    random = Random(seed)
    random.shuffle(situations)
    for kind in kinds:
        wanted = -(-count // len(kinds))
        for situation in situations:
            if wanted == 0:
                break
            others = random.sample(situations, min(COMPARED, len(situations)))
            made = MAKERS[kind](situation, [other for other in others if other is not situation])
            if isinstance(made, str):
                boundary.left_out[f"{kind}: {made}"] += 1
                continue
            boundary.made.append(made)
            wanted -= 1
    return boundary


def _situation(place: str, example: Example) -> Situation | None:
    """The first answer of a row that is learned and follows a user's turn."""
    roles = [message["role"] for message in example.messages]
    for i, message in enumerate(example.messages):
        learned = i >= example.learned_from and i not in example.unlearned
        if message["role"] == "assistant" and learned and i and roles[i - 1] == "user":
            context = context_of(example.messages[:i], example.tools)
            return Situation(place, context, message) if context else None
    return None


def _form(situations: Sequence[Situation]) -> Form:
    answers = [situation.answer for situation in situations]
    calls = any("tool_calls" in answer or parse_calls(answer["content"]) for answer in answers)
    return Form(calls, frozenset(_plain(answer["content"]) for answer in answers))


# --- kinds ----------------------------------------------------------------------------------------


def _swap(kind: Kind, choose: Any, situation: Situation, others: Sequence[Situation]) -> CounterExample | str:
    """The question beside the context of another row that shares nothing with its own, by how many
    words that context shares with the question.
    """
    mine = situation.context
    apart = [other.context for other in others if mine.is_apart(other.context)]
    if not apart:
        return "no other row has another context"
    asked = words_of(mine.question)
    chosen = choose(apart, key=lambda context: len(asked & context.words))
    return _put(kind, situation, chosen.parts, mine.question)


def _drop(situation: Situation, _: Sequence[Situation]) -> CounterExample | str:
    """Without the functions that the answer calls, or the passage that it rests on."""
    context = situation.context
    rests_on = context.rests_on(situation.answer)
    left = [part for part in context.parts if part not in rests_on]
    if not rests_on:
        return "the answer rests on no part of the context"
    if not left:
        return "nothing else is left"
    if any(_alike(part, gone) for part in left for gone in rests_on):
        return "what is left can do the same"
    return _put("drop", situation, left, context.question)


def _put(kind: Kind, situation: Situation, parts: list[Any], question: str) -> CounterExample:
    """The question beside these parts of a context."""
    return CounterExample(kind, situation.place, *situation.context.put(parts, question))


MAKERS: dict[Kind, Callable[[Situation, Sequence[Situation]], CounterExample | str]] = {
    "far_swap": partial(_swap, "far_swap", min),
    "near_swap": partial(_swap, "near_swap", max),
    "drop": _drop,
    "bare": lambda situation, _: _put("bare", situation, [], situation.context.question),
    "foreign": lambda situation, _: _put("foreign", situation, situation.context.parts, TO_BE_WRITTEN),
}


def _alike(part: Any, gone: Any) -> bool:
    """Whether one part can stand for another: it has more than half of the other's words."""
    words = words_of(text_of(gone))
    return len(words & words_of(text_of(part))) > len(words) / 2


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
