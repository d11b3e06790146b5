"""Stopping when decided: how often is it wrong, and how many documents does it ask?

    python eval/benchmarks/stopping.py          # two minutes; eval/reports/stopping.*

Simulated tasks in random order through the package's own bounds, looked at after every block
of `retention.stop: decided`. Beside it a usual interval, Newcombe's, looked at as often.
"""

import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import keep, listed, paragraph, table, where, write

from loki_ds.retention.blocks import BLOCKS, SMALLEST
from loki_ds.retention.mean_change import LEVEL
from loki_ds.retention.statistics import paired_proportions_interval
from loki_ds.retention.stopping import ONE_SIDED, log_capital, stakes

TIMES = 2000
TASKS = 6  # of a suite, for Holm's correction
NEEDED = -np.log(ONE_SIDED)
SIZES = (300, 1000, 5000)
MARGINS = (0.01, 0.03, 0.05)
KINDS = ("right or wrong", "between 0 and 1", "57 subtasks alike")
CASES = {
    "nothing changes": (0.0, 0.0),
    "1% lost, 1% won": (0.01, 0.01),
    "12% lost, 2% won": (0.12, 0.02),
    "22% lost, 2% won": (0.22, 0.02),
}
LIMITS = (300, 1000)  # of 10,000 documents
GATE = {"ARC-Challenge": (1172, None), "HellaSwag": (10042, 2000), "GSM8K": (1319, None), "IFEval": (541, None)}
CHANGED = (0.02, 0.04, 0.08)  # of all answers, half for the better
RNG = np.random.default_rng(0)


class Gains(NamedTuple):
    """Of all documents of a task, in no order; the first as many lost as won at the end.

    span: of one at most, to either side.
    """

    values: np.ndarray
    span: float = 1.0


class Ended(NamedTuple):
    """How one evaluation ended; missed: which ends of its interval the truth lies beyond."""

    asked: int
    kept: bool
    beyond: bool
    missed: tuple[bool, bool]


def main() -> None:
    at = [(cell, at_the_margin(*cell)) for cell in product(KINDS, SIZES, MARGINS)]
    peeked = [(cell, peeking(*cell)) for cell in product(SIZES, MARGINS)]
    clear = [(cell, clearly(*cell)) for cell in product(CASES, SIZES, MARGINS)]
    limited = [(cell, at_the_margin("right or wrong", 10_000, cell[1], cell[0])) for cell in product(LIMITS, MARGINS)]
    gate = [((name, share), unchanged(*GATE[name], share)) for name, share in product(GATE, CHANGED)]
    found = {"at the margin": at, "peeking": peeked, "clear": clear, "limited": limited, "gate": gate}
    keep("stopping", {"where": where(), **found})
    write(
        "stopping",
        "Stopping when decided",
        paragraph(
            f"`python eval/benchmarks/stopping.py`: {listed(where())}. {TIMES:,} simulated tasks a line, in random "
            f"order, looked at after every block of a twentieth of the documents, or {SMALLEST} of them. At most "
            f"{percent(ONE_SIDED)} may be wrong on either side."
        ),
        "## At the margin itself",
        paragraph(
            "The truth is a loss of exactly the margin: nothing is worse. Wrongly kept, wrongly beyond: how often it "
            "was stopped for either. Missed: how often the interval at the stop lies above or below the truth."
        ),
        table(
            ["scores", "documents", "margin", "wrongly kept", "wrongly beyond", "missed, above", "below", "asked"],
            [(*cell, *map(percent, found)) for cell, found in at],
        ),
        "## The usual interval, looked at after every block",
        paragraph("Right or wrong scores at the margin, by Newcombe's 95% interval: what stopping at will does to it."),
        table(
            ["documents", "margin", "wrongly kept", "wrongly beyond", "asked"],
            [(*cell, *map(percent, found)) for cell, found in peeked],
        ),
        "## How many documents are asked",
        table(
            ["truth", "documents", "margin", "kept", "beyond", "asked", "times fewer"],
            [
                (case, n, margin, percent(kept), percent(beyond), f"{asked:.0f}", f"{n / asked:.1f}")
                for (case, n, margin), (kept, beyond, asked) in clear
            ],
        ),
        "## With a limit",
        paragraph(
            "10,000 documents, of which so many are asked at most; the truth is a loss of exactly the margin, over "
            "all of them."
        ),
        table(
            ["limit", "margin", "wrongly kept", "wrongly beyond", "missed, above", "below", "asked"],
            [(*cell, *map(percent, found[:4]), percent(found[4] * 10_000 / cell[0])) for cell, found in limited],
        ),
        "## A model that lost nothing",
        paragraph(
            "Tasks of the suite `gate` at a margin of three points. So many answers change, half of them for the "
            "better: how often the task is called kept, after how many documents."
        ),
        table(
            ["task", "documents", "answers changed", "kept", "asked"],
            [
                (name, f"{GATE[name][0]:,}", percent(share), percent(kept), f"{asked:.0f}")
                for (name, share), (kept, asked) in gate
            ],
        ),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def gains_of(kind: str, n: int, lost: float, won: float) -> Gains:
    """A task in which those shares of documents lose and win."""
    values = np.zeros(n)
    values[: round(lost * n)], values[n - round(won * n) :] = -1, 1
    if kind == "between 0 and 1":
        return Gains(values * RNG.uniform(0.2, 1, n))
    if kind == "57 subtasks alike":
        sizes = RNG.multinomial(n - 57, RNG.dirichlet(np.full(57, 2.0))) + 1
        weights = n / 57 / np.repeat(sizes, sizes)  # whole subtasks fall together
        return Gains(values * weights, float(weights.max()))
    return Gains(values)


def asked_in_blocks(gains: Gains, margin: float, limit: int | None = None) -> Ended:
    """`blocks.until_decided` of one task; a truth is missed by its capital, without bisection."""
    n, most = len(gains.values), limit or len(gains.values)
    x = RNG.permutation(gains.values)[:most] / gains.span
    aim, truth = margin / gains.span, float(gains.values.mean()) / gains.span
    up, down = stakes(x, n, -aim), stakes(-x, n, aim)
    kept, beyond, p, above, below = (
        np.maximum.accumulate(log_capital(of, n, mean, staked))
        for of, mean, staked in ((x, -aim, up), (-x, aim, down), (-x, 0, down), (x, truth, up), (-x, -truth, down))
    )
    for last in [*range(block(most) - 1, most - 1, block(most)), *([most - 1] if most < n else [])]:
        is_beyond = beyond[last] >= NEEDED and np.exp(-p[last]) * TASKS < LEVEL
        if kept[last] >= NEEDED or is_beyond:
            missed = bool(above[last] >= NEEDED), bool(below[last] >= NEEDED)
            return Ended(last + 1, bool(kept[last] >= NEEDED), bool(is_beyond), missed)
    return Ended(most, False, False, (False, False))


def block(n: int) -> int:
    return max(SMALLEST, -(-n // BLOCKS))


def at_the_margin(kind: str, n: int, margin: float, limit: int | None = None) -> tuple[float, ...]:
    found = []
    for _ in range(TIMES):
        gains = gains_of(kind, n, 0.02 + margin, 0.02)
        ended = asked_in_blocks(gains, -float(gains.values.mean()), limit)
        found.append((ended.kept, ended.beyond, *ended.missed, ended.asked / n))
    return tuple(map(float, np.mean(found, axis=0)))


def peeking(n: int, margin: float) -> tuple[float, ...]:
    """The same by an interval that is right for one look."""
    gains, found = gains_of("right or wrong", n, 0.02 + margin, 0.02).values, []
    for _ in range(TIMES // 10):
        x = RNG.permutation(gains)
        base = np.where(x == 0, RNG.random(n) < 0.7, x < 0).astype(float)
        for last in range(block(n), n, block(n)):
            low, high = paired_proportions_interval(base[:last], (base + x)[:last])
            if low > gains.mean() or high < gains.mean():
                found.append((low > gains.mean(), high < gains.mean(), last / n))
                break
        else:
            found.append((False, False, 1.0))
    return tuple(map(float, np.mean(found, axis=0)))


def clearly(case: str, n: int, margin: float) -> tuple[float, ...]:
    gains = gains_of("right or wrong", n, *CASES[case])
    found = [asked_in_blocks(gains, margin) for _ in range(TIMES)]
    return tuple(map(float, np.mean([(one.kept, one.beyond, one.asked) for one in found], axis=0)))


def unchanged(n: int, limit: int | None, changed: float) -> tuple[float, float]:
    gains = gains_of("right or wrong", n, changed / 2, changed / 2)
    found = [asked_in_blocks(gains, 0.03, limit) for _ in range(TIMES)]
    return float(np.mean([one.kept for one in found])), float(np.mean([one.asked for one in found]))


if __name__ == "__main__":
    main()
