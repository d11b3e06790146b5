"""What a row says, whatever its layout: a conversation, a pair or a text.

Layouts, by their columns: `messages` as OpenAI has them (with `tools`, and a `system` beside them),
conversational `prompt`/`completion`, ShareGPT's `conversations` (with `system` and `tools`; ToolACE
and the LB reranker's set are of this kind), Alpaca (with `system` and `history`), Glaive's `chat`,
xLAM's `query`/`answers`; plain `prompt`/`completion` and `text`. What is not understood is refused
by name.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


class NotUnderstood(ValueError):
    """What is wrong with a row, in words; whoever knows its place adds it."""


@dataclass(frozen=True)
class Example:
    """Either a conversation (`messages`, with the tools that may be called) or texts.

    learnt_from: in a conversational pair the first message of the completion; what stands before it
    is never learnt.
    """

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    learnt_from: int = 0
    prompt: str | None = None
    text: str | None = None  # of the completion, or the whole where there is no prompt

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


def example_of(row: dict[str, Any]) -> Example:
    """The example of a row.

    Raises:
        NotUnderstood: no layout has these columns, or a value is not what the layout has there.
    """
    for columns, read in LAYOUTS:
        if columns <= row.keys():
            return read(row)
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
    raise NotUnderstood(f"has {_short(value)} in {name!r}, allowed is {'a text' if value != '' else 'some text'}")


def _list(row: dict[str, Any], name: str) -> list[Any]:
    """A column that holds a list, or the JSON text of one."""
    value = _parsed(row.get(name))
    if not isinstance(value, list) or not value:
        raise NotUnderstood(f"has {_short(row.get(name))} in {name!r}, allowed is a list of turns")
    return value


def _parsed(value: Any) -> Any:
    """JSON text as what it says; any other value as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- turns ----------------------------------------------------------------------------------------

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
}


def _turns(turns: list[Any]) -> list[Message]:
    """Turns of either kind, `{role, content}` or `{from, value}`, as one."""
    found = [_turn(turn, place) for place, turn in enumerate(turns, start=1)]
    if not any(message["role"] == "user" for message in found):
        raise NotUnderstood("is a conversation without a user's turn")
    return found


def _turn(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise NotUnderstood(f"has {_short(turn)} as turn {place}, allowed is an object with a role and a content")
    said, key = turn.get("role", turn.get("from")), "content" if "content" in turn or "role" in turn else "value"
    if said not in ROLES:
        raise NotUnderstood(f"has a turn from {said!r} (turn {place}), allowed are {', '.join(ROLES)}")
    if turn.get("weight", 1) != 1:
        raise NotUnderstood(f"has a turn of weight {turn['weight']} (turn {place}), allowed is 1")
    role, calls = ROLES[said], turn.get("tool_calls") or []
    content = turn.get(key)
    if said == "function_call":
        calls, content = _called(content, place), ""
    message = {name: value for name, value in turn.items() if name not in ("from", "value", "weight", "tool_calls")}
    message |= {"role": role, "content": _content(content, place, bool(calls))}
    if calls:
        message["tool_calls"] = [_call(call, place) for call in calls]
    if role == "assistant" and not calls and not message["content"].strip():
        raise NotUnderstood(f"has an empty answer (turn {place})")
    return message


def _content(content: Any, place: int, may_be_empty: bool) -> str:
    """Text, or a list of parts that are text."""
    if content is None and may_be_empty:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise NotUnderstood(f"has {_short(content)} as the content of turn {place}, allowed is text")
    return content


def _called(value: Any, place: int) -> list[Any]:
    """ShareGPT's `function_call`: the JSON text of one call or of several."""
    found = _parsed(value)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise NotUnderstood(f"has the call {_short(value)} (turn {place}), allowed is JSON with a name and arguments")
    return calls


def _call(call: Any, place: int) -> dict[str, Any]:
    """One call as OpenAI has it, its arguments as an object."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    arguments = _parsed(inner.get("arguments", {})) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not isinstance(arguments, dict):
        raise NotUnderstood(
            f"has the call {_short(call)} (turn {place}), allowed is a name with an object of arguments"
        )
    kept = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function", **kept, "function": {"name": inner["name"], "arguments": arguments}}


def _tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that may be called: a list or its JSON text, as OpenAI has them or bare."""
    found = _parsed(row.get("tools")) or []
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise NotUnderstood(f"has {_short(row['tools'])} in 'tools', allowed is a list of functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]


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
    return Example(_with_system(row, _turns(_list(row, "messages"))), _tools(row))


def _sharegpt(row: dict[str, Any]) -> Example:
    return Example(_with_system(row, _turns(_list(row, "conversations"))), _tools(row))


def _pair(row: dict[str, Any]) -> Example:
    if isinstance(row["prompt"], list):
        prompt, completion = (
            _turns(_list(row, "prompt")),
            [_turn(t, i) for i, t in enumerate(_list(row, "completion"), 1)],
        )
        messages = _with_system(row, prompt)
        return Example([*messages, *completion], _tools(row), learnt_from=len(messages))
    return Example(prompt=_text(row, "prompt"), text=_text(row, "completion"))


def _plain(row: dict[str, Any]) -> Example:
    return Example(text=_text(row, "text"))


def _alpaca(row: dict[str, Any]) -> Example:
    history = row.get("history") or []
    messages: list[Message] = []
    for turn in history if isinstance(history, list) else [history]:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)):
            raise NotUnderstood(f"has {_short(turn)} in 'history', allowed are pairs of a question and an answer")
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
            f"has {_short(row['chat'])} in 'chat', allowed are turns of USER, ASSISTANT, FUNCTION RESPONSE"
        )
    messages = []
    for place, (said, content) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        content = content.replace("<|endoftext|>", "").strip()
        call = GLAIVE_CALL.search(content) if said == "ASSISTANT" else None
        turn: Message = {"role": GLAIVE_ROLES[said], "content": content[: call.start()].strip() if call else content}
        if call:
            turn["tool_calls"] = [_glaive_call(call[1], place)]
        messages.append(_turn(turn, place))
    system = re.sub(r"^SYSTEM:\s*", "", _text(row, "system", needed=False))
    return Example(_with_system({"system": system}, messages))


def _glaive_call(text: str, place: int) -> dict[str, Any]:
    """`{"name": "f", "arguments": '{"a": 1}'}`: JSON but for its single quotes."""
    found = re.fullmatch(r'\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*\'?(\{.*\})\'?\s*\}', text.strip(), re.DOTALL)
    if not found:
        raise NotUnderstood(
            f"has the call {_short(text)} (turn {place}), allowed is a name with an object of arguments"
        )
    return {"name": found[1], "arguments": found[2].replace("\\'", "'")}


def _xlam(row: dict[str, Any]) -> Example:
    answer = {"role": "assistant", "content": None, "tool_calls": _list(row, "answers")}
    return Example(_turns([{"role": "user", "content": _text(row, "query")}, answer]), _tools(row))


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
    "messages": {"system", "tools"},
    "conversations": {"system", "tools"},
    "completion": {"system", "tools"},
    "instruction": {"input", "system", "history"},
    "answers": {"tools"},
    "chat": {"system"},
}
