"""The chat template that trains: which one, what it has a place for, and what is put elsewhere.

Families' own templates refuse what they were not made for (Gemma's have no tool turns, some no
system turn), or drop it in silence (OLMo 2's). What the examples need and the template lacks is
written into the turns it has, by a preface to the template: so training, evaluation and whoever
loads the model later render the same. The preface stands in the exported tokenizer and the log.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from loki_ds.data.layouts import Example
from loki_ds.data.messages import Message
from loki_ds.data.template_preface import WORDS, preface
from loki_ds.model.base import UNRENDERABLE
from loki_ds.model.replaced import replaced
from loki_ds.model.template_date import one_date
from loki_ds.refusal import Refusal, short

STAND_IN = "\ue000\ue001\ue000"  # said in a turn's place; of Unicode's private use, so in no text
SEEN = "zqxjk"  # a word that no template has of its own
CALL_ID = f"{SEEN}call"  # of nine letters, as Mistral's templates want them
CALL = {
    "id": CALL_ID,
    "type": "function",
    "function": {"name": f"{SEEN}name", "arguments": {f"{SEEN}key": f"{SEEN}value"}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": f"{SEEN}name",
        "description": f"{SEEN}said",
        "parameters": {"type": "object", "properties": {}},
    },
}
USER, ANSWER = {"role": "user", "content": f"{SEEN}ask"}, {"role": "assistant", "content": f"{SEEN}answer"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": f"{SEEN}name", "tool_call_id": CALL_ID, "content": f"{SEEN}result"}
THOUGHT = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*(?P<answer>.*)", re.DOTALL)


@dataclass(frozen=True)
class Needs:
    """What conversations ask of a template: system turns, functions, calls of one or several at
    once, a tool's turns after such calls (`results`) and after calls as text (`tool_turns`).
    """

    system: bool = False
    tools: bool = False
    calls: bool = False
    several_calls: bool = False
    results: bool = False
    tool_turns: bool = False

    @classmethod
    def of(cls, example: Example) -> "Needs":
        calls, results, turns, after_call = 0, False, False, False
        for message in example.messages:
            if message["role"] == "tool":
                results, turns = results or after_call, turns or not after_call
                continue
            after_call = "tool_calls" in message
            calls = max(calls, len(message.get("tool_calls", ())))
        system = any(message["role"] == "system" for message in example.messages)
        return cls(system, bool(example.tools), calls > 0, calls > 1, results, turns)

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(*(mine or theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


class ChatTemplate:
    """One template with the tokenizer that renders it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None = None, **settings: Any) -> str:
        """The conversation as text. Raises whatever the template does (`UNRENDERABLE`)."""
        return str(self._applied(messages, tools, tokenize=False, **settings))

    def encode(self, messages: list[Message], tools: list[dict[str, Any]] | None = None, **settings: Any) -> Any:
        """The conversation's `input_ids`, and what else transformers is asked for."""
        return self._applied(messages, tools, return_dict=True, **settings)

    @one_date()
    def _applied(self, messages: list[Message], tools: list[dict[str, Any]] | None, **settings: Any) -> Any:
        functions: Any = tools or None
        return self.tokenizer.apply_chat_template(messages, tools=functions, chat_template=self.text, **settings)

    def span(
        self, text: str, place: int, messages: list[Message], tools: list[dict[str, Any]] | None = None
    ) -> tuple[int, int] | None:
        """Where in the conversation's text the turn at `place` stands, found by difference; None
        where more of the text depends on that turn, or another turn is written inside it.
        """
        turns = list(messages)
        turns[place] = {"role": "assistant", "content": STAND_IN}
        other = self.render(turns, tools)
        start, after = _common_beginning(text, other), _common_end(text, other)
        after = min(after, len(text) - start, len(other) - start)
        if other[start : len(other) - after].strip() != STAND_IN:
            return None
        outside = f"{text[:start]}{STAND_IN}{text[len(text) - after :]}"
        others = [message["content"] for message in messages if message["role"] != "assistant"]
        if any(content in text and content not in outside for content in others):
            return None
        return start, len(text) - after

    @cached_property
    def complaint(self) -> str | None:
        """Why it shows no turns whose content is text; None where it does."""
        try:
            text = self.render([USER, ANSWER])
        except UNRENDERABLE as error:
            return short(error, 200)
        if USER["content"] in text and ANSWER["content"] in text:
            return None
        return "their content is dropped, as by those of models for pictures, which want parts"

    @cached_property
    def empty_thought(self) -> str:
        """What it puts before an answer without a thought, where that is an empty one (Qwen3's)."""
        before = self.render([USER, ANSWER]).partition(ANSWER["content"])[0]
        match = re.search(r"<think>\s*</think>\s*$", before)
        return match[0] if match else ""

    @cached_property
    def calls_stand_alone(self) -> bool:
        """Whether a calling turn is found by difference; not where it holds a tool's result."""
        messages: list[Message] = [USER, CALLED, RESULT, ANSWER]
        return self.span(self.render(messages), 1, messages) is not None

    @cached_property
    def wants_ids(self) -> bool:
        """Whether it refuses calls and results without ids (Mistral's)."""
        nameless = {**CALLED, "tool_calls": [{key: value for key, value in CALL.items() if key != "id"}]}
        return self._shows([USER, CALLED], f"{SEEN}name") and not self._shows([USER, nameless], f"{SEEN}name")

    @cached_property
    def keeps_thoughts(self) -> bool:
        """Whether it shows a thought in the last answer's text (R1's families drop it)."""
        answer = {"role": "assistant", "content": f"<think>\n{SEEN}thought\n</think>\n\n{SEEN}answer"}
        return self._shows([USER, answer], f"{SEEN}thought", f"{SEEN}answer")

    @cached_property
    def places_thoughts(self) -> bool:
        """Whether it shows the last answer's `reasoning_content`."""
        answer = {**ANSWER, "reasoning_content": f"{SEEN}thought"}
        return self._shows([USER, answer], f"{SEEN}thought", f"{SEEN}answer")

    @cached_property
    def places(self) -> Needs:
        """What it has a place for: rendered without complaint, and nothing dropped."""
        twice = {**CALLED, "tool_calls": [CALL, CALL]}
        return Needs(
            system=self._shows([{"role": "system", "content": f"{SEEN}system"}, USER, ANSWER], f"{SEEN}system"),
            tools=self._shows([USER, ANSWER], f"{SEEN}name", f"{SEEN}said", tools=[TOOL]),
            calls=self._shows([USER, CALLED], f"{SEEN}name", f"{SEEN}key", f"{SEEN}value"),
            several_calls=self._shows([USER, twice], f"{SEEN}name"),
            results=self._shows([USER, CALLED, RESULT, ANSWER, USER, ANSWER], f"{SEEN}result", f"{SEEN}value"),
            tool_turns=self._shows([USER, ANSWER, RESULT, ANSWER, USER, ANSWER], f"{SEEN}result"),
        )

    def _shows(self, messages: list[Message], *words: str, tools: list[dict[str, Any]] | None = None) -> bool:
        try:
            text = self.render(messages, tools)
        except UNRENDERABLE:
            return False
        return all(word in text for word in words)


def own_template(
    tokenizer: PreTrainedTokenizerBase, path: str | None, model: str, tools: bool = False
) -> ChatTemplate | None:
    """The template that renders conversations: a file's if one is given, else the tokenizer's own;
    None where there is none.

    tools: whether there are functions; of several named templates transformers then takes another.

    Raises:
        Refusal: the file is not a template.
    """
    if path is not None:
        file = Path(path)
        if not file.is_file() or file.suffix not in (".jinja", ".j2"):
            raise Refusal(
                f"training.chat_template_path is {path}, allowed is a file that ends in .jinja or .j2 (another model's "
                "template would add tokens, and with them rows to train)"
            )
        return ChatTemplate(tokenizer, file.read_text(encoding="utf-8"))
    text = tokenizer.chat_template
    if isinstance(text, dict):
        text = text.get("tool_use") if tools and "tool_use" in text else text.get("default")
    return ChatTemplate(tokenizer, text) if text else None


def marked(template: ChatTemplate, stock: str) -> tuple[ChatTemplate, str]:
    """The template with marks around what the assistant says, and in words whose they are: its own,
    or those of TRL's variant of a family's template; as it is where nobody made any, for then a
    turn's text is found by difference (`rendering`).

    stock: the family's own text, on which a preface may stand.
    """
    if has_generation_markers(template.text):
        return template, "its own template"
    tokenizer = template.tokenizer
    text = None
    with suppress(*UNRENDERABLE), replaced(tokenizer, "chat_template", stock):
        text = get_training_chat_template(tokenizer)
    if not text or not has_generation_markers(text):
        return template, "difference: a turn's text is what changes when the turn does"
    return ChatTemplate(tokenizer, template.text.removesuffix(stock) + text), "TRL's variant of its template"


def unmarked(text: str) -> str:
    """A template without the marks, which no engine but transformers knows; it renders the same."""
    text = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", text)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", text)


def fitted(template: ChatTemplate, needs: Needs, by_difference: bool = False) -> tuple[ChatTemplate, list[str]]:
    """The template with a place for all that examples need, and in words what is written elsewhere.

    by_difference: what the assistant says is found so, and calls must stand alone for that.
    """
    lacks = {name for name, needed in vars(needs).items() if needed and not getattr(template.places, name)}
    if by_difference and needs.calls and "calls" not in lacks and not template.calls_stand_alone:
        lacks.add("calls")
    if not lacks:
        return template, []
    if lacks & {"several_calls", "calls", "results"} and needs.calls:  # written as text
        lacks.add("calls")
        if needs.tools:  # for the family's own prompt asks for calls in its own notation
            lacks.add("tools")
        if needs.results and not template.places.tool_turns:
            lacks.add("tool_turns")
    said = [WORDS[name] for name in WORDS if name in lacks]
    return ChatTemplate(template.tokenizer, preface(lacks, template.places.system) + template.text), said


def _common_beginning(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _common_end(one: str, other: str) -> int:
    return _common_beginning(one[::-1], other[::-1])
