"""Bounds that hold whenever one stops: by the definition over every order of a few documents, and
by simulation at the edge of the margin.
"""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loki_ds.retention.stopping import ONE_SIDED, Bounds, bounds, log_capital, stakes

SMALL = [0.0, 1.0, 1.0, -1.0, 0.5, 0.0, -0.25]


def population(gained: float, lost: float, documents: int = 1000) -> np.ndarray:
    gains = np.zeros(documents)
    gains[: round(gained * documents)] = 1
    gains[len(gains) - round(lost * documents) :] = -1
    return gains


@pytest.mark.parametrize("aim", [-0.3, 0.0, 0.2])
def test_at_the_truth_the_capital_stays_one_on_average(aim: float) -> None:
    """Over all orders, after every document: a fair game, as sampling without replacement asks."""
    truth = float(np.mean(SMALL))
    orders = [np.array(order) for order in permutations(SMALL)]
    capital = np.exp([log_capital(x, len(x), truth, stakes(x, len(x), aim))[:-1] for x in orders])
    assert np.allclose(capital.mean(0), 1, rtol=1e-9)
    assert capital.std() > 0.01  # something is bet


def test_a_stake_is_chosen_before_its_document() -> None:
    x = population(0.1, 0.1, 50)
    other = x.copy()
    other[20:] = -x[20:] - 0.5
    assert np.array_equal(stakes(x, 50, -0.05)[:21], stakes(other, 50, -0.05)[:21])
    assert not np.array_equal(stakes(x, 50, -0.05), stakes(other, 50, -0.05))


@given(seed=st.integers(0, 100), low=st.floats(-0.9, 0.9), more=st.floats(0.001, 0.5))
def test_the_capital_falls_with_what_is_bet_against(seed: int, low: float, more: float) -> None:
    x = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], 40)
    staked = stakes(x, 100, -0.05)
    less, greater = (log_capital(x, 100, mean, staked) for mean in (low, low + more))
    assert (less >= greater - 1e-9).all()


@pytest.mark.parametrize("gains", [population(0.02, 0.07), population(0.0, 0.05), population(0.05, 0.1) / 2])
def test_either_end_is_wrong_in_one_case_of_forty_at_most(gains: np.ndarray) -> None:
    """Looked at after every document, at the margin itself."""
    generator, truth, needed = np.random.default_rng(0), float(gains.mean()), -np.log(ONE_SIDED)
    wrong = np.zeros(2)
    for _ in range(800):
        x = generator.permutation(gains)
        for side, (of, mean) in enumerate(((x, truth), (-x, -truth))):
            wrong[side] += log_capital(of, len(x), mean, stakes(of, len(x), mean))[:-1].max() >= needed
    assert (wrong / 800 < ONE_SIDED + 3 * np.sqrt(ONE_SIDED / 800)).all()


@pytest.mark.parametrize(
    ("gains", "margin", "at_most"),
    [
        (population(0, 0), 0.03, 150),
        (population(0.01, 0.01), 0.05, 250),
        (population(0.02, 0.12), 0.03, 330),
        (population(0.02, 0.22), 0.01, 150),
    ],
)
def test_what_is_clear_takes_a_third_of_the_documents(gains: np.ndarray, margin: float, at_most: int) -> None:
    x = np.random.default_rng(3).permutation(gains)
    found = bounds(x[:at_most], len(x), margin)
    assert found.decided(margin, tasks=6)
    assert found.low < gains.mean() < found.high
    assert (found.low > -margin) == (gains.mean() > -margin)


def test_at_the_margin_all_are_asked() -> None:
    x = np.random.default_rng(1).permutation(population(0.05, 0.1))
    assert not bounds(x[:900], 1000, 0.05).decided(0.05, tasks=1)


def test_all_documents_leave_nothing_open() -> None:
    assert bounds(np.array([0.0, -1.0]), 2, 0.01) == Bounds(-0.5, -0.5, 0.0)
    assert bounds(np.array([0.0, 1.0]), 2, 0.01) == Bounds(0.5, 0.5, 1.0)


def test_bounds_follow_the_span() -> None:
    x = np.random.default_rng(2).permutation(population(0.1, 0.05))[:300]
    one, three = bounds(x, 1000, 0.02), bounds(3 * x, 1000, 0.06, span=3)
    assert (three.low, three.high, three.p_value) == pytest.approx((3 * one.low, 3 * one.high, one.p_value))


def test_a_loss_counts_after_holms_correction() -> None:
    assert Bounds(-0.2, -0.05, 0.02).decided(0.03, tasks=2)
    assert not Bounds(-0.2, -0.05, 0.02).decided(0.03, tasks=3)
