"""Runs side by side: as a table for the terminal and a page, with the verdict in plain words."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from loki_ds.disk.files import write_json, written_whole
from loki_ds.disk.run_folder import RunFolder
from loki_ds.refusal import Refusal
from loki_ds.report.build import pages
from loki_ds.report.pictures import Point, trade_off
from loki_ds.report.schema import Asked, Comparison, DecisionRow, Report, RunLine, TaskLine, TaskRow

LOST = "losses alone"


def compare_runs(runs: Sequence[str | Path]) -> Comparison:
    """Runs side by side: what each is, its scores on all that any was asked, and a verdict in
    words.
    """
    names = _names([Path(run).resolve().parts for run in runs])
    reports: list[Report] = [{**read_report(run), "run": name} for run, name in zip(runs, names, strict=True)]
    return {
        "sentences": _verdict(reports),
        "runs": [_summary(report) for report in reports],
        "new_task": _rows([report["new_task"] for report in reports]),
        "tasks": _rows([report["tasks"] for report in reports]),
        "decisions": _decisions(reports),
    }


def _names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Of each run's path the shortest end that no other has, or the whole."""
    ends = [["/".join(path[-count:]) for count in range(1, len(path) + 1)] for path in paths]
    taken = Counter(end for of_path in ends for end in of_path)
    return [next((end for end in of_path if taken[end] == 1), of_path[-1]) for of_path in ends]


def _summary(report: Report) -> RunLine:
    """What a run is and what came of it, in a line."""
    return {
        "name": report["run"],
        "mode": report["mode"],
        "selection": report["selection"],
        "outcome": report["outcome"],
        "learned": report["learned"],
        "losses_only": report["losses_only"],
        "losses_only_ci": report["losses_only_ci"],
        "forgetting": report["forgetting"],
        "forgetting_ci": report["forgetting_ci"],
        "skill": _skill(report),
        "identical_outside_rows": (report["verification"] or {}).get("identical_outside_rows"),
        "change": (report["verification"] or {}).get("change"),
        "seconds": report["costs"].get("implant", {}).get("seconds"),
    }


def _rows(lines: Sequence[Sequence[TaskLine]]) -> list[TaskRow]:
    """Each task of any run in all runs; None where a run was not asked for it."""
    by_task = [{(line["task"], line["metric"]): line for line in of_run} for of_run in lines]
    first = {key: line for known in reversed(by_task) for key, line in known.items()}
    order = dict.fromkeys(key for known in by_task for key in known)
    return [
        {"task": key[0], "metric": key[1], "base": first[key]["base"], "cells": [known.get(key) for known in by_task]}
        for key in order
    ]


def _decisions(reports: Sequence[Report]) -> list[DecisionRow]:
    """Each decision of the first run in all runs."""
    by_sides = [{(each["acts"], each["refrains"]): each for each in report["decisions"]} for report in reports]
    return [
        {
            "acts": first["acts"],
            "refrains": first["refrains"],
            "base": first["base"],
            "cells": [known.get(sides) for known in by_sides],
        }
        for sides, first in by_sides[0].items()
    ]


def write_comparison(compared: Comparison, folder: Path) -> None:
    """Write `compare.json`, `compare.html` (self-contained) and the trade-off picture."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", compared)
    points, picture = _points(compared["runs"]), None
    if points:
        trade_off(points, LOST, folder / "trade_off.png")
        picture = base64.b64encode((folder / "trade_off.png").read_bytes()).decode()
    page = pages().get_template("compare.html.j2").render(compared=compared, picture=picture)
    with written_whole(folder / "compare.html") as aside:
        aside.write_text(page, encoding="utf-8")


def draw_trade_off(report: Report, beside: Sequence[Path], path: Path) -> None:
    """Draw this run among those of `beside` that taught the same base the same task, if any."""
    reports = [report, *(read_report(run) for run in beside)]
    alike = [
        each for each in reports if each["base_digest"] == report["base_digest"] and _taught(each) == _taught(report)
    ]
    if len(alike) > 1 and report["new_task"]:
        trade_off(_points([_summary(each) for each in alike]), LOST, path)


def _skill(report: Report) -> float | None:
    """The new task's score, where more is better."""
    line = report["new_task"][0] if report["new_task"] else None
    return line["implanted"] if line and line["higher_is_better"] else None


def _taught(report: Report) -> list[tuple[str, int]]:
    return [(task["task"], task["n"]) for task in report["new_task"]]


def _points(runs: Sequence[RunLine]) -> dict[str, list[Point]]:
    """What `trade_off` draws: runs with a new task, by mode and selection."""
    points: dict[str, list[Point]] = {}
    for run in runs:
        if run["skill"] is not None and run["losses_only"] is not None:
            name = " ".join(filter(None, (run["mode"], run["selection"])))
            points.setdefault(name, []).append({"skill": run["skill"], "lost": run["losses_only"]})
    return points


def comparison(compared: Comparison) -> Table:
    """What `compare` found for the terminal, a column per run beside the base: forgetting, the new
    task's score, and each ability's.
    """
    table = Table(title="new task and abilities")
    table.add_column("")
    table.add_column("base", justify="right")
    for run in compared["runs"]:
        table.add_column(run["name"], justify="right", overflow="fold")
    table.add_row("verdict", "-", *(run["outcome"] for run in compared["runs"]))
    if any(run["learned"] for run in compared["runs"]):
        table.add_row("new task", "-", *(run["learned"] or "-" for run in compared["runs"]))
    only = [_percent(run["losses_only"], run["losses_only_ci"]) for run in compared["runs"]]
    table.add_row("losses alone\n(95% interval)", "-", *only)
    scores = [_percent(run["forgetting"], run["forgetting_ci"]) for run in compared["runs"]]
    table.add_row("forgetting\n(95% interval)", "-", *scores)
    sizes = [f"{100 * run['change']:.3g}%" if run["change"] is not None else "-" for run in compared["runs"]]
    table.add_row("size of the change", "-", *sizes, end_section=True)
    for kind in ("new_task", "tasks"):
        for row in compared[kind]:
            cells = [f"{cell['implanted']:.3f}" if cell else "-" for cell in row["cells"]]
            table.add_row(row["task"], f"{row['base']:.3f}", *cells, end_section=kind == "new_task")
    for decision in compared["decisions"]:
        cells = [f"{cell['implanted']:.3f}" if cell else "-" for cell in decision["cells"]]
        table.add_row(
            f"balanced mean of {decision['acts']} and {decision['refrains']}", f"{decision['base']:.3f}", *cells
        )
    return table


def _percent(value: float | None, ci: tuple[float, float] | None) -> str:
    return "-" if value is None or ci is None else f"{value:.2f}%\n({_range(ci)})"


def _range(ci: tuple[float, float]) -> str:
    low, high = ci
    return f"{low:.1f} to {high:.1f}"


def _verdict(reports: Sequence[Report]) -> list[str]:
    """The runs in order of their losses alone, for which no gain elsewhere pays, and whether each
    selection of rows beat random rows and the baselines. In plain words. What learned nothing, or
    had nothing to lose, stands apart: to lose nothing is then no merit.
    """
    reasons = {report["run"]: _not_ranked(report, reports[0]) for report in reports}
    apart = [report for report in reports if reasons[report["run"]]]
    reports = sorted(
        (report for report in reports if report not in apart), key=lambda report: report["losses_only"] or 0
    )
    ranked = ", ".join(f"{report['run']} {report['losses_only']:.2f}%" for report in reports)
    sentences = [f"Least lost first: {ranked}."] if reports else []
    sentences += [f"{report['run']} is not ranked: {reasons[report['run']]}." for report in apart]
    for report in reports:
        if report["selection"] not in (None, "random"):
            sentences += [_against(report, other) for other in reports if other["selection"] in (None, "random")]
    return sentences


def _not_ranked(report: Report, first: Report) -> str:
    """Why a run's losses cannot be set beside the first run's; empty where they can."""
    if report["losses_only"] is None:
        return "the base has no scores to lose"
    if report["base_digest"] != first["base_digest"]:
        return f"its base is not that of {first['run']}"
    if _abilities(report) != _abilities(first):
        return f"it was not asked the documents that {first['run']} was"
    return "it has not learned the new task" if report["learned"] == "not learned" else ""


def _abilities(report: Report) -> list[tuple[str, int, Asked]]:
    return sorted((task["task"], task["documents"], task["asked"]) for task in report["tasks"])


def _against(report: Report, other: Report) -> str:
    """One run against another in a sentence, with the intervals. A selection that does not beat
    random rows has shown nothing; a baseline that trains otherwise says nothing of the selection.
    """
    of_selection = other["selection"] == "random"
    ours = f"the selection by {report['selection']}" if of_selection else report["run"]
    theirs = "random rows" if of_selection else other["run"]
    figures = ", ".join(
        f"{each['run']} lost {each['losses_only']:.2f}% ({_range(_interval(each))})" for each in (report, other)
    )
    (low, high), (their_low, their_high) = _interval(report), _interval(other)
    if high < their_low:
        return f"{figures}: here {ours} lost less than {theirs} (one seed each)."
    if low > their_high:
        return f"{figures}: here {theirs} lost less than {ours} (one seed each)."
    if of_selection:
        return f"{figures}: the intervals overlap, so here {ours} did not beat {theirs}."
    return f"{figures}: the intervals overlap, so neither is shown to lose less."


def _interval(report: Report) -> tuple[float, float]:
    """That of the losses alone of a report that is ranked."""
    interval = report["losses_only_ci"]
    assert interval is not None
    return interval


def is_read(run: Path) -> bool:
    """Whether a run's report is one of this version's."""
    try:
        read_report(run)
    except Refusal:
        return False
    return True


def read_report(run: str | Path) -> Report:
    """A finished run's `report.json`."""
    path = RunFolder(run).report / "report.json"
    if not path.exists():
        raise Refusal(f"{path}: no report there; the run is not finished or the folder is not a run folder")
    report = json.loads(path.read_text(encoding="utf-8"))
    if not report.keys() >= Report.__annotations__.keys():
        raise Refusal(
            f"{path}: written by an older loki-ds; delete {path.parent} and {run}/retention, and run it again"
        )
    return report
