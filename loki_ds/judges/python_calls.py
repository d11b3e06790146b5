"""Tool calls written as Python, read as the Berkeley Function Calling Leaderboard reads them.

Its rules (bfcl-eval's `default_decode_ast_prompting`), odd ones included, as scores stand beside
its own: brackets are completed, positional arguments fall away, a later keyword wins, a bare name
is its own text, sums are computed, any sign is a minus. Nothing is called, and sums are bounded.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
SUMS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}
LARGEST = 1_000_000  # characters or elements that a repetition makes
LARGEST_BASE, LARGEST_POWER = 1e9, 64


class Call(NamedTuple):
    """One call: the function's name, dots and all, and its arguments by name."""

    function: str
    arguments: dict[str, Any]


def python_calls(text: str) -> list[Call] | None:
    """The calls in `[f(a=1), g.h(b='x')]`, with or without brackets; None for any other text."""
    text = text.strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    try:
        body = ast.parse(text, mode="eval").body
        nodes = [body] if isinstance(body, ast.Call) else body.elts  # type: ignore[attr-defined]
        return [_call(node) for node in nodes]
    except UNREADABLE:
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise TypeError("no call")
    return Call(_name(node.func), {str(keyword.arg): _value(keyword.value) for keyword in node.keywords})


def _name(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return ".".join(reversed(parts))


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -value  # type: ignore[operator]
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[arg-type]
        case ast.BinOp():
            return _sum(node)
        case ast.Name(id=name):
            return name
        case ast.Call():
            return {_name(node.func): _call(node).arguments} if node.keywords else ast.unparse(node)
        case ast.Subscript(value=value, slice=place):
            return f"{ast.unparse(value)}[{ast.unparse(place)}]"
    raise ValueError("no value")


def _sum(node: ast.expr) -> Any:
    """Python's own value of an expression of constants, where that is not large."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=elements):
            return [_sum(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_sum(element) for element in elements)
        case ast.UnaryOp(op=sign, operand=operand):
            return SIGNS[type(sign)](_sum(operand))
        case ast.BinOp(left=left, op=sign, right=right):
            first, second = _sum(left), _sum(right)
            if _is_large(sign, first, second):
                raise ValueError("too large")
            return SUMS[type(sign)](first, second)
    raise ValueError("no sum of constants")


def _is_large(sign: ast.operator, first: Any, second: Any) -> bool:
    if isinstance(sign, ast.Pow):
        return abs(second) > LARGEST_POWER or abs(first) > LARGEST_BASE
    if isinstance(sign, ast.Mod):
        return not isinstance(first, int | float)  # a text would be formatted
    pairs = ((first, second), (second, first))
    return isinstance(sign, ast.Mult) and any(
        isinstance(times, int) and hasattr(what, "__len__") and len(what) * abs(times) > LARGEST
        for times, what in pairs
    )
