"""What paired documents show of each task: change with interval and test, and verdict at a margin.

"Nothing was lost" is not "p is large": a task counts as kept only when its whole interval lies
within the margin, and every task says the smallest change its documents could have shown.
Intervals, tests and corrections come from statsmodels and scipy where they have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from loki_ds.retention.mean_change import LEVEL, MeanChange, mcnemar_detectable, mean_change
from loki_ds.retention.pairing import PairedTask

OWN_SCALE = "of its own scale"  # scores that do not lie between 0 and 1, as BLEU's
FEWEST = 4  # subtasks of a group that is ever `kept`; fewer do not show how much subtasks differ


class TaskChange(TypedDict):
    """One task by one metric on both arms, as reports have it; of a task that was decided before
    the last document (`stopping`) scores and change are of those asked, all else of all of them.
    """

    task: str
    metric: str
    unit: str  # score, nats, bits per byte, or `OWN_SCALE`
    higher_is_better: bool
    n: int  # documents asked
    documents: int  # of the task; more than n where it was decided before the last
    clusters: int  # subtasks of a group; 0 for a task of one piece
    base: float
    implanted: float
    change: float  # implanted minus base
    ci: tuple[float, float]  # 95%
    floor: float  # of the gain, where `kept` is decided (`MeanChange.floor`; of 0 and 1 the interval's end)
    p_value: float
    p_holm: float  # after Holm's correction over the suite
    worse: int  # documents
    better: int
    detectable: float  # the smallest loss these documents would have shown in four cases of five
    margin: float  # in the metric's unit
    verdict: str  # kept, lost (Holm-corrected) or not shown; of a new task learned, lost or not shown


def gain_of(change: TaskChange) -> float:
    """The change, above 0 where it is for the better."""
    return change["change"] if change["higher_is_better"] else -change["change"]


def suite_changes(tasks: Sequence[PairedTask], margin: float) -> list[TaskChange]:
    """Every task's change, with the correction over all of them and a verdict.

    margin: of a score (0.01 is one point); of a measure without bounds, relative to the base's.
    """
    changes = [task_change(task) for task in tasks]
    if not changes:
        return []
    corrected = multipletests([change["p_value"] for change in changes], alpha=LEVEL, method="holm")[1]
    return [_judged(change, float(p), margin) for change, p in zip(changes, corrected, strict=True)]


def _judged(change: TaskChange, p_holm: float, margin: float) -> TaskChange:
    allowed = margin if change["unit"] == "score" else margin * abs(change["base"])
    verdict = "not shown"
    few = 0 < change["clusters"] < FEWEST and change["n"] == change["documents"]
    if change["floor"] > -allowed and not few:
        verdict = "kept"
    elif gain_of(change) < 0 and p_holm < LEVEL:
        verdict = "lost"
    return {**change, "p_holm": p_holm, "margin": allowed, "verdict": verdict}


def task_change(task: PairedTask) -> TaskChange:
    """Paired change of one task.

    Scores of 0 and 1: Newcombe's paired interval (1998, method 10) and the exact McNemar test.
    Other scores, and groups of subtasks (MMLU's subjects), whose documents fall and rise together:
    `mean_change`. Of a task that was stopped: the bounds that stopped it.
    """
    metric, scores = task.metric, scores_of(task)
    base, implanted = scores.base, scores.implanted
    better = implanted - base if metric["higher_is_better"] else base - implanted
    if scores.clusters is None and bool(np.isin(np.concatenate([base, implanted]), (0, 1)).all()):
        low, high = paired_proportions_interval(base, implanted)
        p_value, detectable = _mcnemar(base, implanted), mcnemar_detectable(len(base), int((better > 0).sum()))
        value = float((implanted - base).mean())
        floor = low if metric["higher_is_better"] else -high
    else:
        change = scores.mean_change(better)
        floor, (low, high) = change.floor(), change.interval()
        low, high = (low, high) if metric["higher_is_better"] else (-high, -low)
        p_value, detectable = change.p_value(), change.detectable()
        value = change.value if metric["higher_is_better"] else -change.value
    if task.stopped is not None:
        floor, top, p_value = task.stopped["low"], task.stopped["high"], task.stopped["p_value"]
        low, high = (floor, top) if metric["higher_is_better"] else (-top, -floor)
    return TaskChange(
        task=task.task,
        metric=metric["name"],
        unit=metric["unit"] if metric["unit"] != "score" or scores.bounded else OWN_SCALE,
        higher_is_better=metric["higher_is_better"],
        n=len(base),
        documents=task.stopped["documents"] if task.stopped else len(base),
        clusters=0 if scores.clusters is None else int(scores.clusters.max()) + 1,
        base=scores.mean(base),
        implanted=scores.mean(implanted),
        change=value,
        ci=(low, high),
        floor=floor,
        p_value=p_value,
        worse=int((better < 0).sum()),
        better=int((better > 0).sum()),
        detectable=detectable,
        margin=0.0,
        p_holm=1.0,
        verdict="not shown",
    )


@dataclass(frozen=True)
class Scores:
    """A task's documents on both arms, `[n]` each; clusters: numbers of their subtasks, None for a
    task of one piece; by_size: whether subtasks weigh by their documents.
    """

    base: np.ndarray
    implanted: np.ndarray
    clusters: np.ndarray | None
    by_size: bool

    @property
    def bounded(self) -> bool:
        """Whether all scores lie between 0 and 1."""
        return bool(min(self.base.min(), self.implanted.min()) >= 0 and max(self.base.max(), self.implanted.max()) <= 1)

    def mean(self, values: np.ndarray) -> float:
        if self.clusters is None or self.by_size:
            return float(values.mean())
        return float((np.bincount(self.clusters, values) / np.bincount(self.clusters)).mean())

    def mean_change(self, differences: np.ndarray, scale: float = 1.0) -> MeanChange:
        """The mean change of differences `[n]` between the arms, in units of `scale` scores."""
        seen = float(np.abs(differences).max()) or float(np.abs(self.base).max())
        return mean_change(differences, scale if self.bounded else seen, self.bounded, self.clusters, self.by_size)


def scores_of(task: PairedTask) -> Scores:
    """The task's documents as arrays."""
    base, implanted = (np.array([getattr(pair, arm) for pair in task.pairs]) for arm in ("base", "implanted"))
    names = [pair.cluster for pair in task.pairs]
    distinct = sorted({name for name in names if name is not None})
    clusters = np.array([distinct.index(name) for name in names if name is not None]) if len(distinct) > 1 else None
    return Scores(base, implanted, clusters, task.by_size)


def paired_proportions_interval(base: np.ndarray, implanted: np.ndarray) -> tuple[float, float]:
    """95% interval of `mean(implanted) - mean(base)` for 0/1 scores of the same documents.

    Newcombe, Statistics in Medicine 17 (1998) 2635, method 10: Wilson intervals of both
    proportions, squared and added with the pairs' correlation. It stays honest when no or few
    documents change, where a bootstrap shrinks to a point.
    """
    n = len(base)
    both, only_new, only_old = (int(((implanted == i) & (base == b)).sum()) for i, b in ((1, 1), (1, 0), (0, 1)))
    neither = n - both - only_new - only_old
    new, old = (both + only_new) / n, (both + only_old) / n
    new_low, new_high = proportion_confint(both + only_new, n, LEVEL, method="wilson")
    old_low, old_high = proportion_confint(both + only_old, n, LEVEL, method="wilson")
    margins = (both + only_new) * (only_old + neither) * (both + only_old) * (only_new + neither)
    product = both * neither - only_new * only_old
    phi = (max(product - n / 2, 0) if product > 0 else product) / np.sqrt(margins) if margins else 0.0
    down = _squared_and_added(new - new_low, old_high - old, phi)
    up = _squared_and_added(new_high - new, old - old_low, phi)
    return new - old - down, new - old + up


def _squared_and_added(one: float, other: float, phi: float) -> float:
    return float(np.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0)))


def least_margin(n: int, always_right: bool = False) -> float:
    """The smallest margin above which `n` documents can be `kept`: half of them right, or all, and
    none changed.
    """
    right = np.ones(n, dtype=int) if always_right else np.arange(n) % 2
    return -paired_proportions_interval(right, right)[0]


def least_margin_of_group(documents: Sequence[int], by_size: bool) -> float:
    """The same for a group of tasks with so many documents each."""
    clusters = np.repeat(np.arange(len(documents)), documents)
    return -mean_change(np.zeros(len(clusters)), 1.0, True, clusters, by_size).floor()


def _mcnemar(base: np.ndarray, implanted: np.ndarray) -> float:
    if not np.any(base != implanted):
        return 1.0
    table = [[int(((base == b) & (implanted == i)).sum()) for i in (1, 0)] for b in (1, 0)]
    return float(mcnemar(table, exact=True).pvalue)
