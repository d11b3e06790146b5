"""Text files that people wrote: UTF-8, lines that end at a newline and nowhere else, and one
sentence for what is not.

`str.splitlines` also splits at U+2028, U+0085 and others, which JSON allows inside its texts; so it
is never used on a file.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loki_ds.refusal import Refusal


def read_text(file: Path, what: str) -> str:
    """All of it, without a byte-order mark.

    Raises:
        Refusal: it cannot be read, or is not UTF-8; it names the line.
    """
    return "".join(line for _, line in _decoded_lines(file, what))


def lines_of(file: Path, what: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1, one at a time.

    Raises:
        Refusal: as `read_text`.
    """
    for number, line in _decoded_lines(file, what):
        if line.strip():
            yield number, line.removesuffix("\n").removesuffix("\r")


def _decoded_lines(file: Path, what: str) -> Iterator[tuple[int, str]]:
    try:
        with file.open("rb") as handle:  # as bytes, lines end at a newline and nowhere else
            for number, line in enumerate(handle, start=1):
                yield number, _decoded(file, number, line.removeprefix(BOM_UTF8) if number == 1 else line)
    except OSError as error:
        raise Refusal(f"{file}: the {what} cannot be read: {error.strerror}") from None


def _decoded(file: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        broken = f"byte {error.start + 1} of it is {line[error.start]:#04x}"
        raise Refusal(f"{file}: line {number} is not UTF-8 ({broken})") from None


def json_lines(file: Path, what: str) -> Iterator[tuple[int, Any]]:
    """JSON Lines: the values of the lines that are not blank.

    Raises:
        Refusal: a line is not JSON.
    """
    for number, line in lines_of(file, what):
        yield number, json_value(line, f"{file}: line {number}")


def json_value(text: str, place: str) -> Any:
    """What a JSON text says.

    place: of the text, for the sentence.

    Raises:
        Refusal: it is not JSON, says a key twice, or holds what is no text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except _Twice as twice:
        raise Refusal(f"{place} has the key {twice.args[0]!r} twice, allowed is once") from None
    except (ValueError, RecursionError):
        raise Refusal(f"{place} is not JSON") from None
    if "\\ud" in text.lower() and not _is_text(value):
        raise Refusal(f"{place} holds half of a surrogate pair, which is no text")
    return value


class _Twice(Exception):
    """A key that an object has twice; Python would take the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return made


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
