"""When enough documents are asked: bounds of a task's change over all of its documents, that hold
at every document, whenever one stops.

Documents come in random order, without replacement, and the base's scores are known. Against every
change that could be the truth one bets that it is another, document by document, with capital 1: if
it is the truth, the capital ever reaches 40 in at most one case of forty (Ville). What such a bet
has ruled out lies outside the bounds. Betting as Waudby-Smith and Ramdas (JRSS B 86, 2024, 1; of a
finite population: NeurIPS 2020). The truth is the task's own score, so subtasks that fall together
make the bounds no less right.

Simulated errors, and how many documents are asked: `eval/reports/stopping.md`.
"""

from dataclasses import dataclass

import numpy as np

from loki_ds.retention.mean_change import LEVEL

ONE_SIDED = LEVEL / 2
MOST = 0.9  # of the capital that one document may cost
HALVINGS = 40  # of an interval that a bound is looked for in


@dataclass(frozen=True)
class Bounds:
    """Bounds of all documents' mean gain, each end wrong in at most 2.5%; p_value: of no loss."""

    low: float
    high: float
    p_value: float

    def decided(self, margin: float, tasks: int) -> bool:
        """Whether the loss is shown to be within the margin, or beyond it, and then also by Holm's
        correction over so many tasks.
        """
        return self.low > -margin or (self.high < -margin and self.p_value * tasks < LEVEL)


def bounds(gains: np.ndarray, documents: int, margin: float, span: float = 1.0) -> Bounds:
    """Bounds of the mean gain, from gains `[t]` of the first of so many documents, in drawn order.

    Args:
        margin: the loss at which bets are aimed.
        span: of one document's gain at most, to either side.
    """
    if len(gains) >= documents:
        mean = float(gains.mean())
        return Bounds(mean, mean, 1.0 if mean >= 0 else 0.0)
    x, aim = gains / span, margin / span
    up, down = stakes(x, documents, -aim), stakes(-x, documents, aim)
    low = max(-1.0, _ruled_out(x, documents, up)) * span
    high = -max(-1.0, _ruled_out(-x, documents, down)) * span
    return Bounds(low, high, float(min(1.0, np.exp(-log_capital(-x, documents, 0.0, down).max()))))


def stakes(x: np.ndarray, documents: int, aim: float) -> np.ndarray:
    """Bets `[t]` that the mean of `x` is more than `aim`, each chosen before its document is seen.

    Near the growth-optimal stake (aGRAPA) where the mean so far is above the aim, else the stake
    that makes the bound narrow wherever the mean lies (predictable plug-in).
    """
    number = np.arange(1, len(x) + 1)
    before, squares = np.cumsum(x) - x, np.cumsum(x * x) - x * x
    mean = before / number
    variance = (squares + 1) / number - mean**2
    above = mean - _of_the_rest(x, documents, aim)
    optimal = above / (variance + above**2)
    narrow = np.sqrt(2 * np.log(1 / ONE_SIDED) / (variance * number * np.log(1 + number)))
    return np.where(above > 0, optimal, np.minimum(narrow, 0.5))


def log_capital(x: np.ndarray, documents: int, mean: float, staked: np.ndarray) -> np.ndarray:
    """Natural logarithm of the capital after each document, of bets that the mean of all is more
    than `mean` `[t]`; falls with `mean`. Infinite from where `mean` is impossible.
    """
    rest = _of_the_rest(x, documents, mean)
    staked = np.minimum(staked, MOST / np.maximum(1 + rest, 1e-12))
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.cumsum(np.log1p(staked * (x - rest)))
    impossible = np.logical_or.accumulate(rest < -1 - 1e-9)
    return np.where(impossible, np.inf, np.where(rest > 1 + 1e-9, -np.inf, grown))


def _of_the_rest(x: np.ndarray, documents: int, mean: float) -> np.ndarray:
    """The mean of what is not seen before each document, were `mean` that of all `[t]`."""
    seen = np.arange(len(x))
    return (documents * mean - (np.cumsum(x) - x)) / (documents - seen)


def _ruled_out(x: np.ndarray, documents: int, staked: np.ndarray) -> float:
    """The largest mean that the bets against it have ruled out; -1 or less where there is none."""
    needed = np.log(1 / ONE_SIDED)
    low, high = -1.0 - 1e-6, 1.0
    if log_capital(x, documents, -1.0, staked).max() < needed:
        return -1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if log_capital(x, documents, middle, staked).max() >= needed else (low, middle)
    return low
