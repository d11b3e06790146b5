"""What a budget chooses along a measured curve."""

from typing import Any

import pytest

from loki_ds.recipe.sections import BudgetSection
from loki_ds.refusal import Refusal
from loki_ds.stages.curve import Point, choose


def point(scale: float, lost: float, upper: float, skill: float | None) -> Point:
    own: Any = {"scale": scale, "losses_only": lost, "losses_only_ci": (0.0, upper)}
    return {
        **own,
        "forgetting": lost,
        "forgetting_ci": (0.0, upper),
        "outcome": "",
        "base_skill": 0.1,
        "skill": skill,
        "skill_ci": None,
    }


CURVE = [point(1.0, 5, 9, 0.9), point(0.25, 0, 0.5, 0.3), point(0.75, 1.0, 2, 0.88), point(0.5, 0.2, 0.8, 0.74)]


@pytest.mark.parametrize(("budget", "scale"), [(0.5, 1.0), (0.02, 0.75), (0.019, 0.5)])
def test_the_largest_whose_whole_interval_is_below_the_budget(budget: float, scale: float) -> None:
    assert choose(CURVE, BudgetSection(forgetting=budget))["scale"] == scale


def test_where_none_is_every_scale_is_said_with_both_figures() -> None:
    says = r"keeps 50% of the new skill \(scale 0\.25: losses alone 0% \(0 to 0\.5\), skill 0\.300"
    with pytest.raises(Refusal, match=says):
        choose(CURVE, BudgetSection(forgetting=0.001))


def test_a_scale_that_lost_the_skill_is_no_choice() -> None:
    """At 0.25 a quarter of it is left, and nothing is lost."""
    with pytest.raises(Refusal, match="keeps 50% of the new skill"):
        choose(CURVE, BudgetSection(forgetting=0.006))
    assert choose(CURVE, BudgetSection(forgetting=0.006, skill=0.2))["scale"] == 0.25
    with pytest.raises(Refusal, match="keeps 90% of the new skill"):
        choose(CURVE, BudgetSection(forgetting=0.01, skill=0.9))
    gone = [point(1.0, 5, 9, 0.1), point(0.5, 0.2, 0.8, 0.1)]
    assert choose(gone, BudgetSection(forgetting=0.01))["scale"] == 0.5  # nothing was gained that could go


@pytest.mark.parametrize(("share", "scale"), [(1.0, 1.0), (0.95, 0.75), (0.79, 0.5), (0.1, 0.25)])
def test_the_smallest_that_keeps_a_share_of_what_was_gained(share: float, scale: float) -> None:
    """Of 0.8, from 0.1 to 0.9."""
    assert choose(CURVE, BudgetSection(skill=share))["scale"] == scale


def test_the_whole_change_is_no_choice_where_it_was_not_asked_for() -> None:
    """It is measured, so that a share of its skill can be told."""
    assert choose(CURVE, BudgetSection(forgetting=0.5))["scale"] == 1.0
    assert choose(CURVE, BudgetSection(forgetting=0.5), [0.25, 0.5])["scale"] == 0.5


def test_the_base_is_no_result() -> None:
    with pytest.raises(Refusal, match=r"\(scale 0\.25: losses"):
        choose([point(0.0, 0, 0.1, 0.1), *CURVE], BudgetSection(forgetting=0.001))


def test_of_no_gain_no_scale_keeps_a_share() -> None:
    gone = [point(1.0, 5, 9, 0.1), point(0.5, 0.2, 0.8, 0.1)]
    with pytest.raises(Refusal, match=r"budget\.skill is 0\.95 of what the whole change gained .* it gained nothing"):
        choose(gone, BudgetSection(skill=0.95))
