"""What the registered study found so far: `eval/reports/real_study.md` and its picture."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from by_run import (
    Asked,
    Place,
    Seed,
    against_highest,
    against_random,
    common_size,
    common_skill,
    equivalence,
    holm,
    loss_at,
    losses,
    places,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, listed, paragraph, spread, table, where, write

Found = dict[str, dict[str, Any]]
MARGIN = 1.0  # points of loss
BAR = 5.0  # percent of one ability
GENERATED = {
    "no call where none fits": "real_irrelevance",
    "no call in a chat": "real_chat",
    "instructions": "real_instructions",
    "calls right": "real_calls",
}


def write_report(study: dict[str, Any], found: Found) -> None:
    asked = sum(len(cell["arms"]) + ("random" in cell["arms"]) * (study["draws"] - 1) for cell in study["cells"])
    done = len(found.get("cells", {}))
    state = "All cells are done." if done == asked else f"Interim: {done} of {asked} runs are done."
    about = (
        f"`python eval/studies/real_study.py`: {listed(where('torch', 'transformers', 'trl', 'deepspeed'))}. "
        f"Registered in `eval/studies/real.md`. {state}"
    )
    parts = [paragraph(about), *stage_a(study, found)]
    if done:
        parts += stage_b(study, found)
        picture(study, found)
    write("real_study", "Does it hold? The registered study on a real model", *parts)


# --- stage A --------------------------------------------------------------------------------------


def stage_a(study: dict[str, Any], found: Found) -> Iterator[str]:
    own = found.get("A", {})
    if own:
        yield "## What is selected"
        yield paragraph(
            "Rows at quota 30 over all rows of the same layer, mean over layers: 1.00 is what chance gives."
        )
        kinds = list(own["selected"]["lowest"])
        yield table(
            ["selection", *kinds],
            [[name, *(f"{ratios[kind]:.2f}" for kind in kinds)] for name, ratios in own["selected"].items()],
        )
        yield "## How stable it is"
        yield paragraph("Share of the rows that two ways of selecting have in common, at quota 30; by chance 30%.")
        yield table(["ways", "in common"], [[name, f"{100 * share:.1f}%"] for name, share in own["stability"].items()])
        recurring = own["recurring"]
        common = recurring["two layers' lowest in common"]
        most = "; ".join(
            f"{name}: " + ", ".join(f"{dimension} in {layers}" for dimension, layers in of_rows.items())
            for name, of_rows in recurring["quota 10"].items()
        )
        yield paragraph(
            f"Dimensions that are selected in most layers, of {recurring['layers']}, at quota 10 (by chance in "
            f"{recurring['layers'] / 10:.0f}): {most}. Two layers' lowest rows have "
            f"{100 * common:.1f}% in common at quota 30."
        )
    if "base" in found.get("suppressed", {}):
        yield from suppression(study, found["suppressed"])


def suppression(study: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    tasks = abilities(study)
    names = {task: task.removeprefix("real_").removeprefix("gold_") for task in tasks}
    yield "## Rows set to zero"
    yield paragraph(
        "By how much the negative log-likelihood of the right answers (of code: bits per byte) rises, in percent. "
        f"Random: the mean of {study['suppression']['draws']} draws (range). Rank: of the mean among the draws and the "
        "selection itself, 1 loses least."
    )
    lines = []
    for quota in study["suppression"]["quotas"]:
        of = {name: losses(found["base"], one, tasks) for name, one in found.items() if name.endswith(f", {quota}%")}
        drawn = [lost for name, lost in of.items() if name.startswith("random")]
        means = [float(np.mean(list(lost.values()))) for lost in drawn]
        for name in study["suppression"]["selections"]:
            lost = of.get(f"{name}, {quota}%")
            if lost:
                mean = np.mean(list(lost.values()))
                rank = 1 + sum(one < mean for one in means)
                each = [f"{lost[task]:+.1f}%" for task in tasks]
                lines.append([name, f"{quota}%", f"{mean:+.2f}%", f"{rank} of {len(means) + 1}", *each])
        if drawn:
            each = [spread([lost[task] for lost in drawn], "{:+.1f}%") for task in tasks]
            lines.append(["random", f"{quota}%", spread(means, "{:+.2f}%"), "", *each])
    yield table(["rows", "share", "mean", "rank", *names.values()], lines)


# --- stage B --------------------------------------------------------------------------------------


def stage_b(study: dict[str, Any], found: Found) -> Iterator[str]:
    tasks = abilities(study)
    base, runs = found["base"]["first"], curves(study, found)
    again = base == found["base"]["again"]
    arms = arms_of(study, found)
    skill, size = common_skill(list(runs.values())), common_size(list(runs.values()))
    yield "## Primary: lowest against random and highest"
    yield from primary(found, runs)
    yield "## Every arm"
    yield paragraph(
        "Mean over runs (range). Loss: percent of the base's negative log-likelihood, rises only, mean over six "
        f"abilities. Equal skill: {skill:.2f} nats, nine tenths of the smallest of all runs; equal size: {size:.5f}, "
        f"likewise; a run's own, where it is beyond its places, is left out. The base asked twice gives "
        f"{'the same numbers' if again else 'OTHER NUMBERS'}."
    )
    yield table(
        ["arm", "rate", "runs", "loss, whole", "loss at equal skill", "loss at equal size", "skill, nats", "size"],
        [arm_line(found, runs, arm, skill, size) for arm in arms],
    )
    yield "## By ability, the whole change"
    yield paragraph(
        "Covered by the protected set: mmlu. Rises of the negative log-likelihood, falls too, in percent. "
        + told_apart(study, found)
    )
    short = [task.removeprefix("real_").removeprefix("gold_") for task in tasks]
    by_ability = []
    for arm in arms:
        each = [losses(base, cell["places"]["1"], tasks) for cell in found["cells"].values() if cell["arm"] == arm]
        by_ability.append([arm, *(spread([lost[task] for lost in each], "{:+.1f}%") for task in tasks)])
    yield table(["arm", *short], by_ability)
    yield "## Right answers, and what is generated"
    yield paragraph("At the whole change: shares of documents. Answers: right ones among four, mean of four tasks.")
    yield table(["arm", "answers", *GENERATED], [["base", *scores([base])], *scored(found, arms)])


def told_apart(study: dict[str, Any], found: Found) -> str:
    """Whether full fine-tuning loses enough of something, as registered."""
    runs = [one["places"]["1"] for one in found["cells"].values() if one["arm"] == "full"]
    if not runs:
        return "Full fine-tuning has not run yet."
    each = [losses(found["base"]["first"], run, abilities(study)) for run in runs]
    most, task = max((float(np.mean([lost[task] for lost in each])), task) for task in abilities(study))
    verdict = "so losses can be told apart." if most >= BAR else "so NOTHING CAN BE TOLD APART at this rate."
    return (
        f"Registered was: full fine-tuning without a pull has to lose {BAR:g}% of something. It loses {most:.1f}% on "
        f"{task.removeprefix('real_')}, {verdict}"
    )


def abilities(study: dict[str, Any]) -> list[str]:
    return [*study["covered"], *study["held out"]]


def arms_of(study: dict[str, Any], found: Found) -> list[str]:
    """Those of which there is a run, in the registered order."""
    ran = {cell["arm"] for cell in found["cells"].values()}
    return [arm for arm in study["arms"] if arm in ran]


def curves(study: dict[str, Any], found: Found) -> dict[str, list[Place]]:
    return {
        name: places(found["base"]["first"], cell, abilities(study), study["skill"])
        for name, cell in found["cells"].items()
    }


def primary(found: Found, runs: dict[str, list[Place]]) -> Iterator[str]:
    """At equal skill (the one that decides), at equal size, and the whole."""
    lines, used = [], 0
    for how in ("equal skill", "equal size", "the whole change"):
        seeds = seeds_of(found, runs, how)
        if not seeds:
            continue
        ranks, p_random = against_random(seeds)
        difference, p_highest = against_highest(seeds)
        adjusted = holm({"random": p_random, "highest": p_highest})
        same = equivalence(seeds, MARGIN)
        draws = [one for seed in seeds for one in seed.random]
        lines.append(
            [
                how,
                spread([seed.lowest for seed in seeds], "{:.2f}%"),
                spread(draws, "{:.2f}%"),
                spread([seed.highest for seed in seeds], "{:.2f}%"),
                " and ".join(f"{rank} of {len(seed.random) + 1}" for rank, seed in zip(ranks, seeds, strict=True)),
                f"{p_random:.3f} ({adjusted['random']:.3f})",
                f"{difference:+.2f} points",
                f"{p_highest:.3f} ({adjusted['highest']:.3f})",
                f"{same.difference:+.2f} ({same.low:+.2f} to {same.high:+.2f}), p {same.p_value:.3f}" if same else "",
            ]
        )
        used = len(seeds)
    if not lines:
        yield paragraph("No data seed has its lowest, its highest and two random rows yet.")
        return
    yield paragraph(
        f"Data seeds with a lowest, a highest and random runs so far: {used}. p in brackets: by Holm. Equivalence: "
        f"lowest less the mean of random, 90% interval, and p of the two one-sided tests at a margin of {MARGIN:g} "
        "point."
    )
    headings = ["compared at", "lowest", "random", "highest", "rank of lowest", "p, random", "lowest less highest"]
    yield table([*headings, "p, highest", "lowest less random"], lines)


def seeds_of(found: Found, runs: dict[str, list[Place]], how: str) -> list[Seed]:
    """Of every data seed whose lowest, highest and several random runs are there."""
    seeds = []
    for seed in sorted({cell["seed"] for cell in found["cells"].values()}):
        own = {arm: of(found, runs, arm, seed) for arm in ("lowest", "highest", "random")}
        if not own["lowest"] or not own["highest"] or len(own["random"]) < 2:
            continue
        every = [run for of_arm in own.values() for run in of_arm]
        skill, size = common_skill(every), common_size(every)
        lost = {arm: [one_loss(run, how, skill, size) for run in of_arm] for arm, of_arm in own.items()}
        seeds.append(Seed(lost["lowest"][0], lost["highest"][0], lost["random"]))
    return seeds


def one_loss(run: Sequence[Place], how: str, skill: float, size: float) -> float:
    if how == "equal skill":
        return loss_at(run, skill=skill)
    return loss_at(run, size=size) if how == "equal size" else run[-1].loss


def of(found: Found, runs: dict[str, list[Place]], arm: str, seed: int | None = None) -> list[list[Place]]:
    cells = found["cells"].items()
    return [runs[name] for name, cell in cells if cell["arm"] == arm and seed in (None, cell["seed"])]


def arm_line(found: Found, runs: dict[str, list[Place]], arm: str, skill: float, size: float) -> list[object]:
    own = of(found, runs, arm)
    rate = next(cell["rate"] for cell in found["cells"].values() if cell["arm"] == arm)
    at_skill = [lost for run in own if not np.isnan(lost := loss_at(run, skill=skill))]
    at_size = [lost for run in own if not np.isnan(lost := loss_at(run, size=size))]
    return [
        arm,
        f"{rate:g}",
        len(own),
        spread([run[-1].loss for run in own], "{:.2f}%"),
        spread(at_skill, "{:.2f}%") if at_skill else "-",
        spread(at_size, "{:.2f}%") if at_size else "-",
        spread([run[-1].skill for run in own], "{:.2f}"),
        spread([run[-1].size for run in own], "{:.4f}"),
    ]


def scored(found: Found, arms: Sequence[str]) -> Iterator[list[str]]:
    for arm in arms:
        own = [cell["places"]["1"] for cell in found["cells"].values() if cell["arm"] == arm]
        yield [arm, *scores(own)]


def scores(several: Sequence[Asked]) -> list[str]:
    """Of models' answers: right ones among four, then what is generated."""
    choices = ("real_definitions", "real_hypernyms", "real_capitals", "real_elements")
    answers = [float(np.mean([one[task]["acc"] for task in choices])) for one in several]
    return [
        spread(answers, "{:.3f}"),
        *(spread([first_metric(one[task]) for one in several], "{:.3f}") for task in GENERATED.values()),
    ]


def first_metric(found: dict[str, Any]) -> float:
    return next(float(value) for name, value in found.items() if name != "n")


def picture(study: dict[str, Any], found: Found) -> None:
    """Every run's places: nats gained against percent lost."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    arms = arms_of(study, found)
    colours = plt.get_cmap("tab20")
    for name, run in curves(study, found).items():
        arm = found["cells"][name]["arm"]
        colour = "0.7" if arm == "random" else colours(arms.index(arm) % 20)
        line = axes.plot([one.skill for one in run], [one.loss for one in run], "o-", color=colour, markersize=3)
        seen = [one.get_label() for one in axes.lines]
        line[0].set_label(arm if arm not in seen else f"_{name}")
    axes.set(xlabel="right calls to held-out functions, nats gained", ylabel="loss, percent of the base's nats")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(REPORTS / "real_study.png", dpi=110)
    plt.close(figure)
