"""Decisions with both sides: right where something is asked for, and silent where nothing is.

A model that always acts wins one side and loses the other, so neither says much alone. A task of
the second side names the first in its YAML (`metadata: opposite: TASK`); both weigh alike.
"""

from collections.abc import Mapping, Sequence
from math import hypot

from loki_ds.report.schema import Decision, TaskLine

CANNOT = 0.05  # a base that is right in less of the first side has no skill, whatever its second


def decisions_of(lines: Sequence[TaskLine], opposites: Mapping[str, str], margin: float) -> list[Decision]:
    """The pairs of which both sides were asked.

    lines: of all tasks, the main metric's first; opposites: the first side's task by the second's.
    """
    by_task = {line["task"]: line for line in reversed(lines)}
    return [
        _decision(by_task[acts], by_task[refrains], margin)
        for refrains, acts in opposites.items()
        if acts in by_task and refrains in by_task
    ]


def _decision(acts: TaskLine, refrains: TaskLine, margin: float) -> Decision:
    low, high = interval_of_mean(acts, refrains)
    lost = high < 0 or "lost" in (acts["verdict"], refrains["verdict"])
    return {
        "acts": acts["task"],
        "refrains": refrains["task"],
        "acts_scores": (acts["base"], acts["implanted"]),
        "refrains_scores": (refrains["base"], refrains["implanted"]),
        "base": (acts["base"] + refrains["base"]) / 2,
        "implanted": (acts["implanted"] + refrains["implanted"]) / 2,
        "change": (acts["change"] + refrains["change"]) / 2,
        "ci": (low, high),
        "verdict": "lost" if lost else "kept" if low > -margin else "not shown",
        "base_can_act": acts["base"] >= CANNOT,
    }


def interval_of_mean(acts: TaskLine, refrains: TaskLine) -> tuple[float, float]:
    """95%, of the mean of two changes from their own intervals, which no document shares: distances
    to the ends add as squares (Zou and Donner, Statistics in Medicine 27, 2008, 1693).
    """
    change = (acts["change"] + refrains["change"]) / 2
    down, up = (hypot(*(line["ci"][end] - line["change"] for line in (acts, refrains))) / 2 for end in (0, 1))
    return change - down, change + up
