"""Each statistic against a case worked by hand."""

import numpy as np
import pytest

from loki_ds.retention.pairing import Pair, PairedTask
from loki_ds.retention.statistics import task_change


def task(base: list[float], implanted: list[float]) -> PairedTask:
    pairs = [Pair(str(i), b, a, "", "") for i, (b, a) in enumerate(zip(base, implanted, strict=True))]
    return PairedTask("sums", "exact_match", pairs)


def test_scores_change_and_flips() -> None:
    change = task_change(task([1, 1, 1, 0, 0], [1, 0, 0, 1, 0]))
    assert (change.n, change.base, change.implanted) == (5, 0.6, 0.4)
    assert change.change == pytest.approx(-0.2)
    assert (change.right_to_wrong, change.wrong_to_right) == (2, 1)


def test_exact_mcnemar() -> None:
    # 6 documents lost, 1 won: two-sided binomial(7, 1/2): 2 * (1 + 7) / 128
    change = task_change(task([1] * 6 + [0] + [1] * 9, [0] * 6 + [1] + [1] * 9))
    assert change.p_value == pytest.approx(2 * (1 + 7) / 128)


def test_no_change_has_a_point_interval() -> None:
    change = task_change(task([1, 0, 1], [1, 0, 1]))
    assert (change.ci, change.p_value) == ((0.0, 0.0), 1.0)


def test_scores_that_are_not_right_or_wrong_use_the_paired_t_test() -> None:
    change = task_change(task([0.5, 0.6, 0.7, 0.9], [0.4, 0.5, 0.7, 0.6]))
    differences = np.array([-0.1, -0.1, 0.0, -0.3])
    t = differences.mean() / (differences.std(ddof=1) / 2)
    assert t == pytest.approx(-1.987, abs=1e-3)
    assert change.p_value == pytest.approx(0.141, abs=1e-3)


def test_the_bootstrap_interval_is_near_the_normal_one() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 2, 400).astype(float)
    implanted = np.where(generator.random(400) < 0.1, 1 - base, base)
    change = task_change(task(base.tolist(), implanted.tolist()))
    half = 1.96 * (implanted - base).std(ddof=1) / 20
    assert change.ci == pytest.approx((change.change - half, change.change + half), abs=0.006)
