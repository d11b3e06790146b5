"""Judge tool calls as the Berkeley Function Calling Leaderboard does: by the parsed call, not by
its text.

A call is right when it parses as Python, names the function, gives every required argument and no
unknown one, and each value is one of those the answer file allows (Patil et al., BFCL; the `ast`
categories simple, multiple, parallel and irrelevance).
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

IGNORED = re.compile(r"[ ,./\-_*^]")  # BFCL does not punish `April 1, 2024` for `April 1 2024`
OPTIONAL = ""  # in a list of allowed values: the argument may be left out


class Call(NamedTuple):
    """One parsed call: the function's name, dots and all, and its arguments by name."""

    function: str
    arguments: dict[str, Any]


def parse_calls(text: str) -> list[Call] | None:
    """The calls in `[f(a=1), g.h(b='x')]` or in a single `f(a=1)`; None when the text is anything
    else.
    """
    try:
        tree = ast.parse(text.strip().strip("`").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = [_call(node) for node in nodes]
    return None if any(call is None for call in calls) else [call for call in calls if call is not None]


def _call(node: ast.expr) -> Call | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    try:
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return Call(ast.unparse(node.func), arguments) if len(arguments) == len(node.keywords) else None


def judge(text: str, expected: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]]) -> bool:
    """Whether `text` makes exactly the expected calls, in any order.

    expected: BFCL's `ground_truth`, one `{function: {argument: [allowed values]}}` a call; empty
    for irrelevance, where no call is right.
    """
    calls = parse_calls(text)
    if not expected:
        return not calls
    return calls is not None and len(calls) == len(expected) and _assigned(calls, list(expected))


def _assigned(calls: list[Call], expected: list[Mapping[str, Any]]) -> bool:
    """Whether every call can be given an expected one of its own."""
    if not calls:
        return True
    return any(
        _matches(calls[0], one) and _assigned(calls[1:], expected[:i] + expected[i + 1 :])
        for i, one in enumerate(expected)
    )


def _matches(call: Call, expected: Mapping[str, Mapping[str, Sequence[Any]]]) -> bool:
    ((function, allowed),) = expected.items()
    return call.function == function and _arguments_match(call.arguments, allowed)


def _arguments_match(arguments: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> bool:
    required = {name for name, values in allowed.items() if OPTIONAL not in values}
    if not required <= arguments.keys() or not arguments.keys() <= allowed.keys():
        return False
    return all(any(_equal(value, option) for option in allowed[name]) for name, value in arguments.items())


def _equal(value: Any, option: Any) -> bool:
    """BFCL's equality: strings without case and punctuation, an integer for a float but not the
    other way, lists and dicts inside.
    """
    if isinstance(value, str) and isinstance(option, str):
        return _plain(value) == _plain(option)
    if isinstance(value, list | tuple) and isinstance(option, list):
        return len(value) == len(option) and all(_equal(v, o) for v, o in zip(value, option, strict=True))
    if isinstance(value, dict) and isinstance(option, dict):
        return _arguments_match(value, option)
    if isinstance(value, int) and not isinstance(value, bool) and isinstance(option, float):
        return float(value) == option
    return type(value) is type(option) and value == option


def _plain(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
