"""Each statistic against a case worked by hand."""

import numpy as np
import pytest

from loki_ds.retention.pairing import Pair, PairedTask
from loki_ds.retention.statistics import forgetting_interval, paired_proportions_interval, suite_changes, task_change


def task(base: list[float], implanted: list[float]) -> PairedTask:
    pairs = [Pair(str(i), "", b, a, "", "") for i, (b, a) in enumerate(zip(base, implanted, strict=True))]
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


def test_no_flips_leave_an_interval_that_depends_on_the_number_of_documents() -> None:
    few, many = (task_change(task([1] * n, [1] * n)) for n in (10, 1000))
    assert few.ci == pytest.approx((-0.2775, 0.2775), abs=1e-3)  # Wilson: z^2 / (n + z^2)
    assert many.ci == pytest.approx((-0.00383, 0.00383), abs=1e-4)
    assert few.p_value == 1.0
    assert few.detectable == pytest.approx(1 - 0.2 ** (1 / 10))


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
    assert (kept.verdict, lost.verdict, open_.verdict) == ("kept", "lost", "not shown")
    assert lost.p_holm == pytest.approx(3 * lost.p_value)
    assert lost.detectable < open_.detectable


def test_forgetting_interval_holds_the_score() -> None:
    low, high = forgetting_interval(
        [task([1] * 200, [1] * 160 + [0] * 40), task([1] * 150 + [0] * 50, [1] * 150 + [0] * 50)]
    )
    assert low < 10.0 < high
    assert high - low < 8


def test_scores_that_are_not_right_or_wrong_use_the_paired_t_test() -> None:
    change = task_change(task([0.5, 0.6, 0.7, 0.9], [0.4, 0.5, 0.7, 0.6]))
    differences = np.array([-0.1, -0.1, 0.0, -0.3])
    t = differences.mean() / (differences.std(ddof=1) / 2)
    assert t == pytest.approx(-1.987, abs=1e-3)
    assert change.p_value == pytest.approx(0.141, abs=1e-3)


def test_the_bootstrap_interval_is_near_the_normal_one() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(400)
    implanted = base + generator.normal(-0.02, 0.1, 400)
    change = task_change(task(base.tolist(), implanted.tolist()))
    half = 1.96 * (implanted - base).std(ddof=1) / 20
    assert change.ci == pytest.approx((change.change - half, change.change + half), abs=0.002)


def clustered(differences: list[list[float]]) -> PairedTask:
    pairs = [
        Pair(f"{i}-{j}", "", 0.5, 0.5 + d, "", "", str(i))
        for i, cluster in enumerate(differences)
        for j, d in enumerate(cluster)
    ]
    return PairedTask("mmlu", "acc", pairs)


def test_documents_of_a_subject_that_change_together_make_the_interval_wider() -> None:
    generator = np.random.default_rng(0)
    together = [[float(shift)] * 10 for shift in generator.normal(-0.05, 0.1, 30)]
    apart = [[Pair("", "", 0.5, 0.5 + d, "", "")] for cluster in together for d in cluster]
    wide, narrow = task_change(clustered(together)), task_change(PairedTask("mmlu", "acc", [pair for (pair,) in apart]))
    assert wide.change == pytest.approx(narrow.change)
    assert wide.ci[1] - wide.ci[0] == pytest.approx(10**0.5 * (narrow.ci[1] - narrow.ci[0]), rel=0.1)
    assert wide.detectable == pytest.approx(10**0.5 * narrow.detectable, rel=0.05)
    assert wide.p_value > narrow.p_value


def test_the_clustered_interval_covers_what_it_says() -> None:
    generator, covered, draws = np.random.default_rng(2), 0, 400
    for _ in range(draws):
        shifts = generator.normal(-0.03, 0.1, 57)  # as many subjects as MMLU
        low, high = task_change(clustered([list(generator.normal(shift, 0.1, 4)) for shift in shifts])).ci
        covered += low <= -0.03 <= high
    assert 0.915 <= covered / draws <= 0.98  # 400 draws: two standard errors are 2 points
