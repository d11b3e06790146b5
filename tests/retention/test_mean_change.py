"""A mean's interval: its degrees of freedom by the definition, its coverage by simulation (whole
tables: `eval/reports/intervals.md`).
"""

import numpy as np
import pytest

from loki_ds.retention.mean_change import MeanChange, mean_change

SIZES = {2: [500, 500], 4: [400, 200, 200, 200], 5: [100] * 5, 10: [30, 50, 60, 100, 100, 200, 240, 240, 500, 800]}
TIMES = 800


def by_definition(sizes: list[int]) -> float:
    """Bell and McCaffrey's: Satterthwaite's moments of the quadratic form, with whole matrices."""
    share = np.array(sizes) / sum(sizes)
    weigh, centre = np.diag(share**2 / (1 - share)), np.eye(len(sizes)) - np.outer(np.ones(len(sizes)), share)
    form = weigh @ centre @ np.diag(1 / np.array(sizes)) @ centre.T
    return float(np.trace(form) ** 2 / np.trace(form @ form))


@pytest.mark.parametrize("count", SIZES)
def test_degrees_of_freedom(count: int) -> None:
    clusters = np.repeat(np.arange(count), SIZES[count])
    found = mean_change(np.random.default_rng(0).normal(size=len(clusters)), 1.0, False, clusters)
    assert found.df == pytest.approx(by_definition(SIZES[count]), rel=1e-9)


def test_without_clusters_it_is_the_t_interval() -> None:
    differences = np.random.default_rng(0).normal(-0.1, 0.3, 200)
    found = mean_change(differences, 1.0, False)
    assert (found.df, found.error) == pytest.approx((199, differences.std(ddof=1) / 200**0.5))


def test_nothing_changed_leaves_open_what_so_few_documents_cannot_show() -> None:
    for n in (20, 500):
        low, high = mean_change(np.zeros(n), 1.0, True).interval()
        assert (low, high) == pytest.approx((-3.84 / n, 3.84 / n), rel=0.03)  # Wilson: z^2 / (n + z^2)


def simulated(sizes: list[int], lost: float, won: float, spread: float | None) -> tuple[float, float, float]:
    """How often the interval covers, lies above the truth, and the floor does: documents flip;
    subtasks differ by a gamma distribution of that shape, or not at all.
    """
    generator, count, true = np.random.default_rng(len(sizes)), len(sizes), won - lost
    clusters, found = np.repeat(np.arange(count), sizes), []
    for _ in range(TIMES):
        times = generator.gamma(spread, 1 / spread, (2, count)) if spread else np.ones((2, count))
        drawn, (down, up) = generator.random(len(clusters)), (times * [[lost], [won]])[:, clusters]
        change = mean_change(np.where(drawn < down, -1.0, np.where(drawn > 1 - up, 1.0, 0.0)), 1.0, True, clusters)
        low, high = change.interval()
        found.append((low <= true <= high, low > true, change.floor() > true))
    covered, above, floor_above = np.mean(found, axis=0)
    return covered, above, floor_above


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("lost", "won", "spread"), [(0.05, 0.03, None), (0.05, 0.03, 4.0), (0.1, 0.09, 4.0)])
def test_groups_are_covered(count: int, lost: float, won: float, spread: float | None) -> None:
    covered, _, false = simulated(SIZES[count], lost, won, spread)
    assert 0.925 <= covered <= 0.98  # of 800: two standard errors are 1.5 points
    assert false <= 0.035


def test_four_losses_that_few_subtasks_carry_are_not_called_kept() -> None:
    """One subtask may hold all of them, so the interval alone lies above the truth too often."""
    _, above, false = simulated([100] * 4, 0.01, 0.0, 1.0)
    assert false <= 0.035 < above


def test_no_change_larger_than_a_score_is_ever_asked_for() -> None:
    assert mean_change(np.zeros(2), 1.0, True, np.array([0, 1])).detectable() == 1.0
    assert mean_change(np.array([-0.5]), 1.0, True).interval() == (-1.0, 1.0)


@pytest.mark.parametrize("df", [1, 3.4, 56])
def test_what_it_says_it_shows_it_shows_four_times_in_five(df: float) -> None:
    found, generator = MeanChange(0.0, 0.02, df, 0.0, 1.0, None), np.random.default_rng(0)
    errors = 0.02 * np.sqrt(generator.chisquare(df, 40_000) / df)
    means = generator.normal(-found.detectable(), 0.02, 40_000)
    shown = [MeanChange(m, e, df, 0.0, 1.0, None).p_value() < 0.05 for m, e in zip(means[:4000], errors, strict=False)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.02)
