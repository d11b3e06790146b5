"""Judge tool calls as the Berkeley Function Calling Leaderboard does: by parsed call, not by text.

A call is right when it names the function, gives every required argument and no unknown one, and
each value is one of those the answer file allows, of the type the function declares (Patil et al.,
BFCL; bfcl-eval's `ast_checker`). Held against that package: `eval/reports/bfcl.md`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loki_ds.judges.notations import parse_calls
from loki_ds.judges.python_calls import Call

IGNORED = re.compile(r"[ ,./\-_*^]")  # BFCL does not punish `April 1, 2024` for `April 1 2024`
OPTIONAL = ""  # in a list of allowed values: the argument may be left out
TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
Allowed = Mapping[str, Sequence[Any]]


def judge(
    text: str, expected: Sequence[Mapping[str, Allowed]], functions: Sequence[Mapping[str, Any]], category: str
) -> bool:
    """Whether `text` makes exactly the expected calls, in any order.

    In a category of irrelevance no call is right, in one of relevance any.

    Args:
        expected: BFCL's `ground_truth`, one `{function: {argument: [allowed values]}}` a call.
        functions: the functions that the model was shown, with their `parameters`.
        category: BFCL's name of it.
    """
    calls = parse_calls(text)
    if "relevance" in category:
        return bool(calls) is ("irrelevance" not in category)
    if calls is None or len(calls) != len(expected):
        return False
    declared = {function["name"]: function["parameters"] for function in reversed(functions)}
    try:
        return _all_made(calls, expected, declared)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # where bfcl-eval ends with a traceback


def _all_made(calls: Sequence[Call], expected: Sequence[Mapping[str, Allowed]], declared: Mapping[str, Any]) -> bool:
    """Each expected call takes the first that fits it and is left, as BFCL does."""
    left = list(calls)
    for call in expected:
        ((name, allowed),) = call.items()
        fits = (i for i, call in enumerate(left) if call.function == name and _fits(call, allowed, declared[name]))
        place = next(fits, None)
        if place is None:
            return False
        del left[place]
    return True


def _fits(call: Call, allowed: Allowed, declared: Mapping[str, Any]) -> bool:
    given, properties = call.arguments, declared["properties"]
    if not all(name in given for name in declared["required"]):
        return False
    if not all(name in properties and name in allowed for name in given):
        return False
    if not all(name in given or OPTIONAL in values for name, values in allowed.items()):
        return False
    return all(_is_allowed(value, allowed[name], properties[name]) for name, value in given.items())


def _is_allowed(value: Any, options: Sequence[Any], declared: Mapping[str, Any]) -> bool:
    """One value against those allowed: exactly where types differ from the declared one, else
    without case and punctuation.
    """
    wanted, kind = TYPES[declared["type"]], declared["type"]
    item = TYPES[declared["items"]["type"]] if kind in ("array", "tuple") else None
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    given, first = type(value), _first_type(options)
    if given is not wanted:
        return given is first and value in options
    if item is not None and not any(_has_items(value, option, item) for option in options):
        return False
    if first not in (None, wanted):
        return value in options
    if wanted is dict:
        return any(_same_dict(value, option) for option in options if option != OPTIONAL)
    if wanted is list and item is dict:
        return any(_same_dicts(value, option) for option in options)
    if wanted is list:
        return [_plain(item) for item in value] in [[_plain(item) for item in option] for option in options]
    if wanted is str:
        return _plain(value) in [_plain(option) for option in options if isinstance(option, str)]
    return value in options


def _first_type(options: Sequence[Any]) -> type | None:
    return next((type(option) for option in options if option != OPTIONAL), None)


def _has_items(value: list[Any], option: Any, item: type) -> bool:
    """Whether a list's elements are of the declared type, or of the option's own."""
    return not isinstance(option, list) or all(type(one) in (item, _first_type(option)) for one in value)


def _same_dicts(value: list[Any], option: Sequence[Any]) -> bool:
    return len(value) == len(option) and all(map(_same_dict, value, option))


def _same_dict(value: Mapping[str, Any], option: Any) -> bool:
    """Whether every key holds one of the option's values, and only optional ones are missing."""
    if not isinstance(value, dict) or not isinstance(option, dict):
        return False
    if not all(key in value or OPTIONAL in values for key, values in option.items()):
        return False
    return all(key in option and _plain(item) in [_plain(o) for o in option[key]] for key, item in value.items())


def _plain(value: Any) -> Any:
    return IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
