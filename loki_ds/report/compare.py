"""Runs side by side, from their `report.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder


def comparison(runs: Sequence[str | Path]) -> Table:
    """A column per run, beside the base: forgetting, the new task's score, and each ability's."""
    reports = [read_report(run) for run in runs]
    table = Table(title="new task learnt, abilities kept")
    table.add_column("")
    table.add_column("base", justify="right")
    for report in reports:
        table.add_column(_name(report), justify="right", overflow="fold")
    scores = [f"{report['forgetting']:.2f}%\n({_range(report)})" for report in reports]
    table.add_row("forgetting\n(95% interval)", "-", *scores, end_section=True)
    for kind in ("new_task", "tasks"):
        for task in reports[0][kind]:
            found = [_score_of(report, kind, task["task"]) for report in reports]
            table.add_row(task["task"], f"{task['base']:.3f}", *found, end_section=kind == "new_task")
    return table


def _score_of(report: dict[str, Any], kind: str, name: str) -> str:
    return next((f"{task['implanted']:.3f}" for task in report[kind] if task["task"] == name), "-")


def _range(report: dict[str, Any]) -> str:
    low, high = report["forgetting_ci"]
    return f"{low:.1f} to {high:.1f}"


def verdict(runs: Sequence[str | Path]) -> list[str]:
    """The runs in order of forgetting, and whether each selection of rows beat random rows and the baselines. In plain words."""
    reports = sorted((read_report(run) for run in runs), key=lambda report: report["forgetting"])
    sentences = ["Least forgetting first: " + ", ".join(f"{_name(report)} {report['forgetting']:.2f}%" for report in reports) + "."]
    for report in reports:
        if report["selection"] not in (None, "random"):
            sentences += [_against(report, other) for other in reports if other["selection"] in (None, "random")]
    return sentences


def _against(report: dict[str, Any], other: dict[str, Any]) -> str:
    """In as many words, with the intervals: a selection that does not beat random rows has shown nothing."""
    ours = f"the selection by {report['selection']}"
    theirs = "random rows" if other["selection"] == "random" else f"the baseline {_name(other)}"
    figures = ", ".join(f"{_name(one)} forgot {one['forgetting']:.2f}% ({_range(one)})" for one in (report, other))
    if report["forgetting_ci"][1] < other["forgetting_ci"][0]:
        return f"{figures}: here {ours} forgot less than {theirs} (one seed each)."
    if report["forgetting_ci"][0] > other["forgetting_ci"][1]:
        return f"{figures}: here {theirs} forgot less than {ours} (one seed each)."
    return f"{figures}: the intervals overlap, so here {ours} did not beat {theirs}."


def _name(report: dict[str, Any]) -> str:
    return Path(report["run"]).name


def read_report(run: str | Path) -> dict[str, Any]:
    """A finished run's `report.json`."""
    path = RunFolder(run).report / "report.json"
    if not path.exists():
        raise Refusal(f"{path}: no report there; the run is not finished or the folder is not a run folder")
    return json.loads(path.read_text(encoding="utf-8"))
