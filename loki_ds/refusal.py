"""How loki-ds says no: one sentence, raised where the fact is known and shown once at the edge."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, quota or file-size limit
FIRST_RANKS_TURN = 3.0  # seconds


class Refusal(Exception):
    """A sentence naming the file, key or tensor, what was found there, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'quota'?` for the nearest known spelling, or nothing when none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def short(text: object, most: int = 80) -> str:
    """As much of a text as a sentence holds, in one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def short_end(text: object, most: int) -> str:
    """The same of its end."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"...{line[3 - most :]}"


@contextmanager
def shown_once(status: int = 2) -> Iterator[None]:
    """Show a refusal, or that a disk is full, as one sentence, and end this process with a status.

    Of several ranks the first speaks; another speaks only when the first has had the time to and
    did not, that is, when the refusal is its alone.
    """
    try:
        with full_disks_refused():
            yield
    except Refusal as refusal:
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(FIRST_RANKS_TURN)  # the launcher ends us in this time if rank 0 refuses too
        sys.stdout.flush()
        print(f"loki-ds: {refusal}", file=sys.stderr, flush=True)
        os._exit(status)  # no exit handlers: a collective in flight must not hold the process


@contextmanager
def full_disks_refused() -> Iterator[None]:
    """Turn the error of a full disk, quota or file-size limit into a refusal; other errors pass."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in FULL and not any(os.strerror(code) in str(error) for code in FULL):
            raise
        place = getattr(error, "filename", None) or "the folder written to"
        raise Refusal(f"{place}: no room to write ({error}); make room, and the same command resumes") from None
