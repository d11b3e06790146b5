"""What the study on the real model found: `eval/reports/real.md` with its two pictures."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from loki_ds.attribution.kept import KeptScores

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, ROOT, listed, paragraph, spread, table, where, write

Reports = dict[str, list[dict[str, Any]]]  # of a method's seeds


def write_report(study: dict[str, Any], rates: dict[str, Any], reports: Reports, attribution: Path) -> None:
    drawn = ROOT / attribution / "attribution"
    shutil.copyfile(drawn / "heat_map.png", REPORTS / "real_heat_map.png")
    trade_off(reports, REPORTS / "real.png")
    one = next(iter(reports.values()))[0]
    manifest = KeptScores(drawn).read()
    overlap = manifest["overlap"][-1]
    write(
        "real",
        "SmolLM2-135M-Instruct taught BFCL's calls",
        paragraph(
            f"`python eval/studies/real.py`: {listed(where('torch', 'transformers', 'trl', 'deepspeed', 'lm-eval'))}. "
            f"Base `{one['base_digest'][:16]}`; {listed(one['settings'])}. "
            f"{study['about']} The rule, the split and the tasks were committed before the first result."
        ),
        "![skill against losses](real.png)",
        "## Methods",
        paragraph(
            "Mean over seeds (range). Losses alone: percent of the base's scores, gains not counted. Right answers: by "
            "how much their negative log-likelihood rises, in percent, mean over tasks; it moves long before scores do."
        ),
        table(HEADINGS, [_method(study, name, rates[name]["chosen"], found) for name, found in reports.items()]),
        "## Scores",
        by_task(study, reports, "tasks"),
        "## Negative log-likelihood of the right answers",
        by_task(study, reports, "likelihoods"),
        "## Rates",
        table(
            ["method", "rate", "loss on the tuning chats", "chosen"],
            [
                (name, f"{tried['rate']:g}", f"{tried['loss']:.3f}", "yes" if tried["rate"] == own["chosen"] else "")
                for name, own in rates.items()
                for tried in sorted(own.get("tried", []), key=lambda one: one["rate"])
            ],
        ),
        "## Attribution",
        paragraph(
            f"{manifest['prompts']} prompts, {manifest['inputs']['steps']} steps. Rows chosen from two halves of them "
            f"have {100 * overlap['overlap']:.1f}% in common (quota 30; by chance 30%)."
        ),
        "![KVA over 30 layers](real_heat_map.png)",
    )


HEADINGS = [
    "method",
    "rate",
    "calls right",
    "losses alone",
    "forgetting",
    "right answers: covered",
    "right answers: held out",
    "no call where none should be",
]


def _method(study: dict[str, Any], name: str, rate: float, found: list[dict[str, Any]]) -> list[str]:
    def rises(group: str) -> str:
        return spread([_rise(report, study[group]) for report in found], "{:+.1f}%")

    irrelevance = [_of(report["tasks"], "real_irrelevance")["implanted"] for report in found]
    return [
        name,
        f"{rate:g}",
        spread([report["new_task"][0]["implanted"] for report in found], "{:.3f}"),
        spread([report["losses_only"] for report in found], "{:.1f}%"),
        spread([report["forgetting"] for report in found], "{:.1f}%"),
        rises("covered"),
        rises("held out"),
        spread(irrelevance, "{:.3f}"),
    ]


def _rise(report: dict[str, Any], tasks: Iterable[str]) -> float:
    """Mean rise of the negative log-likelihood, percent; a text's stands among the scores, as bits
    per byte.
    """
    lines = [_of([*report["likelihoods"], *report["tasks"]], task) for task in tasks]
    return 100 * float(np.mean([line["implanted"] / line["base"] - 1 for line in lines]))


def _of(lines: list[dict[str, Any]], task: str) -> dict[str, Any]:
    return next(line for line in lines if line["task"] == task)


def by_task(study: dict[str, Any], reports: Reports, kind: str) -> str:
    """One row a task, covered abilities before those held out."""
    names = [task for group in ("covered", "held out", "asked first") for task in study[group]]
    one = next(iter(reports.values()))[0][kind]
    rows = []
    for task in [name for name in names if any(line["task"] == name for line in one)]:
        group = next(group for group in ("covered", "held out", "asked first") if task in study[group])
        of_methods = [
            spread([_of(report[kind], task)["implanted"] for report in found], "{:.3f}") for found in reports.values()
        ]
        line = _of(one, task)
        rows.append([task, f"{group}, {line['unit']}", line["n"], f"{line['base']:.3f}", *of_methods])
    return table(["task", "", "documents", "base", *reports], rows, words=2)


def trade_off(reports: Reports, path: Path) -> None:
    """Losses alone with their 95% intervals against the new task's score: a point a seed."""
    figure, axes = plt.subplots(figsize=(7.5, 5.0), layout="constrained")
    for place, (name, found) in enumerate(reports.items()):
        skill = [100 * report["new_task"][0]["implanted"] for report in found]
        lost = [report["losses_only"] for report in found]
        ends = np.array([report["losses_only_ci"] for report in found]).T
        around = np.abs(ends - np.array(lost))
        axes.errorbar(skill, lost, yerr=around, fmt="osD^v<>pPX"[place], capsize=3, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="held-out calls right, percent", ylabel="losses alone, percent of the base's scores")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
