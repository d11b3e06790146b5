"""Runs compared at equal skill and at equal size of the change, along their dials: is one better,
or only smaller?

A dial (`tune`) measured a run's change at several scales; between them, and down to the base, it is
taken as straight. Runs without one are left out.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loki_ds.report.schema import Report
from loki_ds.run_folder import RunFolder


class Dial(NamedTuple):
    """One run's dial: scales from 0 (the base) up, the new task's score and the losses alone
    (percent) there; size: of the whole change, as a share of the weights'.
    """

    name: str
    scales: list[float]
    skills: list[float]
    losses: list[float]
    size: float

    def scale_of_skill(self, skill: float) -> float:
        """The smallest scale that reaches it."""
        steps = zip(self.scales, self.scales[1:], self.skills, self.skills[1:], strict=False)
        return next(low + (high - low) * (skill - a) / (b - a) for low, high, a, b in steps if a < skill <= b)

    def scale_of_size(self, size: float) -> float:
        return size / self.size

    def loss_at(self, scale: float) -> float:
        return float(np.interp(scale, self.scales, self.losses))


def equal_sentences(runs: Sequence[str | Path], reports: Sequence[Report]) -> list[str]:
    """What the runs that have dials lose at the skill and at the size that all of them reach."""
    dials = [dial for run, report in zip(runs, reports, strict=True) if (dial := dial_of(run, report))]
    if len(dials) < 2:
        return []
    skill, size = min(max(dial.skills) for dial in dials), min(dial.size * dial.scales[-1] for dial in dials)
    at = f"At a change of {100 * size:.2g}% of the weights"
    sentences = [_sentence(at, dials, lambda one: one.scale_of_size(size))]
    if skill > max(dial.skills[0] for dial in dials):
        at = f"At a score of {skill:.3f} on the new task"
        sentences.insert(0, _sentence(at, dials, lambda one: one.scale_of_skill(skill)))
    return sentences


def _sentence(at: str, dials: Sequence[Dial], scale_of: Callable[[Dial], float]) -> str:
    found = sorted((one.loss_at(scale_of(one)), scale_of(one), one.name) for one in dials)
    said = ", ".join(f"{name} {lost:.2f}% (scale {scale:.2f})" for lost, scale, name in found)
    return f"{at}, along their dials, the runs lose: {said}."


def dial_of(run: str | Path, report: Report) -> Dial | None:
    """A run's dial, if it has one with a new task."""
    folder, change = RunFolder(run).tune, (report["verification"] or {}).get("change")
    if not (folder / "chosen.json").exists() or not change:
        return None
    curve, chosen = (json.loads((folder / name).read_text()) for name in ("curve.json", "chosen.json"))
    alike = [place for place in curve if not place["scale"][1]]  # in all layers
    places = sorted((place["scale"][0], place["skill"], place["losses_only"]) for place in alike)
    if not places or chosen["skill"] is None or chosen["scale"][1]:
        return None
    scales, skills, losses = map(list, zip(*[(0.0, chosen["base_skill"], 0.0), *places], strict=True))
    return Dial(Path(report["run"]).name, scales, skills, losses, change / chosen["scale"][0])
