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


# Marks of other trainers that say whether a turn is learned (ms-swift, axolotl, verl, OpenAI).
LEARNED = ("weight", "loss", "train", "trainable", "loss_mask", "loss_weight")
READ = ("from", "value", "tool_calls", "function_call", *LEARNED, "masked")  # keys that others stand for here


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
    role, calls = ROLES[said], parsed(turn.get("tool_calls")) or []
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise NotUnderstood(f"has {short(calls)} in 'tool_calls' (turn {place}), allowed is a list of calls")
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


def is_learned(turn: Any, place: int) -> bool:
    """Whether a turn may be learned, by the marks that it has."""
    for key in (*LEARNED, "masked", "mask"):
        value = turn.get(key) if isinstance(turn, dict) else None
        if value is None:
            continue
        if key == "mask":  # 1 says "learn" to some trainers, and "hide" to others
            raise NotUnderstood(f"has a turn with the mark 'mask' (turn {place}), which means both; say 'train'")
        if value not in (0, 1):
            raise NotUnderstood(f"has a turn of {key} {value!r} (turn {place}), allowed is 0 or 1")
        if bool(value) == (key == "masked"):
            return False
    return True


def _content(content: Any, place: int, may_be_empty: bool) -> str:
    """Text, or a list of parts that are text."""
    if content is None and may_be_empty:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else content
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


def with_ids(messages: list[Message]) -> list[Message]:
    """Calls and their results with ids of nine characters, numbered from the first, which is what
    templates that want ids take; results are those of the calls in their order.
    """
    numbered, waiting, count = [], [], 0
    for message in messages:
        if calls := message.get("tool_calls"):
            waiting = [f"call{count + i:05}" for i in range(1, len(calls) + 1)]
            count += len(calls)
            message = {**message, "tool_calls": [{**c, "id": n} for c, n in zip(calls, waiting, strict=True)]}
        elif message["role"] == "tool" and waiting:
            message = {**message, "tool_call_id": waiting.pop(0)}
        numbered.append(message)
    return numbered


def call_of(call: Any, place: int) -> dict[str, Any]:
    """One call as OpenAI has it, its arguments as an object."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise NotUnderstood(f"has the call {short(call)} (turn {place}), allowed is a name with an object of arguments")
    arguments = parsed(inner.get("arguments"))
    if arguments in (None, ""):  # what servers log of a function without parameters
        arguments = {}
    if not isinstance(arguments, dict):
        raise NotUnderstood(
            f"has a call of {inner['name']!r} with the arguments {short(arguments)} (turn {place}), allowed is an "
            "object of arguments"
        )
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise NotUnderstood(
            f"has a call of {inner['name']!r} whose arguments JSON cannot say (turn {place}): {short(error)}"
        ) from None
    kept = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function", **kept, "function": {"name": inner["name"], "arguments": arguments}}


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that may be called: a list or its JSON text, as OpenAI has them (once under the
    name of `functions`) or bare.
    """
    name = "tools" if row.get("tools") else "functions"
    listed = parsed(row.get(name)) or []
    tools = [parsed(tool) for tool in listed] if isinstance(listed, list) else []
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in tools):
        raise NotUnderstood(f"has {short(row[name])} in {name!r}, allowed is a list of functions")
    return [_tool(tool) for tool in tools]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """One function as OpenAI has it, its parameters as an object."""
    outer = tool if "function" in tool else {"type": "function", "function": tool}
    function = parsed(outer["function"])
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise NotUnderstood(f"has {short(tool)} among the functions, allowed is an object with a name")
    if isinstance(function.get("parameters"), str):
        function = {**function, "parameters": parsed(function["parameters"])}
    return {**outer, "function": _without_filling(function)}


def _without_filling(schema: Any) -> Any:
    """Without keys that are null: where Arrow wrote a file, every object has all the others' keys.
    Only what may be null by JSON Schema stays.
    """
    if isinstance(schema, dict):
        said = {key: part for key, part in schema.items() if part is not None or key in ("default", "const")}
        return {key: _without_filling(part) for key, part in said.items()}
    return [_without_filling(part) for part in schema] if isinstance(schema, list) else schema


def is_filled(row: dict[str, Any]) -> bool:
    """Whether a row's functions show that Arrow wrote them (`datasets.to_json` does)."""
    tools = parsed(row.get("tools") or row.get("functions"))
    return _without_filling(tools) != tools


def as_declared(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Calls without null arguments that their function does not have (Arrow fills them in, too)."""
    declared = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    return [
        {**message, "tool_calls": [_declared_call(call, declared) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _declared_call(call: dict[str, Any], declared: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    parameters = declared.get(function["name"])
    if not isinstance(parameters, dict):
        return call
    known = parameters.get("properties", parameters)  # xLAM's are the properties themselves
    arguments = {key: value for key, value in function["arguments"].items() if value is not None or key in known}
    return {**call, "function": {**function, "arguments": arguments}}


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
