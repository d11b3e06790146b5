"""The rules by which studies pick a method's setting."""

from collections.abc import Sequence
from typing import Any


def choose(tried: Sequence[dict[str, Any]], enough: float) -> dict[str, Any]:
    """Of the runs that reach `enough` held-out skill, the one that forgets least; where none does,
    the one with most skill.
    """
    skilled = [run for run in tried if run["skill"] >= enough]
    return min(skilled, key=lambda run: run["forgetting"]) if skilled else max(tried, key=lambda run: run["skill"])
