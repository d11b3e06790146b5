"""The primary comparison of the registered study: lowest rows against random and highest ones."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from by_other_choices import choices
from by_run import (
    Asked,
    Place,
    Seed,
    against_highest,
    against_random,
    at_equal_size,
    at_equal_skill,
    equivalence,
    holm,
    of_the_whole,
    places,
    seeds_of,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import paragraph, spread, table

MARGIN = 1.0  # points of loss
LEVEL = 0.05
COMPARED = "lowest, random, highest, rank of lowest, its p, lowest less highest, its p, lowest less random".split(", ")


def primary(
    cells: dict[str, Any], runs: dict[str, list[Place]], base: Asked, tasks: Sequence[str], skill: str, final: bool
) -> Iterator[str]:
    """At equal skill (the one that decides), at equal size, and the whole; by other choices."""
    seeds = seeds_of(cells, runs, at_equal_skill)
    if not seeds:
        yield paragraph("No data seed has its lowest, its highest and two random rows yet.")
        return
    yield paragraph(
        f"Data seeds with a lowest, a highest and random runs: {len(seeds)}. p in brackets: by Holm. Equivalence: "
        "lowest less the mean of random, 90% interval. Size: the norm of the change over that of the base. "
        f"{verdict(seeds, final)}"
    )
    how = {"equal skill": at_equal_skill, "equal size": at_equal_size, "the whole change": of_the_whole}
    yield table(["compared at", *COMPARED], [[name, *compared(seeds_of(cells, runs, at))] for name, at in how.items()])
    yield "### By other choices"
    yield paragraph("Registered is the first line. The others show how much it hangs on what counts, and where.")
    lines = []
    for choice in choices(tasks):
        by_choice = {name: places(base, cell, choice.tasks, skill, choice.lost) for name, cell in cells.items()}
        lines.append([choice.name, *compared(seeds_of(cells, by_choice, choice.compared))])
    yield table(["choice", *COMPARED], lines)


def compared(seeds: Sequence[Seed]) -> list[str]:
    """A line of losses and tests."""
    ranks, p_random = against_random(seeds)
    difference, p_highest = against_highest(seeds)
    adjusted, same = holm({"random": p_random, "highest": p_highest}), equivalence(seeds, MARGIN)
    assert same is not None, "a seed has two draws at least"
    return [
        spread([seed.lowest for seed in seeds], "{:.2f}%"),
        spread([one for seed in seeds for one in seed.random], "{:.2f}%"),
        spread([seed.highest for seed in seeds], "{:.2f}%"),
        ", ".join(f"{rank} of {len(seed.random) + 1}" for rank, seed in zip(ranks, seeds, strict=True)),
        f"{p_random:.3f} ({adjusted['random']:.3f})",
        f"{difference:+.2f}",
        f"{p_highest:.3f} ({adjusted['highest']:.3f})",
        f"{same.difference:+.2f} ({same.low:+.2f} to {same.high:+.2f})",
    ]


def verdict(seeds: Sequence[Seed], final: bool) -> str:
    """What the registered tests say, in the registration's words; before the end that of a look by
    the way.
    """
    p = holm({"random": against_random(seeds)[1], "highest": against_highest(seeds)[1]})
    same = equivalence(seeds, MARGIN)
    assert same is not None, "a seed has two draws at least"
    random = float(np.mean([np.mean(seed.random) for seed in seeds]))
    said = [
        f"against {other} a difference is {'shown' if p[other] <= LEVEL else 'not shown'} (p {p[other]:.3f})"
        for other in ("random", "highest")
    ]
    alike = "equivalent" if same.p_value <= LEVEL else "not shown to be equivalent"
    begins = "The verdict" if final else "Interim, and decides nothing"
    return (
        f"{begins}: {said[0]}, {said[1]}; {alike} to random rows at the registered margin of {MARGIN:g} point (p "
        f"{below(same.p_value)}). Random rows lose {random:.2f}% in all; the smallest margin that would pass is "
        f"{same.smallest_margin:.2f} points."
    )


def below(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"
