"""The rules by which studies pick a method's setting."""

from collections.abc import Sequence
from typing import Any


def choose(tried: Sequence[dict[str, Any]], enough: float) -> dict[str, Any]:
    """Of the runs that reach `enough` held-out skill, the one that forgets least; where none does,
    the one with most skill.
    """
    skilled = [run for run in tried if run["skill"] >= enough]
    return min(skilled, key=lambda run: run["forgetting"]) if skilled else max(tried, key=lambda run: run["skill"])


def smallest_of_the_best(tried: Sequence[dict[str, Any]], within: float) -> dict[str, Any]:
    """Of the runs whose loss is within that share of the lowest, the one with the smallest rate: it
    changes least.
    """
    enough = (1 + within) * min(run["loss"] for run in tried)
    return min((run for run in tried if run["loss"] <= enough), key=lambda run: run["rate"])


def next_rate(tried: Sequence[dict[str, Any]]) -> float | None:
    """The rate to try next where the lowest loss is that of the smallest or the largest rate."""
    rates = sorted(run["rate"] for run in tried)
    best = min(tried, key=lambda run: run["loss"])["rate"]
    return best / 2 if best == rates[0] else best * 2 if best == rates[-1] else None
