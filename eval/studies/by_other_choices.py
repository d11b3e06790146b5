"""How much the primary comparison of the registered study hangs on a choice: the same by others."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from by_run import NINE_TENTHS, Asked, Place, Runs, at_equal_skill, common_skill, loss_at, losses, mean_loss, short


class Choice(NamedTuple):
    """Which tasks count, whether falls do, and where runs are compared."""

    name: str
    tasks: Sequence[str]
    lost: Callable[[Asked, Asked, Sequence[str]], float] = mean_loss
    compared: Callable[[Runs], list[float]] = at_equal_skill


def choices(tasks: Sequence[str]) -> Iterator[Choice]:
    yield Choice("as registered", tasks)
    yield Choice("falls count, too", tasks, lost=signed_mean)
    for left_out in tasks:
        yield Choice(f"without {short(left_out)}", [task for task in tasks if task != left_out])
    yield Choice("half of the change", tasks, compared=lambda runs: [run[1].loss for run in runs])
    yield Choice("the whole change's skill", tasks, compared=at_the_wholes_skill)
    yield Choice("skill reached for the last time", tasks, compared=where_skill_is_reached_last)


def signed_mean(base: Asked, now: Asked, tasks: Sequence[str]) -> float:
    return float(np.mean(list(losses(base, now, tasks).values())))


def at_the_wholes_skill(runs: Runs) -> list[float]:
    skill = NINE_TENTHS * min(run[-1].skill for run in runs)
    return [loss_at(run, skill=skill) for run in runs]


def where_skill_is_reached_last(runs: Runs) -> list[float]:
    """Where a run that falls back passes the level again."""
    skill = common_skill(runs)
    return [loss_where_last(run, skill) for run in runs]


def loss_where_last(run: Sequence[Place], skill: float) -> float:
    for one, other in reversed(list(pairwise(run))):
        if min(one.skill, other.skill) <= skill <= max(one.skill, other.skill):
            share = (skill - one.skill) / (other.skill - one.skill) if other.skill != one.skill else 0.0
            return one.loss + share * (other.loss - one.loss)
    return float("nan")
