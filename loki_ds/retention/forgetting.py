"""Forgetting over a suite of tasks: the paper's signed average, and its losses alone.

`forgetting` is pure arithmetic; also an `evaluate` metric module (eval/metrics/forgetting).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from loki_ds.retention.mean_change import LEVEL, MeanChange, mean_change
from loki_ds.retention.pairing import PairedTask
from loki_ds.retention.statistics import scores_of

EXCESS = float(stats.norm.pdf(0))  # mean of a standard normal number's positive part


def forgetting(base: Sequence[float], implanted: Sequence[float]) -> float:
    """`Avg = 100/N * sum_i (So_i - St_i) / So_i`, in percent; below zero when scores rose.

    Args:
        base: each task's score before implanting, above 0.
        implanted: the same tasks' scores after.

    Raises:
        ValueError: no tasks, a different number of scores, or a base score of 0 (nothing there to
            forget).
    """
    if len(base) != len(implanted) or not base:
        raise ValueError(f"forgetting needs one score per task on both sides, got {len(base)} and {len(implanted)}")
    if min(base) <= 0:
        raise ValueError("forgetting is relative to the base score, which is 0 or less for a task")
    return 100 / len(base) * sum((before - after) / before for before, after in zip(base, implanted, strict=True))


@dataclass(frozen=True)
class Forgotten:
    """A figure in percent and its 95% interval."""

    percent: float
    ci: tuple[float, float]


def relative_loss(task: PairedTask) -> MeanChange:
    """What the task lost, as a share of the base's score; below 0 where it gained.

    The error is that of the ratio of two means over the same documents, to first order.

    Raises:
        ValueError: the base's score is 0 or less.
    """
    scores = scores_of(task)
    base, implanted = scores.mean(scores.base), scores.mean(scores.implanted)
    if base <= 0:
        raise ValueError(f"task {task.task}: a loss is relative to the base score, which is {base:g}")
    worse = -1 if task.metric["higher_is_better"] else 1
    per_document = worse * (scores.implanted - implanted / base * scores.base) / base
    change = scores.mean_change(per_document, 1 / base)
    return replace(change, value=worse * (implanted / base - 1), span=None)


def signed(losses: Sequence[MeanChange]) -> Forgotten:
    """The paper's average: gains pay for losses."""
    value, half = float(np.mean([loss.value for loss in losses])), _half_width(losses, len(losses))
    return Forgotten(100 * value, (100 * (value - half), 100 * (value + half)))


def losses_only(losses: Sequence[MeanChange]) -> Forgotten:
    """The same with gains counted as 0: no gain elsewhere pays for a loss.

    Chance alone makes it a little more than 0, so its lower end leaves out what chance adds where
    neither loss nor gain is shown; a task whose gain is shown adds nothing.
    """
    value = float(np.mean([max(0.0, loss.value) for loss in losses]))
    unclear = [loss for loss in losses if abs(loss.value) < 2 * loss.whole_error]
    excess = EXCESS * sum(loss.whole_error for loss in unclear) / len(losses)
    half = _half_width([loss for loss in losses if loss.value > -2 * loss.whole_error], len(losses))
    return Forgotten(100 * value, (100 * max(0.0, value - excess - half), 100 * (value + half)))


def least_loss(tasks: Sequence[tuple[Sequence[int], bool]], right: float) -> float:
    """The smallest loss that losses alone can be shown to be below, as a share: no answer changed,
    and a share `right` of the base's is right.

    tasks: of each the documents of its subtasks (of itself), and whether those weigh by them.
    """
    unchanged = []
    for documents, by_size in tasks:
        clusters = np.repeat(np.arange(len(documents)), documents) if len(documents) > 1 else None
        unchanged.append(mean_change(np.zeros(sum(documents)), 1 / right, True, clusters, by_size))
    return losses_only(unchanged).ci[1] / 100


def _half_width(losses: Sequence[MeanChange], n: int) -> float:
    """Half the width of a 95% interval of the mean over `n` tasks, of which these vary; degrees of
    freedom by Welch and Satterthwaite.
    """
    squares = np.array([loss.error**2 for loss in losses])
    opened = float(np.sqrt(sum(loss.open**2 for loss in losses))) / n
    if not squares.any():
        return opened
    df = squares.sum() ** 2 / sum(square**2 / loss.df for square, loss in zip(squares, losses, strict=True))
    return float(np.hypot(stats.t.ppf(1 - LEVEL / 2, df) * np.sqrt(squares.sum()) / n, opened))
