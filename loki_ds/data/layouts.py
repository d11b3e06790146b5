"""What a row says, whatever its layout: a conversation, a pair or a text.

Layouts, by columns: `messages` as OpenAI has them (with `tools`, and a `system` beside them),
conversational `prompt`/`completion`, ShareGPT's `conversations` (with `system` and `tools`; ToolACE
and the LB reranker's set are such), Alpaca (with `system` and `history`), Glaive's `chat`, xLAM's
`query`/`answers`; plain `prompt`/`completion` and `text`. Others are refused by name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from loki_ds.data.messages import (
    Message,
    NotUnderstood,
    as_declared,
    is_filled,
    is_learned,
    parsed,
    short,
    tools_of,
    turn_of,
    turns_of,
)


@dataclass(frozen=True)
class Example:
    """Either a conversation (`messages`, with the tools that may be called) or texts.

    learned_from: in a conversational pair the first message of the completion; what stands before
    it is never learned. unlearned: places of messages that a mark forbids to learn.
    """

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    learned_from: int = 0
    unlearned: frozenset[int] = frozenset()
    prompt: str | None = None
    text: str | None = None  # of the completion, or the whole where there is no prompt

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)

    @property
    def called(self) -> set[str]:
        """Names of the functions that its turns call."""
        calls = (call for message in self.messages for call in message.get("tool_calls") or ())
        return {call["function"]["name"] for call in calls}

    @property
    def listed(self) -> set[str]:
        """Names of the functions that may be called."""
        return {str(tool.get("function", tool).get("name")) for tool in self.tools}

    @property
    def answered(self) -> bool:
        """Whether a conversation ends with what the assistant says."""
        return self.is_chat and self.messages[-1]["role"] == "assistant"


def example_of(row: dict[str, Any]) -> Example:
    """The example of a row.

    Raises:
        NotUnderstood: no layout has these columns, or a value is not what the layout has there.
    """
    for columns, read in LAYOUTS:
        if columns <= row.keys():
            example = read(row)
            declared = as_declared(example.messages, example.tools) if is_filled(row) else example.messages
            return replace(example, messages=declared)
    raise NotUnderstood(
        f"has the columns {sorted(row)}, allowed are 'messages', 'prompt' with 'completion', 'text', ShareGPT's "
        "'conversations', Alpaca's 'instruction' with 'output', Glaive's 'chat', xLAM's 'query' with 'answers'"
    )


def columns_read(row: dict[str, Any]) -> set[str]:
    """The columns of a row that its layout reads; others are of no use."""
    for columns, _ in LAYOUTS:
        if columns <= row.keys():
            return {*columns, *(BESIDE.get(min(columns), set()) & row.keys())}
    return set()


# --- values ---------------------------------------------------------------------------------------


def _text(row: dict[str, Any], name: str, needed: bool = True) -> str:
    """A column that holds text; empty where it may be."""
    value = row.get(name)
    if isinstance(value, str) and (value.strip() or not needed):
        return value
    if value is None and not needed:
        return ""
    raise NotUnderstood(f"has {short(value)} in {name!r}, allowed is {'a text' if value != '' else 'some text'}")


def _list(row: dict[str, Any], name: str) -> list[Any]:
    """A column that holds a list, or the JSON text of one."""
    value = parsed(row.get(name))
    if not isinstance(value, list) or not value:
        raise NotUnderstood(f"has {short(row.get(name))} in {name!r}, allowed is a list of turns")
    return value


def _with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """A `system` column as the first turn."""
    system = _text(row, "system", needed=False)
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        raise NotUnderstood("has a system turn and a column 'system', allowed is one of them")
    return [{"role": "system", "content": system}, *messages]


# --- layouts --------------------------------------------------------------------------------------


def _messages(row: dict[str, Any]) -> Example:
    return _conversation(row, _list(row, "messages"))


def _sharegpt(row: dict[str, Any]) -> Example:
    return _conversation(row, _list(row, "conversations"))


def _conversation(row: dict[str, Any], turns: list[Any]) -> Example:
    messages = _with_system(row, turns_of(turns))
    return Example(messages, tools_of(row), unlearned=_unlearned(turns, len(messages) - len(turns)))


def _unlearned(turns: list[Any], first: int) -> frozenset[int]:
    """Places of turns that a mark forbids to learn. first: the place of the first turn."""
    return frozenset(first + i for i, turn in enumerate(turns) if not is_learned(turn, i + 1))


def _pair(row: dict[str, Any]) -> Example:
    if row.get("label") is False:
        raise NotUnderstood("has a completion with the label false, which is an answer not to give; leave the row out")
    if isinstance(row["prompt"], list):
        completion = _list(row, "completion")
        messages = _with_system(row, turns_of(_list(row, "prompt")))
        answers = [turn_of(turn, i) for i, turn in enumerate(completion, 1)]
        first = len(messages)
        return Example([*messages, *answers], tools_of(row), first, _unlearned(completion, first))
    return Example(prompt=_text(row, "prompt"), text=_text(row, "completion"))


def _plain(row: dict[str, Any]) -> Example:
    return Example(text=_text(row, "text"))


def _alpaca(row: dict[str, Any]) -> Example:
    history = row.get("history") or []
    messages: list[Message] = []
    for turn in history if isinstance(history, list) else [history]:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)):
            raise NotUnderstood(f"has {short(turn)} in 'history', allowed are pairs of a question and an answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked, given = _text(row, "instruction"), _text(row, "input", needed=False)
    messages += [{"role": "user", "content": f"{asked}\n\n{given}" if given else asked}]
    messages += [{"role": "assistant", "content": _text(row, "output")}]
    return Example(_with_system(row, messages))


GLAIVE = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):\s*")
GLAIVE_CALL = re.compile(r"<functioncall>\s*(\{.*\})", re.DOTALL)
GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}


def _glaive(row: dict[str, Any]) -> Example:
    """Glaive's function calling v2: one text for all turns, calls behind `<functioncall>`."""
    begin, *parts = GLAIVE.split(_text(row, "chat"))
    if begin.strip() or not parts:
        raise NotUnderstood(
            f"has {short(row['chat'])} in 'chat', allowed are turns of USER, ASSISTANT, FUNCTION RESPONSE"
        )
    messages = []
    for place, (said, content) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        content = content.replace("<|endoftext|>", "").strip()
        call = GLAIVE_CALL.search(content) if said == "ASSISTANT" else None
        turn: Message = {"role": GLAIVE_ROLES[said], "content": content[: call.start()].strip() if call else content}
        if call:
            turn["tool_calls"] = [_glaive_call(call[1], place)]
        messages.append(turn_of(turn, place))
    system = re.sub(r"^SYSTEM:\s*", "", _text(row, "system", needed=False))
    return Example(_with_system({"system": system}, messages))


def _glaive_call(text: str, place: int) -> dict[str, Any]:
    """`{"name": "f", "arguments": '{"a": 1}'}`: JSON but for its single quotes."""
    match = re.fullmatch(r'\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*\'?(\{.*\})\'?\s*\}', text.strip(), re.DOTALL)
    if not match:
        raise NotUnderstood(f"has the call {short(text)} (turn {place}), allowed is a name with an object of arguments")
    return {"name": match[1], "arguments": match[2].replace("\\'", "'")}


def _xlam(row: dict[str, Any]) -> Example:
    if parsed(row.get("answers")) == []:
        raise NotUnderstood(
            "has no call in 'answers' and no text beside them; say by 'messages' what is answered where no function "
            "fits, or leave the row out"
        )
    answer = {"role": "assistant", "content": None, "tool_calls": _list(row, "answers")}
    return Example(turns_of([{"role": "user", "content": _text(row, "query")}, answer]), tools_of(row))


LAYOUTS: list[tuple[set[str], Callable[[dict[str, Any]], Example]]] = [
    ({"messages"}, _messages),
    ({"conversations"}, _sharegpt),
    ({"prompt", "completion"}, _pair),
    ({"instruction", "output"}, _alpaca),
    ({"query", "answers"}, _xlam),
    ({"chat"}, _glaive),
    ({"text"}, _plain),
]
# What a layout also reads where it is there, by the first of its columns.
BESIDE = {
    "messages": {"system", "tools", "functions"},
    "conversations": {"system", "tools", "functions"},
    "completion": {"system", "tools", "functions", "label"},
    "instruction": {"input", "system", "history"},
    "answers": {"tools"},
    "chat": {"system"},
}
