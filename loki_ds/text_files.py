"""Text files that people wrote: UTF-8, lines that end at a newline and nowhere else, and one
sentence for what is not.

`str.splitlines` also splits at U+2028, U+0085 and others, which JSON allows inside its texts; so it
is never used on a file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loki_ds.refusal import Refusal


def read_text(file: Path, what: str) -> str:
    """All of it, without a byte-order mark.

    Raises:
        Refusal: it cannot be read, or is not UTF-8; it names the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Refusal(f"{file}: the {what} cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        at = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise Refusal(f"{file}: line {line} is not UTF-8 (byte {at} of it is {content[error.start]:#04x})") from None


def lines_of(file: Path, what: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(read_text(file, what).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def json_lines(file: Path, what: str) -> Iterator[tuple[int, Any]]:
    """JSON Lines: the values of the lines that are not blank.

    Raises:
        Refusal: a line is not JSON.
    """
    for number, line in lines_of(file, what):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise Refusal(f"{file}: line {number} is not JSON") from None
