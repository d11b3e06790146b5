"""What paired documents show: each task's change with its interval and test, a verdict at a margin,
and the suite's forgetting.

"Nothing was lost" is not "p is large": a task counts as kept only when its whole interval lies
above minus the margin, and every task says the smallest change its documents could have shown.
Intervals, tests and corrections come from statsmodels and scipy where they have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from loki_ds.retention.forgetting import forgetting
from loki_ds.retention.pairing import PairedTask

RESAMPLES = 2000
LEVEL = 0.05  # of every interval and test
POWER = 0.8  # at which a change would be shown


@dataclass(frozen=True)
class TaskChange:
    """One task on both arms.

    Scores are means over `n` documents; `ci` is the change's 95% interval.

    p_holm: the p-value after Holm's correction over the suite. detectable: the smallest loss these
    documents would have shown in four cases of five. verdict: `kept` (the interval lies above minus
    the margin), `lost` (below zero, Holm-corrected), else `not shown`.
    """

    task: str
    metric: str
    n: int
    base: float
    implanted: float
    change: float
    ci: tuple[float, float]
    p_value: float
    right_to_wrong: int
    wrong_to_right: int
    detectable: float
    p_holm: float = 1.0
    verdict: str = "not shown"


def suite_changes(tasks: Sequence[PairedTask], margin: float, seed: int = 0) -> list[TaskChange]:
    """Every task's change, with the correction over all of them and a verdict at `margin` (0.01 is
    one point).
    """
    changes = [task_change(task, seed) for task in tasks]
    if not changes:
        return []
    corrected = multipletests([change.p_value for change in changes], alpha=LEVEL, method="holm")[1]
    return [
        replace(change, p_holm=float(p), verdict=_verdict(change, float(p), margin))
        for change, p in zip(changes, corrected, strict=True)
    ]


def _verdict(change: TaskChange, p_holm: float, margin: float) -> str:
    if change.ci[0] > -margin:
        return "kept"
    return "lost" if change.change < 0 and p_holm < LEVEL else "not shown"


def task_change(task: PairedTask, seed: int = 0) -> TaskChange:
    """Paired change of one task.

    Scores of 0 and 1: Newcombe's paired interval (1998, method 10) and the exact McNemar test.
    Other scores: percentile bootstrap over documents and the paired t-test. A group of subtasks
    (MMLU's subjects): percentile bootstrap over subtasks, because their documents fall and rise
    together, and the t-test with cluster-robust errors.
    """
    base = np.array([pair.base for pair in task.pairs])
    implanted = np.array([pair.implanted for pair in task.pairs])
    binary = bool(np.isin(base, (0, 1)).all() and np.isin(implanted, (0, 1)).all())
    clusters = _clusters(task)
    if clusters is not None:
        interval, p_value, error = (
            _bootstrap_interval(implanted - base, clusters, seed),
            *_clustered_test(implanted - base, clusters),
        )
    else:
        interval = (
            paired_proportions_interval(base, implanted)
            if binary
            else _bootstrap_interval(implanted - base, None, seed)
        )
        p_value, error = (
            _p_value(base, implanted, binary),
            float((implanted - base).std(ddof=1) / np.sqrt(len(base))) if len(base) > 1 else 0.0,
        )
    return TaskChange(
        task=task.task,
        metric=task.metric,
        n=len(base),
        base=float(base.mean()),
        implanted=float(implanted.mean()),
        change=float((implanted - base).mean()),
        ci=interval,
        p_value=p_value,
        right_to_wrong=int((base > implanted).sum()),
        wrong_to_right=int((base < implanted).sum()),
        detectable=_detectable(error, len(base)),
    )


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


def least_margin(n: int) -> float:
    """The smallest margin above which `n` documents can be `kept`: half of them right, none
    changed.
    """
    right = np.arange(n) % 2
    return -paired_proportions_interval(right, right)[0]


def _squared_and_added(one: float, other: float, phi: float) -> float:
    return float(np.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0)))


def forgetting_interval(tasks: Sequence[PairedTask], seed: int = 0) -> tuple[float, float]:
    """95% interval of the paper's forgetting score: documents (or a group's subtasks) are drawn
    again in every task, both arms together.
    """
    generator = np.random.default_rng(seed)
    draws = [
        _resampled_means(np.array([(pair.base, pair.implanted) for pair in task.pairs]), _clusters(task), generator)
        for task in tasks
    ]
    values = [
        forgetting([draw[i, 0] for draw in draws], [draw[i, 1] for draw in draws])
        for i in range(RESAMPLES)
        if all(draw[i, 0] > 0 for draw in draws)  # a resample without a right answer has no relative loss
    ]
    low, high = np.percentile(values, (100 * LEVEL / 2, 100 * (1 - LEVEL / 2)))
    return float(low), float(high)


def _clusters(task: PairedTask) -> np.ndarray | None:
    """For each document the number of its subtask; None for a task of one piece."""
    names = [pair.cluster for pair in task.pairs]
    distinct = sorted({name for name in names if name is not None})
    return np.array([distinct.index(name) for name in names if name is not None]) if len(distinct) > 1 else None


def _resampled_means(scores: np.ndarray, clusters: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Means `[RESAMPLES, c]` of scores `[n, c]` whose documents, or whose clusters of documents,
    are drawn again.
    """
    sums, sizes = scores, np.ones(len(scores))
    if clusters is not None:
        sums = np.stack([np.bincount(clusters, column) for column in scores.T], axis=1)
        sizes = np.bincount(clusters).astype(float)
    n = len(sums)
    means = []
    for _ in range(0, RESAMPLES, 100):  # a hundred at a time: a task may have many documents
        times = generator.multinomial(n, np.full(n, 1 / n), size=100)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _bootstrap_interval(differences: np.ndarray, clusters: np.ndarray | None, seed: int) -> tuple[float, float]:
    means = _resampled_means(differences[:, None], clusters, np.random.default_rng(seed))[:, 0]
    low, high = np.percentile(means, (100 * LEVEL / 2, 100 * (1 - LEVEL / 2)))
    return float(low), float(high)


def _clustered_test(differences: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """p-value of no mean change, and the mean's standard error, both robust to documents of one
    cluster changing together.
    """
    if np.ptp(differences) == 0:
        return float(differences[0] == 0), 0.0
    fitted = OLS(differences, np.ones(len(differences))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    return float(fitted.pvalues[0]), float(fitted.bse[0])


def _p_value(base: np.ndarray, implanted: np.ndarray, binary: bool) -> float:
    if not np.any(base != implanted):
        return 1.0
    if binary:
        table = [[int(((base == b) & (implanted == i)).sum()) for i in (1, 0)] for b in (1, 0)]
        return float(mcnemar(table, exact=True).pvalue)
    return float(stats.ttest_rel(implanted, base).pvalue)


def _detectable(error: float, n: int) -> float:
    """Smallest mean change that a two-sided test at 5% shows with power 0.8, given its standard
    error over these documents.

    With nothing seen to vary, the rate of change that would have shown at least one document in
    four cases of five.
    """
    if error == 0:
        return 1 - (1 - POWER) ** (1 / n)
    return float((stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)) * error)
