"""What the registered study takes of a run, and its tests, whose unit is the run (`real.md`)."""

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]
Asked = dict[str, dict[str, Any]]  # by task: its metrics' means
NINE_TENTHS = 0.9
PRIMARY = ("lowest", "highest", "random")


class Place(NamedTuple):
    """Of a run, at one scale of its change: percent lost, nats gained, relative size."""

    loss: float
    skill: float
    size: float


Runs = Sequence[Sequence[Place]]


def losses(base: Asked, now: Asked, tasks: Sequence[str]) -> dict[str, float]:
    """By how much each task's negative log-likelihood rose, in percent of the base's; a fall is
    negative.
    """
    return {task: 100 * (surprise(now[task]) / surprise(base[task]) - 1) for task in tasks}


def surprise(found: dict[str, Any]) -> float:
    """Bits per byte of a text, or nats of the right answer."""
    for name, value in found.items():
        if name.startswith("bits per byte of"):
            return float(value)
    return -float(found["log-likelihood of the gold answer"])


def short(task: str) -> str:
    """A task's name in a table."""
    return task.removeprefix("real_").removeprefix("gold_")


def mean_loss(base: Asked, now: Asked, tasks: Sequence[str]) -> float:
    """The mean over tasks; a fall counts 0."""
    return float(np.mean([max(0.0, one) for one in losses(base, now, tasks).values()]))


def places(
    base: Asked,
    cell: dict[str, Any],
    tasks: Sequence[str],
    skill: str,
    lost: Callable[[Asked, Asked, Sequence[str]], float] = mean_loss,
) -> list[Place]:
    """The base and every place that was asked, by its scale."""
    found = [Place(0.0, 0.0, 0.0)]
    for scale, now in sorted(cell["places"].items(), key=lambda place: float(place[0])):
        gained = surprise(base[skill]) - surprise(now[skill])
        found.append(Place(lost(base, now, tasks), gained, float(scale) * cell["change"]))
    return found


def loss_at(run: Sequence[Place], skill: float | None = None, size: float | None = None) -> float:
    """On the straight lines between a run's places, where they first reach a skill or a size; NaN
    beyond them.
    """
    at, along = (skill, [one.skill for one in run]) if skill is not None else (size, [one.size for one in run])
    assert at is not None
    for (before, after), (one, other) in zip(pairwise(along), pairwise(run), strict=True):
        if before <= at <= after:
            share = (at - before) / (after - before) if after > before else 0.0
            return one.loss + share * (other.loss - one.loss)
    return float("nan")


def common_skill(runs: Runs) -> float:
    """Nine tenths of the smallest skill among the runs compared."""
    return NINE_TENTHS * min(max(place.skill for place in run) for run in runs)


def common_size(runs: Runs) -> float:
    return NINE_TENTHS * min(run[-1].size for run in runs)


# What each of the runs compared loses, where they are compared.


def at_equal_skill(runs: Runs) -> list[float]:
    skill = common_skill(runs)
    return [loss_at(run, skill=skill) for run in runs]


def at_equal_size(runs: Runs) -> list[float]:
    size = common_size(runs)
    return [loss_at(run, size=size) for run in runs]


def of_the_whole(runs: Runs) -> list[float]:
    return [run[-1].loss for run in runs]


# --- tests ----------------------------------------------------------------------------------------


class Seed(NamedTuple):
    """Losses of one data seed's runs."""

    lowest: float
    highest: float
    random: list[float]


def seeds_of(
    cells: dict[str, dict[str, Any]], runs: dict[str, list[Place]], compared: Callable[[Runs], list[float]]
) -> list[Seed]:
    """Of every data seed whose lowest, highest and several random runs are there."""
    seeds = []
    for number in sorted({cell["seed"] for cell in cells.values()}):
        names = [name for name, cell in cells.items() if cell["seed"] == number and cell["arm"] in PRIMARY]
        lost = dict(zip(names, compared([runs[name] for name in names]), strict=True)) if names else {}
        of_arm = {arm: [one for name, one in lost.items() if cells[name]["arm"] == arm] for arm in PRIMARY}
        if of_arm["lowest"] and of_arm["highest"] and len(of_arm["random"]) > 1:
            seeds.append(Seed(of_arm["lowest"][0], of_arm["highest"][0], of_arm["random"]))
    return seeds


def rank(loss: float, among: Sequence[float]) -> int:
    """1 the smallest."""
    return 1 + sum(one < loss for one in among)


def against_random(seeds: Sequence[Seed]) -> tuple[list[int], float]:
    """LoKI's rank among the draws of each seed, 1 the smallest loss; p of their sum, two-sided."""
    ranks = [rank(seed.lowest, seed.random) for seed in seeds]
    sums = np.ones(1)
    for seed in seeds:  # of a uniform rank each, counted from 0
        sums = np.convolve(sums, np.full(len(seed.random) + 1, 1 / (len(seed.random) + 1)))
    at = sum(ranks) - len(ranks)
    return ranks, float(min(1.0, 2 * min(sums[: at + 1].sum(), sums[at:].sum())))


def against_highest(seeds: Sequence[Seed]) -> tuple[float, float]:
    """The mean difference of lowest and highest; p of it among all ordered pairs of each seed's
    runs, two-sided.
    """
    differences: Numbers = np.zeros(1)
    for seed in seeds:
        every = [seed.lowest, seed.highest, *seed.random]
        of_seed = np.array([one - other for one, other in permutations(every, 2)])
        differences = np.add.outer(differences, of_seed).ravel()
    found = sum(seed.lowest - seed.highest for seed in seeds)
    return found / len(seeds), float(np.mean(np.abs(differences) >= abs(found) - 1e-12))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusted for their number (Holm, 1979)."""
    adjusted, so_far = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda one: one[1])):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = so_far
    return adjusted


class Equivalence(NamedTuple):
    """LoKI's loss less the draws' mean, its 90% interval, and p of the two one-sided tests."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def smallest_margin(self) -> float:
        """At which the two were called equivalent, at 0.05."""
        return max(-self.low, self.high)


def equivalence(seeds: Sequence[Seed], margin: float) -> Equivalence | None:
    """Two one-sided tests; the spread of one run is that of the draws within a seed. None for too
    few draws.
    """
    freedom = sum(len(seed.random) - 1 for seed in seeds)
    if freedom < 1:
        return None
    spread = sum(np.var(seed.random) * len(seed.random) for seed in seeds) / freedom
    error = np.sqrt(spread * sum(1 + 1 / len(seed.random) for seed in seeds)) / len(seeds)
    difference = float(np.mean([seed.lowest - np.mean(seed.random) for seed in seeds]))
    half = float(stats.t.ppf(0.95, freedom) * error)
    p = max(stats.t.cdf((difference - margin) / error, freedom), stats.t.sf((difference + margin) / error, freedom))
    return Equivalence(difference, difference - half, difference + half, float(p))
