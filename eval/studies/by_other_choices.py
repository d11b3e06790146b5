"""How much the primary comparison of the registered study hangs on a choice: the same by others."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from by_run import NINE_TENTHS, Asked, Place, Runs, at_equal_skill, loss_at, losses, places


class Choice(NamedTuple):
    """Which tasks count, whether falls do, and where runs are compared."""

    name: str
    tasks: Sequence[str]
    signed: bool = False
    compared: Callable[[Runs], list[float]] = at_equal_skill


def choices(tasks: Sequence[str]) -> Iterator[Choice]:
    yield Choice("as registered", tasks)
    yield Choice("falls count, too", tasks, signed=True)
    for left_out in tasks:
        yield Choice(
            f"without {left_out.removeprefix('real_').removeprefix('gold_')}",
            [task for task in tasks if task != left_out],
        )
    yield Choice("half of the change", tasks, compared=lambda runs: [run[1].loss for run in runs])
    yield Choice("the whole change's skill", tasks, compared=at_the_wholes_skill)
    yield Choice("skill reached for the last time", tasks, compared=where_skill_is_reached_last)


def curve(choice: Choice, base: Asked, cell: dict[str, Any], skill: str) -> list[Place]:
    """A run's places, their losses as chosen."""
    registered = places(base, cell, choice.tasks, skill)
    if not choice.signed:
        return registered
    asked = [now for _, now in sorted(cell["places"].items(), key=lambda place: float(place[0]))]
    signed = [0.0, *(float(np.mean(list(losses(base, now, choice.tasks).values()))) for now in asked)]
    return [place._replace(loss=loss) for place, loss in zip(registered, signed, strict=True)]


def at_the_wholes_skill(runs: Runs) -> list[float]:
    skill = NINE_TENTHS * min(run[-1].skill for run in runs)
    return [loss_at(run, skill=skill) for run in runs]


def where_skill_is_reached_last(runs: Runs) -> list[float]:
    """Where a run that falls back passes the level again."""
    skill = NINE_TENTHS * min(max(place.skill for place in run) for run in runs)
    return [loss_where_last(run, skill) for run in runs]


def loss_where_last(run: Sequence[Place], skill: float) -> float:
    for one, other in reversed(list(pairwise(run))):
        if min(one.skill, other.skill) <= skill <= max(one.skill, other.skill):
            share = (skill - one.skill) / (other.skill - one.skill) if other.skill != one.skill else 0.0
            return one.loss + share * (other.loss - one.loss)
    return float("nan")
