"""What one turn of a conversation says, with its calls, whichever of the two spellings it has."""

import json
from typing import Any

Message = dict[str, Any]


class NotUnderstood(ValueError):
    """What is wrong with a row, in words; whoever knows its place adds it."""


ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
}


READ = ("from", "value", "weight", "tool_calls", "function_call")  # keys that others stand for here


def turns_of(turns: list[Any]) -> list[Message]:
    """Turns of either kind, `{role, content}` or `{from, value}`, as one."""
    messages = [turn_of(turn, place) for place, turn in enumerate(turns, start=1)]
    if not any(message["role"] == "user" for message in messages):
        raise NotUnderstood("is a conversation without a user's turn")
    return messages


def turn_of(turn: Any, place: int) -> Message:
    if not isinstance(turn, dict):
        raise NotUnderstood(f"has {short(turn)} as turn {place}, allowed is an object with a role and a content")
    said, key = turn.get("role", turn.get("from")), "content" if "content" in turn or "role" in turn else "value"
    if said not in ROLES:
        raise NotUnderstood(f"has a turn from {said!r} (turn {place}), allowed are {', '.join(ROLES)}")
    if turn.get("weight", 1) != 1:
        raise NotUnderstood(f"has a turn of weight {turn['weight']} (turn {place}), allowed is 1")
    role, calls = ROLES[said], turn.get("tool_calls") or []
    content = turn.get(key)
    if said == "function_call":
        calls, content = _called(content, place), ""
    if turn.get("function_call"):  # OpenAI's older name for one call
        calls = [*calls, *_called(turn["function_call"], place)]
    message = {name: value for name, value in turn.items() if name not in READ and value is not None}
    message |= {"role": role, "content": _content(content, place, bool(calls))}
    if calls:
        message["tool_calls"] = [call_of(call, place) for call in calls]
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
        raise NotUnderstood(f"has {short(content)} as the content of turn {place}, allowed is text")
    return content


def _called(value: Any, place: int) -> list[Any]:
    """ShareGPT's `function_call`: the JSON text of one call or of several."""
    read = parsed(value)
    calls = read if isinstance(read, list) else [read]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise NotUnderstood(f"has the call {short(value)} (turn {place}), allowed is JSON with a name and arguments")
    return calls


def call_of(call: Any, place: int) -> dict[str, Any]:
    """One call as OpenAI has it, its arguments as an object."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    arguments = parsed(inner.get("arguments", {})) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not isinstance(arguments, dict):
        raise NotUnderstood(f"has the call {short(call)} (turn {place}), allowed is a name with an object of arguments")
    kept = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function", **kept, "function": {"name": inner["name"], "arguments": arguments}}


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that may be called: a list or its JSON text, as OpenAI has them (once under the
    name of `functions`) or bare.
    """
    name = "tools" if row.get("tools") else "functions"
    tools = parsed(row.get(name)) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise NotUnderstood(f"has {short(row[name])} in {name!r}, allowed is a list of functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def parsed(value: Any) -> Any:
    """JSON text as what it says; any other value as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
