"""The one way loki-ds says no: a sentence for the user, raised where the fact is known and shown
once at the edge.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class Refusal(Exception):
    """A sentence naming the file, key or tensor, what was found there, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'quota'?` for the nearest known spelling, or nothing when none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
