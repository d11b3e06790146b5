"""The paper's score by hand, in Python and as an `evaluate` metric; its losses alone; intervals."""

import evaluate
import numpy as np
import pytest
from conftest import ROOT
from paired import task

from loki_ds.retention.forgetting import forgetting, least_loss, losses_only, relative_loss, signed


def test_by_hand() -> None:
    assert forgetting([0.5, 0.8], [0.4, 0.8]) == pytest.approx(10.0)  # 20% and 0% of the base lost
    assert forgetting([0.5], [0.6]) == pytest.approx(-20.0)


def test_as_an_evaluate_metric(tmp_path) -> None:  # type: ignore[no-untyped-def]
    metric = evaluate.load(str(ROOT / "eval/metrics/forgetting"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[0.4, 0.8], references=[0.5, 0.8]) == pytest.approx({"forgetting": 10.0})


@pytest.mark.parametrize(("base", "implanted"), [([], []), ([0.5], [0.5, 0.5]), ([0.0], [0.5])])
def test_what_has_no_score_is_an_error(base: list[float], implanted: list[float]) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        forgetting(base, implanted)


LOST = task([1] * 150 + [0] * 50, [1] * 120 + [0] * 80)  # a fifth of the base's score
GAINED = task([1] * 100 + [0] * 100, [1] * 120 + [0] * 80)


def test_gains_pay_for_losses_in_one_figure_and_not_in_the_other() -> None:
    losses = [relative_loss(LOST), relative_loss(GAINED)]
    assert signed(losses).percent == pytest.approx(forgetting([0.75, 0.5], [0.6, 0.6])) == pytest.approx(0)
    assert losses_only(losses).percent == pytest.approx(10)
    for figure in (signed(losses), losses_only(losses)):
        assert figure.ci[0] < figure.percent < figure.ci[1]


def test_a_loss_of_a_measure_that_is_better_when_lower() -> None:
    texts = task([1.0, 2.0, 3.0] * 20, [1.1, 2.2, 3.3] * 20, unit="bits per byte", higher_is_better=False)
    assert relative_loss(texts).value == pytest.approx(0.1)
    assert signed([relative_loss(texts)]).percent == pytest.approx(10)


def test_nothing_flipped_is_not_nothing_forgotten() -> None:
    figure = signed([relative_loss(task([1] * 60 + [0] * 40, [1] * 60 + [0] * 40))])
    assert figure.percent == 0
    assert figure.ci == pytest.approx((-100 * 3.92 / 60, 100 * 3.92 / 60), rel=0.01)


@pytest.mark.parametrize("right", [0.5, 0.75, 1.0])
def test_the_least_loss_is_what_unchanged_answers_show(right: float) -> None:
    answers = [1] * int(200 * right) + [0] * int(200 * (1 - right))
    unchanged = losses_only([relative_loss(task(answers, answers))] * 3)
    assert least_loss([([200], True)] * 3, right) == pytest.approx(unchanged.ci[1] / 100)


@pytest.mark.parametrize(("lost", "won"), [(0.08, 0.02), (0.03, 0.03)])
def test_both_intervals_cover(lost: float, won: float) -> None:
    generator, times, true = np.random.default_rng(0), 400, 100 * (lost - won) / 0.6
    covered = np.zeros(2)
    for _ in range(times):
        tasks = []
        for _ in range(4):
            base, drawn = generator.random(300) < 0.6, generator.random(300)
            tasks.append(task(base.astype(float), np.where(base, drawn >= lost / 0.6, drawn < won / 0.4).astype(float)))
        figures = [form([relative_loss(one) for one in tasks]) for form in (signed, losses_only)]
        covered += [figure.ci[0] <= true + 1e-9 and true <= figure.ci[1] for figure in figures]
    assert all(0.93 <= share <= 1 for share in covered / times)
    assert covered[0] / times <= 0.985


def test_a_base_without_a_score_has_nothing_to_lose() -> None:
    with pytest.raises(ValueError, match="task sums: a loss is relative to the base score, which is 0"):
        relative_loss(task([0, 0], [1, 0]))
