"""Do the intervals cover what they say? Simulated tasks of known change, through the package's own
statistics.

    python eval/benchmarks/intervals.py         # about five minutes; eval/reports/intervals.*

Subtasks differ in how much they lose and gain by a gamma distribution of shape 4 (half as much
again either way), 1 (some lose several times the mean) or not at all.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import keep, listed, paragraph, table, where, write

from loki_ds.retention.forgetting import losses_only, relative_loss, signed
from loki_ds.retention.mean_change import mcnemar_detectable, mean_change
from loki_ds.retention.pairing import Pair, PairedTask

TIMES = 2000
GROUPS = {
    "2 of 500": [500] * 2,
    "4 of 100": [100] * 4,
    "4, as BFCL's": [400, 200, 200, 200],
    "5 of 100": [100] * 5,
    "10 of 100": [100] * 10,
    "10, 30 to 800": [30, 50, 60, 100, 100, 200, 240, 240, 500, 800],
    "57, as MMLU's": [100 + (37 * i) % 400 for i in range(57)],
}
FLIPS = {
    "none": (0.0, 0.0),
    "few": (0.005, 0.0025),
    "few, losses alone": (0.01, 0.0),
    "many": (0.05, 0.03),
    "very many": (0.1, 0.09),
}
SPREADS: dict[str, float | None] = {"alike": None, "shape 4": 4.0, "shape 1": 1.0}
CONTINUOUS = {"F1, all change": (1.0, 0.2), "F1, one in ten changes": (0.1, 0.4), "F1, one in a hundred": (0.01, 0.5)}
RNG = np.random.default_rng(0)


def main() -> None:
    groups = [(*cell, *group_cell(*cell)) for cell in cells()]
    continuous = [(n, name, *continuous_cell(n, *CONTINUOUS[name])) for n in (50, 200, 1000) for name in CONTINUOUS]
    losses = [(name, *forgetting_cell(*cell)) for name, cell in SUITES.items()]
    power = [(n, won, *power_cell(n, won)) for n, won in ((164, 0), (164, 3), (541, 10), (1319, 40), (5000, 200))]
    keep(
        "intervals",
        {"where": where(), "groups": groups, "continuous": continuous, "forgetting": losses, "power": power},
    )
    write(
        "intervals",
        "Do the intervals cover?",
        paragraph(
            f"`python eval/benchmarks/intervals.py`: {listed(where())}. {TIMES:,} simulated tasks a line. Covered: how "
            "often the 95% interval holds the true change. False `kept`: how often the floor, by which an ability is "
            "called kept, lies above the true change, so that a margin just there would be called kept; a group of "
            "fewer than four subtasks is never called so. Where few documents change, intervals are wider than they "
            "need be."
        ),
        "## Groups of subtasks",
        table(
            ["subtasks", "documents that flip", "subtasks differ", "flips", "covered", "false `kept`"],
            groups_shown(groups),
        ),
        "## Scores between 0 and 1",
        table(
            ["documents", "", "covered", "false `kept`"],
            [(n, name, *map(percent, found)) for n, name, *found in continuous],
        ),
        "## The forgetting figures",
        table(
            ["suite", "signed: covered", "losses only: covered", "false: below the truth"],
            [(name, *map(percent, found)) for name, *found in losses],
        ),
        "## Shown from",
        paragraph("The change that a task of 0/1 scores says it would show, and how often McNemar's test shows it."),
        table(
            ["documents", "gained", "shown from", "shown"], [(n, won, percent(d), percent(p)) for n, won, d, p in power]
        ),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def cells() -> Iterator[tuple[str, str, str]]:
    for group in GROUPS:
        for flips in FLIPS:
            for spread in SPREADS if flips != "none" else ["alike"]:
                yield group, flips, spread


def groups_shown(groups: list[tuple]) -> list[tuple]:
    return [
        (group, flips, spread, f"{m:.0f}", percent(covered), percent(false))
        for group, flips, spread, m, covered, false in groups
    ]


def rates(mean: float, spread: str, count: int) -> np.ndarray:
    """Each subtask's share of documents that flip one way."""
    shape = SPREADS[spread]
    return np.full(count, mean) if shape is None else np.clip(mean * RNG.gamma(shape, 1 / shape, count), 0, 0.5)


def group_cell(group: str, flips: str, spread: str) -> tuple[float, float, float]:
    """Mean number of flips, and shares of covered and of false `kept`."""
    sizes, (lost, won) = GROUPS[group], FLIPS[flips]
    clusters, true = np.repeat(np.arange(len(sizes)), sizes), won - lost
    found = []
    for _ in range(TIMES):
        drawn = RNG.random(len(clusters))
        down, up = (rates(share, spread, len(sizes))[clusters] for share in (lost, won))
        differences = np.where(drawn < down, -1.0, np.where(drawn > 1 - up, 1.0, 0.0))
        change = mean_change(differences, 1.0, True, clusters)
        low, high = change.interval()
        found.append((np.abs(differences).sum(), low <= true <= high, change.floor() > true))
    flipped, covered, false = np.mean(found, axis=0)
    return float(flipped), float(covered), float(false)


def continuous_cell(n: int, changing: float, size: float) -> tuple[float, float]:
    """Documents whose score changes by up to `size`, twice as often down as up."""
    found, true = [], -changing * size / 6
    for _ in range(TIMES):
        moves = np.where(RNG.random(n) < 2 / 3, -1, 1) * RNG.random(n) * size * (RNG.random(n) < changing)
        change = mean_change(moves, 1.0, True)
        low, high = change.interval()
        found.append((low <= true <= high, change.floor() > true))
    covered, false = np.mean(found, axis=0)
    return float(covered), float(false)


# --- the forgetting figures -----------------------------------------------------------------------

# Each task: documents, base score, shares of documents lost and won.
SUITES: dict[str, tuple[tuple[int, float, float, float], ...]] = {
    "one of 100, 1% lost": ((100, 0.7, 0.01, 0.0),),
    "six of 300, nothing changes": ((300, 0.6, 0.0, 0.0),) * 6,
    "six of 300, as many won as lost": ((300, 0.6, 0.03, 0.03),) * 6,
    "six of 300, three lose, three gain": ((300, 0.6, 0.06, 0.02),) * 3 + ((300, 0.6, 0.02, 0.06),) * 3,
    "six of 300, all lose": ((300, 0.6, 0.08, 0.02),) * 6,
    "twenty of 500, one loses": ((500, 0.5, 0.02, 0.02),) * 19 + ((500, 0.5, 0.12, 0.0),),
}


def forgetting_cell(*tasks: tuple[int, float, float, float]) -> tuple[float, float, float]:
    true = [(lost - won) / base for _, base, lost, won in tasks]
    signed_true, losses_true = np.mean(true), np.mean(np.maximum(true, 0))
    found = []
    for _ in range(TIMES):
        losses = [relative_loss(drawn_task(*task)) for task in tasks]
        both, only = signed(losses), losses_only(losses)
        found.append(
            (
                both.ci[0] <= 100 * signed_true <= both.ci[1],
                only.ci[0] <= 100 * losses_true + 1e-12 and 100 * losses_true <= only.ci[1],
                only.ci[1] < 100 * losses_true,
            )
        )
    return tuple(float(share) for share in np.mean(found, axis=0))  # type: ignore[return-value]


def drawn_task(n: int, score: float, lost: float, won: float) -> PairedTask:
    base = (RNG.random(n) < score).astype(float)
    drawn = RNG.random(n)
    implanted = np.where(base > 0, drawn >= lost / score, drawn < won / (1 - score)).astype(float)
    pairs = [Pair(str(i), "", b, a, "", "") for i, (b, a) in enumerate(zip(base, implanted, strict=True))]
    metric = {"name": "acc", "metric": "acc", "filter": "none", "unit": "score", "higher_is_better": True}
    return PairedTask("task", metric, pairs)  # type: ignore[arg-type]


def power_cell(n: int, won: int) -> tuple[float, float]:
    """The change said to be shown from, and how often it is."""
    change = mcnemar_detectable(n, won)
    gained = won / n
    counts = RNG.multinomial(n, [gained, gained + change, 1 - 2 * gained - change], 20 * TIMES)
    fewer, flips = counts[:, :2].min(1), counts[:, :2].sum(1)
    shown = (np.minimum(1, 2 * stats.binom.cdf(fewer, flips, 0.5)) < 0.05) & (counts[:, 1] > counts[:, 0])
    return change, float(shown.mean())


if __name__ == "__main__":
    main()
