"""The notations in which models write tool calls: Python, JSON, Hermes' and Llama's; after a
thought or without one.

What a text looks like decides. Python is read as the leaderboard reads models that are prompted;
the others as it reads the models that are trained on them (bfcl-eval's `model_handler`: `hammer`,
`qwen_fc`, `llama_3_1`).
"""

import json
import re
from typing import Any

from loki_ds.judges.python_calls import Call, python_calls

THOUGHT = "</think>"
HERMES = ("<tool_call>", "</tool_call>")
LLAMA = "<|python_tag|>"
ARGUMENTS = ("arguments", "parameters")
OF_A_CALL = {"name", *ARGUMENTS, "id", "type"}  # a function's own description has more


def parse_calls(text: str) -> list[Call] | None:
    """The calls that a model's answer makes; None when it is anything else."""
    answer = text.rpartition(THOUGHT)[2] if THOUGHT in text else text
    if HERMES[0] in answer:
        return _json_calls([part.partition(HERMES[1])[0] for part in answer.split(HERMES[0])[1:]])
    bare = answer.strip().removeprefix(LLAMA).strip("`\n ").removeprefix("json\n").strip()
    if bare.startswith("{"):
        return _json_calls(_objects(bare))
    if bare.startswith("[") and bare[1:].lstrip().startswith("{"):
        return _json_calls([bare])
    return python_calls(answer)


def _objects(text: str) -> list[str]:
    """Llama's `{...}; {...}`, one object after another."""
    decoder, objects, place = json.JSONDecoder(), [], 0
    while place < len(text):
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return [text]  # no JSON, which is then said of it
        objects.append(text[place:end])
        place = end + len(re.match(r"[\s;]*", text[end:])[0])  # type: ignore[index]
    return objects


def _json_calls(texts: list[str]) -> list[Call] | None:
    """Calls as objects with a name and arguments, or as lists of such."""
    try:
        read = [json.loads(text) for text in texts]
        objects = [call for value in read for call in (value if isinstance(value, list) else [value])]
        return [_call(call) for call in objects]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _call(value: dict[str, Any]) -> Call:
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = value["name"], value.get("arguments", value.get("parameters"))
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not isinstance(arguments, dict) or not value.keys() <= OF_A_CALL:
        raise ValueError("a call has a name and arguments by name")
    return Call(name, arguments)
