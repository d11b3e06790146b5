"""How commands speak: JSON alone on the standard output, and the line of a gate."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loki_ds.report.schema import Report


def libraries_aside(asked: bool) -> AbstractContextManager:
    """While open, what libraries print goes to the standard error, if JSON is asked for."""
    return redirect_stdout(sys.stderr) if asked else nullcontext()


def print_json(value: Any) -> None:
    """Plain values, and what has fields by their names."""
    print(json.dumps(_plain(value), indent=1), file=sys.__stdout__)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_gate(report: "Report") -> int:
    from loki_ds.report.verdict import gate

    status, sentence = gate(report)
    print(f"gate: {sentence}")
    return status
