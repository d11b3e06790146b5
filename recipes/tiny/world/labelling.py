"""A second new task of the tiny world: name the kind of every word in a list.

The world for studies that change the new task.

The model uses the words and the names of their kinds every day, but was never asked for a kind.
"""

from random import Random
from typing import Any

from abilities import CATEGORIES

KINDS = [kind for kind in CATEGORIES if kind not in ("colour", "count")]


def draw(rng: Random) -> dict[str, Any]:
    """One chat: a list of two to five words, answered by their kinds in order."""
    kinds = rng.choices(KINDS, k=rng.randint(2, 5))
    words = " ".join(rng.choice(CATEGORIES[kind]) for kind in kinds)
    return {
        "messages": [
            {"role": "user", "content": f"please list {words}"},
            {"role": "assistant", "content": " ".join(kinds)},
        ]
    }
