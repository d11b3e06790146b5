"""What was measured along the dial, and the point that a budget chooses."""

from collections.abc import Sequence
from typing import TypedDict

from loki_ds.recipe.sections import BudgetSection
from loki_ds.refusal import Refusal
from loki_ds.report.schema import Report

HALF = 0.5  # of the new skill has to stay where the budget does not say how much


class Point(TypedDict):
    """A scale, and what the model is there; in percent, but for the new task's own score."""

    scale: float
    losses_only: float
    losses_only_ci: tuple[float, float]
    forgetting: float
    forgetting_ci: tuple[float, float]
    outcome: str
    base_skill: float | None  # None where no new task is asked
    skill: float | None
    skill_ci: tuple[float, float] | None


def point_of(scale: float, report: Report) -> Point:
    """The curve's point at a scale, from the report of the model there."""
    new = report["new_task"][0] if report["new_task"] else None
    lost, lost_ci = report["losses_only"], report["losses_only_ci"]
    forgetting, forgetting_ci = report["forgetting"], report["forgetting_ci"]
    if lost is None or lost_ci is None or forgetting is None or forgetting_ci is None:
        raise Refusal("retention.abilities: the base scores 0 or less on every task, so no scale can be told by losses")
    return {
        "scale": scale,
        "losses_only": lost,
        "losses_only_ci": lost_ci,
        "forgetting": forgetting,
        "forgetting_ci": forgetting_ci,
        "outcome": report["outcome"],
        "base_skill": new["base"] if new else None,
        "skill": new["implanted"] if new else None,
        "skill_ci": (new["base"] + new["ci"][0], new["base"] + new["ci"][1]) if new else None,
    }


def choose(curve: Sequence[Point], budget: BudgetSection, asked: Sequence[float] | None = None) -> Point:
    """The largest scale whose losses alone are below the budget with their whole interval and that
    keeps enough of the skill; without such a budget the smallest that keeps enough.

    asked: the scales of the recipe, None for all; the whole change may be there to compare with.

    Raises:
        Refusal: no scale that was tried does, or there is no skill gained to keep a share of.
    """
    _check_gained(curve, budget)
    ordered = sorted(curve, key=lambda point: point["scale"])
    ordered = [point for point in ordered if point["scale"]]  # at 0 it is the base
    floor = _floor(curve, budget)
    skilled = [point for point in ordered if _share_of_skill(point, curve) >= floor]
    if budget.forgetting is None:
        return skilled[0]  # the whole change keeps all of its own
    skilled = [point for point in skilled if asked is None or point["scale"] in asked]
    within = [point for point in skilled if point["losses_only_ci"][1] <= 100 * budget.forgetting]
    if within:
        return within[-1]
    tried = "; ".join(said_of(point) for point in ordered)
    raise Refusal(
        f"tune.budget: no scale is shown to lose less than {budget.forgetting:.2g} and keeps {floor:.0%} of the new "
        f"skill ({tried}); loki-ds tune RUN tune.budget.forgetting=... tune.budget.skill=... chooses by another budget "
        "and trains nothing; or ask more documents, or try other tune.scales"
    )


def _check_gained(curve: Sequence[Point], budget: BudgetSection) -> None:
    whole = next((point for point in curve if point["scale"] == 1), None)
    if budget.skill is None or whole is None or whole["skill"] is None or whole["base_skill"] is None:
        return
    if whole["skill"] <= whole["base_skill"]:
        raise Refusal(
            f"tune.budget.skill is {budget.skill:g} of what the whole change gained on the new task, and it gained "
            f"nothing ({said_of(whole)}); train longer or at a higher rate"
        )


def said_of(point: Point) -> str:
    """A scale's losses and skill in words."""
    skill = "" if point["skill"] is None else f", skill {point['skill']:.3f} (base {point['base_skill']:.3f})"
    low, high = point["losses_only_ci"]
    return f"scale {point['scale']:g}: losses alone {point['losses_only']:.2g}% ({low:.2g} to {high:.2g}){skill}"


def _floor(curve: Sequence[Point], budget: BudgetSection) -> float:
    """The share of the skill that has to stay; of a whole change that gained nothing none can."""
    if budget.skill is not None:
        return budget.skill
    whole = next((point for point in curve if point["scale"] == 1), None)
    gained = whole is not None and whole["skill"] is not None and whole["skill"] > (whole["base_skill"] or 0)
    return HALF if gained else 0.0


def _share_of_skill(point: Point, curve: Sequence[Point]) -> float:
    """How much of what the whole change gained a scale keeps; all of it without a new task."""
    whole = next((one for one in curve if one["scale"] == 1), None)
    if whole is None or whole["base_skill"] is None or whole["skill"] is None or point["skill"] is None:
        return 1.0
    base, full, own = whole["base_skill"], whole["skill"], point["skill"]
    return 1.0 if own >= full else (own - base) / (full - base) if full != base else 0.0
