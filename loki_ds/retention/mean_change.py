"""The mean of paired differences: its 95% interval, its test, and the change it could have shown.

For scores that are not 0 and 1, and for groups whose documents come in clusters (MMLU's subjects).
A t-interval with errors that are robust to documents of one cluster changing together, and Bell
and McCaffrey's degrees of freedom (Survey Methodology 28, 2002, 169; for a mean, of the working
model in which documents are independent). Added to it, for few or no documents that changed:

- what so few documents leave open whatever they show, as the rule of three does;
- that more losses than were seen would also vary more, as in a score interval; likewise of gains.

Whether an ability is kept asks for more: where few subtasks carry a loss, an interval lies above
the truth too often. `floor` takes both at the t-distribution's size, and 2% instead of 2.5%.

Simulated coverage: `eval/reports/intervals.md`.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

LEVEL = 0.05  # of every interval and test
CAREFUL = 0.02  # of samples that may put the floor above the truth, were they as the t-distribution has them
POWER = 0.8  # at which a change would be shown
ENOUGH = 10  # documents that changed, whose largest change then stands for what a document can change
Z = float(stats.norm.ppf(1 - LEVEL / 2))


@dataclass(frozen=True)
class MeanChange:
    """A mean and what is known of its error.

    error: standard error; df: its degrees of freedom; open: half-width that so few documents leave
    open; moved: mean absolute difference; span: most that a document differs, None if unbounded.
    """

    value: float
    error: float
    df: float
    open: float
    moved: float
    span: float | None

    @property
    def _t(self) -> float:
        return float(stats.t.ppf(1 - LEVEL / 2, self.df))

    def interval(self) -> tuple[float, float]:
        """95%."""
        one_way = self.value / self.moved if self.moved else 0.0  # -1: losses alone, 0: as many gains
        low = self._below(self._t, Z, self.open, max(-one_way, 0.0))
        high = -replace(self, value=-self.value)._below(self._t, Z, self.open, max(one_way, 0.0))
        return (low, high) if self.span is None else (max(low, -self.span), min(high, self.span))

    def floor(self) -> float:
        """What a loss is called kept by: the truth lies above it in 96.5% and more, also of groups
        in which few subtasks carry the loss.
        """
        t = float(stats.t.ppf(1 - CAREFUL, self.df))
        low = self._below(t, t, self.open * t / Z, 1.0)
        return low if self.span is None else max(low, -self.span)

    def _below(self, by: float, skewed_by: float, opened: float, one_way: float) -> float:
        """The worse end: `by` errors away, leaning by `skewed_by` as far as changes go one way."""
        skew = one_way * (skewed_by * self.error) ** 2 / self.moved / 2 if self.moved else 0.0
        return float(self.value - skew - np.sqrt(skew**2 + (by * self.error) ** 2 + opened**2))

    def p_value(self) -> float:
        """The two-sided p-value of no mean change; 5% where the unskewed interval reaches 0."""
        whole = self.whole_error
        return float(2 * stats.t.sf(abs(self.value) / whole, self.df)) if whole else float(self.value == 0)

    def detectable(self) -> float:
        """The smallest true change that this test shows with power 0.8."""
        effect = TTestPower().solve_power(nobs=self.df + 1, alpha=LEVEL, power=POWER, alternative="two-sided")
        change = float(effect * np.sqrt(self.df + 1) * self.whole_error)
        return change if self.span is None else min(change, self.span)

    @property
    def whole_error(self) -> float:
        """The standard error, with what so few documents leave open."""
        return float(np.hypot(self.error, self.open / self._t))


def mean_change(
    differences: np.ndarray, span: float, bounded: bool, clusters: np.ndarray | None = None, by_size: bool = True
) -> MeanChange:
    """The mean change of differences `[n]`, whose clusters `[n]` are numbered from 0.

    Args:
        span: a document's difference at most, or the largest seen where that has no bound.
        by_size: whether clusters weigh by their documents, or all alike.
    """
    largest = float(np.abs(differences).max()) if np.count_nonzero(differences) >= ENOUGH else span
    n = len(differences)
    clusters = np.arange(n) if clusters is None else clusters
    weights = np.full(n, 1 / n) if by_size else 1 / np.bincount(clusters)[clusters] / (clusters.max() + 1)
    value, share = float(weights @ differences), np.bincount(clusters, weights)
    off = np.bincount(clusters, weights * (differences - value)) / share  # each cluster's mean from the whole's
    spread = np.bincount(clusters, weights**2) / share**2  # variance of a cluster's mean, of one document 1
    if len(share) == 1:
        error, df = abs(value), 1.0  # one cluster says nothing of others
    else:
        error, df = float(np.sqrt((share**2 / (1 - share) * off**2).sum())), _degrees(share, spread)
    opened = 2 * Z * largest * float((weights**2).sum())
    return MeanChange(value, error, df, opened, float(weights @ np.abs(differences)), span if bounded else None)


def _degrees(share: np.ndarray, spread: np.ndarray) -> float:
    """Satterthwaite's `tr(AC)^2 / tr(ACAC)`: A weighs the clusters' squared residuals, C is their
    covariance where clusters of weight `share [k]` have variances `spread [k]`.
    """
    a, u = share**2 / (1 - share), share * spread
    c = float(share @ u)
    diagonal = c - 2 * u  # C's diagonal without `spread`
    trace = float(a @ (spread + diagonal))
    a0, a1, a2 = a.sum(), a @ u, a @ u**2
    squares = c**2 * a0**2 + 2 * a2 * a0 - 4 * c * a1 * a0 + 2 * a1**2
    squares += 2 * (a**2 * spread * diagonal).sum() + (a**2 * spread**2).sum()
    return float(trace**2 / squares)


def mcnemar_detectable(n: int, won: int) -> float:
    """The smallest share of `n` documents lost, beyond as many as were won, that the exact McNemar
    test shows with power 0.8 where a share `won / n` goes from wrong to right.
    """
    gained = won / n

    def power(loss: float) -> float:
        flips = gained + gained + loss
        low, high = (int(stats.binom.ppf(q, n, min(flips, 1.0))) for q in (1e-7, 1 - 1e-7))
        m = np.arange(low, high + 1)
        needed = stats.binom.isf(LEVEL / 2, m, 0.5) + 1  # losses of m flips at which half the level is passed
        shown = stats.binom.sf(needed - 1, m, (gained + loss) / flips)
        return float(stats.binom.pmf(m, n, min(flips, 1.0)) @ shown)

    low, high = 0.0, 1.0 - 2 * gained
    if high <= 0 or power(high) < POWER:
        return 1.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
