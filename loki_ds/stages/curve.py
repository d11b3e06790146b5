"""What was measured along the dial, and the point that a budget chooses."""

from collections.abc import Sequence
from typing import TypedDict

from loki_ds.recipe.sections import BudgetSection
from loki_ds.refusal import Refusal
from loki_ds.report.schema import Report


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


def choose(curve: Sequence[Point], budget: BudgetSection) -> Point:
    """The largest scale whose losses alone are below the budget with their whole interval, or the
    smallest that keeps a share of the skill that the whole change gained.

    Raises:
        Refusal: no scale that was tried does.
    """
    ordered = sorted(curve, key=lambda point: point["scale"])
    ordered = [point for point in ordered if point["scale"]]  # at 0 it is the base
    if budget.forgetting is not None:
        within = [point for point in ordered if point["losses_only_ci"][1] <= 100 * budget.forgetting]
        if within:
            return within[-1]
        least = min(ordered, key=lambda point: point["losses_only_ci"][1])
        raise Refusal(
            f"tune.budget.forgetting is {budget.forgetting:g}, and at no scale losses alone are shown to be below it; "
            f"nearest is {least['scale']:g}, with up to {least['losses_only_ci'][1]:.2g}%; loki-ds tune RUN "
            "tune.budget.forgetting=... chooses by a larger budget and trains nothing; or ask more documents, or try "
            "smaller tune.scales"
        )
    wanted = [point for point in ordered if _share_of_skill(point, curve) >= (budget.skill or 0)]
    return wanted[0]  # the whole change keeps all of its own


def _share_of_skill(point: Point, curve: Sequence[Point]) -> float:
    (whole,) = (one for one in curve if one["scale"] == 1)
    base, full, own = whole["base_skill"], whole["skill"], point["skill"]
    if base is None or full is None or own is None:
        raise Refusal("tune.budget.skill needs retention.new_task, whose skill it is a share of")
    return 1.0 if own >= full else (own - base) / (full - base) if full != base else 0.0
