"""What paired documents show: the change, its interval, and how surprising it would be if nothing had changed."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from loki_ds.retention.pairing import PairedTask


@dataclass(frozen=True)
class TaskChange:
    """One task on both arms. Scores are means over `n` documents; `ci` is the change's 95% interval."""

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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def task_change(task: PairedTask, seed: int = 0) -> TaskChange:
    """Paired change of one task: percentile bootstrap over documents (scipy), exact McNemar for 0/1 scores (statsmodels), and the
    paired t-test for other scores (scipy)."""
    base = np.array([pair.base for pair in task.pairs])
    implanted = np.array([pair.implanted for pair in task.pairs])
    return TaskChange(
        task=task.task,
        metric=task.metric,
        n=len(base),
        base=float(base.mean()),
        implanted=float(implanted.mean()),
        change=float((implanted - base).mean()),
        ci=_interval(implanted - base, seed),
        p_value=_p_value(base, implanted),
        right_to_wrong=int((base > implanted).sum()),
        wrong_to_right=int((base < implanted).sum()),
    )


def _interval(differences: np.ndarray, seed: int) -> tuple[float, float]:
    if np.ptp(differences) == 0:  # nothing varies, so there is nothing to resample
        return float(differences[0]), float(differences[0])
    interval = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=2000, rng=seed).confidence_interval
    return float(interval.low), float(interval.high)


def _p_value(base: np.ndarray, implanted: np.ndarray) -> float:
    if not np.any(base != implanted):
        return 1.0
    if np.isin(base, (0, 1)).all() and np.isin(implanted, (0, 1)).all():
        table = [[int(((base == b) & (implanted == i)).sum()) for i in (1, 0)] for b in (1, 0)]
        return float(mcnemar(table, exact=True).pvalue)
    return float(stats.ttest_rel(implanted, base).pvalue)
