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
    at_equal_skill,
    common_size,
    common_skill,
    loss_at,
    losses,
    mean_loss,
    places,
    rank,
    short,
)
from primary import primary

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, listed, paragraph, spread, table, where, write

Found = dict[str, dict[str, Any]]
SKILLS = (20, 22, 24, 25, 26, 27)  # nats
BAR = 5.0  # percent of one ability
GENERATED = {
    "no call where none fits": "real_irrelevance",
    "no call in a chat": "real_chat",
    "instructions": "real_instructions",
    "calls right": "real_calls",
}


def write_report(study: dict[str, Any], found: Found) -> None:
    done, asked = len(found.get("cells", {})), runs_asked(study)
    state = "All cells are done." if is_done(study, found) else f"Interim: {done} of {asked} runs are done."
    about = (
        f"`python eval/studies/real_study.py`: {listed(where('torch', 'transformers', 'trl', 'deepspeed'))}. "
        f"Registered in `eval/studies/real.md`. {state}"
    )
    parts = [paragraph(about), *stage_a(study, found)]
    if done:
        parts += stage_b(study, found)
        picture(study, found)
    write("real_study", "Does it hold? The registered study on a real model", *parts)


def runs_asked(study: dict[str, Any]) -> int:
    return sum(len(cell["arms"]) + ("random" in cell["arms"]) * (study["draws"] - 1) for cell in study["cells"])


def is_done(study: dict[str, Any], found: Found) -> bool:
    return len(found.get("cells", {})) == runs_asked(study)


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
    yield "## Rows set to zero"
    yield paragraph(
        "By how much the negative log-likelihood of the right answers (of code: bits per byte) rises, in percent; in "
        f"the mean a fall counts 0. Random: the mean of {study['suppression']['draws']} draws (range). Rank: of the "
        "mean among the draws and the selection itself, 1 loses least."
    )
    lines = []
    for quota in study["suppression"]["quotas"]:
        asked = {name: one for name, one in found.items() if name.endswith(f", {quota}%")}
        means = {name: mean_loss(found["base"], one, tasks) for name, one in asked.items()}
        of = {name: losses(found["base"], one, tasks) for name, one in asked.items()}
        drawn = [name for name in of if name.startswith("random")]
        of_drawn = [means[name] for name in drawn]
        for selection in study["suppression"]["selections"]:
            name = f"{selection}, {quota}%"
            if name in of:
                place = f"{rank(means[name], of_drawn)} of {len(drawn) + 1}"
                each = [f"{of[name][task]:+.1f}%" for task in tasks]
                lines.append([selection, f"{quota}%", f"{means[name]:.2f}%", place, *each])
        if drawn:
            each = [spread([of[name][task] for name in drawn], "{:+.1f}%") for task in tasks]
            mean = f"{spread(of_drawn, '{:.2f}%')}, median {np.median(of_drawn):.2f}%"
            lines.append(["random", f"{quota}%", mean, "", *each])
    yield table(["rows", "share", "mean", "rank", *map(short, tasks)], lines)


# --- stage B --------------------------------------------------------------------------------------


def stage_b(study: dict[str, Any], found: Found) -> Iterator[str]:
    tasks = abilities(study)
    base, runs = found["base"]["first"], curves(study, found)
    arms = arms_of(study, found)
    skill, size = common_skill(list(runs.values())), common_size(list(runs.values()))
    yield "## Primary: lowest against random and highest"
    yield from primary(found["cells"], runs, base, tasks, study["skill"], is_done(study, found))
    yield "## Every arm"
    yield paragraph(
        "Mean over runs (range). Loss: percent of the base's negative log-likelihood, rises only, mean over six "
        f"abilities. Equal skill: {skill:.2f} nats, nine tenths of the smallest of all runs; equal size: {size:.5f}, "
        f"likewise; a run's own, where it is beyond its places, is left out. {negative_control(found)}"
    )
    yield table(
        ["arm", "rate", "runs", "loss, whole", "loss at equal skill", "loss at equal size", "skill, nats", "size"],
        [arm_line(found, runs, arm, skill, size) for arm in arms],
    )
    yield "### Within a data seed"
    yield paragraph(
        "Seeds differ by more than arms do, so here a run stands beside its own seed's draws. At equal skill, nine "
        "tenths of the smallest of the seed's runs: its loss less the mean of random rows, in points, and its rank "
        "among them and itself."
    )
    yield table(["arm", *(f"data seed {seed}" for seed in seeds_in(found))], within_seeds(found, runs, arms))
    yield "### At other skills"
    yield paragraph(
        "Loss of data seed 0, on the straight lines between a run's places; the mean of random rows (range)."
    )
    yield table(["arm", *(f"{skill} nats" for skill in SKILLS)], at_skills(found, runs, arms))
    yield "## By ability, the whole change"
    yield paragraph(
        "Covered by the protected set: mmlu. Rises of the negative log-likelihood, falls too, in percent. "
        + told_apart(study, found)
    )
    by_ability = []
    for arm in arms:
        each = [losses(base, cell["places"]["1"], tasks) for cell in found["cells"].values() if cell["arm"] == arm]
        by_ability.append([arm, *(spread([lost[task] for lost in each], "{:+.1f}%") for task in tasks)])
    yield table(["arm", *map(short, tasks)], by_ability)
    yield "## Right answers, and what is generated"
    yield paragraph("At the whole change: shares of documents. Answers: right ones among four, mean of four tasks.")
    yield table(["arm", "answers", *GENERATED], [["base", *scores([base])], *scored(found, arms)])


def negative_control(found: Found) -> str:
    """The base, asked twice at first and once after the last run."""
    first, again, last = (found["base"].get(when) for when in ("first", "again", "last"))
    assert first is not None, "the base is asked with the first run"
    said = f"The base asked twice gives {'the same numbers' if first == again else 'OTHER NUMBERS'}"
    if last is None:
        return f"{said}."
    apart = max(
        abs(value - last[task][name]) / max(abs(value), 1e-9)
        for task, metrics in first.items()
        for name, value in metrics.items()
    )
    return f"{said}; asked again after the last run, they differ by {apart:.1e} of themselves at most."


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
        f"{short(task)}, {verdict}"
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


def seeds_in(found: Found) -> list[int]:
    return sorted({cell["seed"] for cell in found["cells"].values()})


def within_seeds(found: Found, runs: dict[str, list[Place]], arms: Sequence[str]) -> list[list[str]]:
    lines: dict[str, list[str]] = {arm: [arm] for arm in arms if arm != "random"}
    for seed in seeds_in(found):
        names = [name for name, cell in found["cells"].items() if cell["seed"] == seed]
        lost = dict(zip(names, at_equal_skill([runs[name] for name in names]), strict=True))
        drawn = [lost[name] for name in names if found["cells"][name]["arm"] == "random"]
        for arm, line in lines.items():
            own = [lost[name] for name in names if found["cells"][name]["arm"] == arm]
            there = own and drawn
            line.append(f"{own[0] - np.mean(drawn):+.2f}, {rank(own[0], drawn)} of {len(drawn) + 1}" if there else "")
    return list(lines.values())


def at_skills(found: Found, runs: dict[str, list[Place]], arms: Sequence[str]) -> Iterator[list[str]]:
    for arm in arms:
        own = of(found, runs, arm, seed=0)
        at = [[lost for run in own if not np.isnan(lost := loss_at(run, skill=skill))] for skill in SKILLS]
        yield [arm, *(spread(reached, "{:.2f}%") if len(reached) == len(own) > 0 else "-" for reached in at)]


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
