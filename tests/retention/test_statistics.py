"""Each statistic against a case worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from paired import task
from scipy import stats

from loki_ds.retention.mean_change import mcnemar_detectable
from loki_ds.retention.pairing import PairedTask
from loki_ds.retention.statistics import (
    least_margin,
    least_margin_of_group,
    paired_proportions_interval,
    suite_changes,
    task_change,
)


def test_scores_change_and_flips() -> None:
    change = task_change(task([1, 1, 1, 0, 0], [1, 0, 0, 1, 0]))
    assert (change["n"], change["base"], change["implanted"]) == (5, 0.6, 0.4)
    assert change["change"] == pytest.approx(-0.2)
    assert (change["worse"], change["better"]) == (2, 1)


def test_exact_mcnemar() -> None:
    # 6 documents lost, 1 won: two-sided binomial(7, 1/2): 2 * (1 + 7) / 128
    change = task_change(task([1] * 6 + [0] + [1] * 9, [0] * 6 + [1] + [1] * 9))
    assert change["p_value"] == pytest.approx(2 * (1 + 7) / 128)


def test_no_flips_leave_an_interval_that_depends_on_the_number_of_documents() -> None:
    few, many = (task_change(task([1] * n, [1] * n)) for n in (10, 1000))
    assert few["ci"] == pytest.approx((-0.2775, 0.2775), abs=1e-3)  # Wilson: z^2 / (n + z^2)
    assert many["ci"] == pytest.approx((-0.00383, 0.00383), abs=1e-4)
    assert few["p_value"] == 1.0
    assert few["detectable"] == pytest.approx(0.67, abs=0.02)  # six of ten lost are needed


def test_newcombes_interval_by_hand() -> None:
    # Newcombe (1998), table III, method 10: a 36, b 12, c 2, d 0 gives 0.0569 to 0.3404 for (12 -
    # 2) / 50.
    implanted = np.array([1] * 36 + [1] * 12 + [0] * 2)
    base = np.array([1] * 36 + [0] * 12 + [1] * 2)
    assert paired_proportions_interval(base, implanted) == pytest.approx((0.0569, 0.3404), abs=2e-4)


@pytest.mark.parametrize(("n", "lost", "won"), [(100, 0.1, 0.05), (400, 0.05, 0.05), (150, 0.03, 0.03), (60, 0.2, 0.0)])
def test_the_interval_covers_what_it_says(n: int, lost: float, won: float) -> None:
    generator, covered, draws = np.random.default_rng(0), 0, 2000
    for _ in range(draws):
        base = (generator.random(n) < 0.8).astype(int)
        drawn = generator.random(n)
        implanted = np.where(base == 1, (drawn >= lost).astype(int), (drawn < won).astype(int))
        low, high = paired_proportions_interval(base, implanted)
        covered += low <= 0.2 * won - 0.8 * lost <= high
    assert (
        0.935 <= covered / draws <= (0.965 if n * (lost + won) > 10 and won else 0.985)
    )  # on the safe side with few flips


def test_kept_is_said_in_error_no_more_often_than_stated() -> None:
    generator, margin, n, said, draws = np.random.default_rng(1), 0.05, 200, 0, 2000
    for _ in range(draws):  # the true loss is just the margin
        base, drawn = np.ones(n, dtype=int), generator.random(n)
        low, _ = paired_proportions_interval(base, (drawn >= margin).astype(int))
        said += low > -margin
    assert said / draws <= 0.025 + 0.01


def test_verdicts_and_holm() -> None:
    tasks = [
        task([1] * 2000, [1] * 2000),
        task([1] * 100, [1] * 80 + [0] * 20),
        task([1] * 20, [1] * 19 + [0]),
    ]
    kept, lost, open_ = suite_changes(tasks, margin=0.01)
    assert (kept["verdict"], lost["verdict"], open_["verdict"]) == ("kept", "lost", "not shown")
    assert lost["p_holm"] == pytest.approx(3 * lost["p_value"])
    assert lost["detectable"] < open_["detectable"]


def test_the_smallest_shown_change_is_shown_four_times_in_five() -> None:
    """164 documents, as HumanEval's: not the 0.98 points that a normal error of nothing gives."""
    change = task_change(task([1] * 164, [1] * 164))
    assert change["detectable"] == pytest.approx(0.0478, abs=5e-4)
    for n, won in ((164, 3), (1319, 40)):
        loss = mcnemar_detectable(n, won)
        shares = [won / n, won / n + loss, 1 - 2 * won / n - loss]
        better, worse, _ = np.random.default_rng(0).multinomial(n, shares, 20_000).T
        p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(better, worse), better + worse, 0.5))
        assert ((p < 0.05) & (worse > better)).mean() == pytest.approx(0.8, abs=0.015)


# --- metrics as they are declared -----------------------------------------------------------------


def test_a_metric_that_is_better_when_lower_is_not_read_upside_down() -> None:
    """An error rate that doubled is a loss."""
    (change,) = suite_changes([task([0] * 900 + [1] * 100, [0] * 800 + [1] * 200, higher_is_better=False)], 0.01)
    assert (change["base"], change["implanted"], change["change"]) == (0.1, 0.2, pytest.approx(0.1))
    assert (change["worse"], change["better"], change["verdict"]) == (100, 0, "lost")
    assert change["ci"][0] < 0.1 < change["ci"][1]
    (fell,) = suite_changes([task([0] * 900 + [1] * 100, [0] * 1000, higher_is_better=False)], 0.01)
    assert (fell["better"], fell["verdict"]) == (100, "kept")


def test_a_measure_without_bounds_is_held_against_its_own_size() -> None:
    generator = np.random.default_rng(0)
    base = 2 + generator.random(400)
    a_little, more = (suite_changes([_bits(base, base * (1 + by))], 0.01)[0] for by in (0.002, 0.05))
    assert a_little["margin"] == pytest.approx(0.01 * base.mean())
    assert (a_little["verdict"], more["verdict"]) == ("kept", "lost")


def test_a_score_on_a_scale_of_its_own_has_no_points() -> None:
    """BLEU from 0 to 100: a hundredth of one would be a margin for nothing."""
    generator = np.random.default_rng(0)
    base = 40 + 5 * generator.random(400)
    (kept,) = suite_changes([task(base.tolist(), (base - 0.1).tolist(), name="bleu_max")], 0.01)
    assert (kept["unit"], kept["verdict"]) == ("of its own scale", "kept")
    assert kept["margin"] == pytest.approx(0.01 * base.mean())


def _bits(base: np.ndarray, implanted: np.ndarray) -> PairedTask:
    return task(base.tolist(), implanted.tolist(), unit="bits per byte", higher_is_better=False)


# --- scores that are not 0 and 1, and groups ------------------------------------------------------


def test_scores_that_are_not_right_or_wrong_use_the_paired_t_test() -> None:
    base = np.random.default_rng(0).random(400)
    implanted = base + np.random.default_rng(1).normal(-0.01, 0.1, 400).clip(-base, 1 - base)
    change = task_change(task(base.tolist(), implanted.tolist()))
    assert change["p_value"] == pytest.approx(stats.ttest_rel(implanted, base).pvalue, abs=0.01)
    half = 1.96 * (implanted - base).std(ddof=1) / 20
    assert change["ci"] == pytest.approx((change["change"] - half, change["change"] + half), abs=0.0015)


def clustered(differences: list[list[float]], **changes: object) -> PairedTask:
    clusters = [str(i) for i, cluster in enumerate(differences) for _ in cluster]
    flat = [difference for cluster in differences for difference in cluster]
    return task([0.5] * len(flat), [0.5 + d for d in flat], clusters=clusters, **changes)


def test_documents_of_a_subject_that_change_together_make_the_interval_wider() -> None:
    generator = np.random.default_rng(0)
    together = [[float(shift)] * 10 for shift in generator.normal(-0.05, 0.1, 30)]
    flat = [d for cluster in together for d in cluster]
    wide, narrow = task_change(clustered(together)), task_change(task([0.5] * 300, [0.5 + d for d in flat]))
    assert wide["change"] == pytest.approx(narrow["change"])
    assert wide["ci"][1] - wide["ci"][0] == pytest.approx(10**0.5 * (narrow["ci"][1] - narrow["ci"][0]), rel=0.1)
    assert wide["detectable"] == pytest.approx(10**0.5 * narrow["detectable"], rel=0.1)
    assert wide["p_value"] > narrow["p_value"]
    assert (wide["clusters"], narrow["clusters"]) == (30, 0)


def test_twenty_unchanged_documents_show_nothing_as_a_group_either() -> None:
    alone, group = task([1] * 20, [1] * 20), task([1] * 20, [1] * 20, clusters=[str(i % 4) for i in range(20)])
    for change in suite_changes([alone, group], 0.01):
        assert change["verdict"] == "not shown"
        assert change["ci"] == pytest.approx((-0.17, 0.17), abs=0.03)


@pytest.mark.parametrize(("subtasks", "verdict"), [(2, "not shown"), (3, "not shown"), (4, "kept"), (57, "kept")])
def test_a_group_of_few_subtasks_is_never_kept(subtasks: int, verdict: str) -> None:
    group = task([1] * 5700, [1] * 5700, clusters=[f"{i % subtasks}" for i in range(5700)])
    assert suite_changes([group], 0.01)[0]["verdict"] == verdict


def test_subtasks_weigh_as_their_group_declares() -> None:
    differences = [[-0.2] * 90, [0.0] * 10]
    by_size = clustered(differences)
    assert task_change(by_size)["change"] == pytest.approx(-0.18)
    assert task_change(replace(by_size, by_size=False))["change"] == pytest.approx(-0.1)
    assert task_change(replace(by_size, by_size=False))["implanted"] == pytest.approx(0.4)


@pytest.mark.parametrize("n", [20, 164, 1000])
def test_the_least_margin_of_a_group_is_where_kept_begins(n: int) -> None:
    least = least_margin_of_group([n] * 5, by_size=True)
    unchanged = task([1] * 5 * n, [1] * 5 * n, clusters=[str(i % 5) for i in range(5 * n)])
    assert [suite_changes([unchanged], least * by)[0]["verdict"] for by in (1.01, 0.99)] == ["kept", "not shown"]
    assert least_margin(5 * n) < least < 3.2 * least_margin(5 * n)  # half of them right is the kindest case
