"""Runs side by side, from their `report.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder


def comparison(runs: Sequence[str | Path]) -> Table:
    """A table with a line per run: new-task score, forgetting, and each ability's score."""
    reports = [read_report(run) for run in runs]
    table = Table(title="new task learnt, abilities kept (scores after; base in brackets)")
    table.add_column("run", overflow="fold")
    table.add_column("new task", justify="right")
    table.add_column("forgetting", justify="right")
    for task in reports[0]["tasks"]:
        table.add_column(task["task"].removeprefix("tiny_"), justify="right")
    for run, report in zip(runs, reports, strict=True):
        new = ", ".join(f"{task['implanted']:.3f}" for task in report["new_task"])
        kept = [f"{task['implanted']:.3f} ({task['base']:.3f})" for task in report["tasks"]]
        table.add_row(str(run), new, f"{report['forgetting']:.2f}%", *kept)
    return table


def verdict(runs: Sequence[str | Path]) -> list[str]:
    """The runs in order of forgetting, and, where one is a random selection, whether the others beat it. In plain words."""
    reports = sorted((read_report(run) for run in runs), key=lambda report: report["forgetting"])
    sentences = ["Least forgetting first: " + ", ".join(f"{_name(report)} {report['forgetting']:.2f}%" for report in reports) + "."]
    for report in reports:
        if report["selection"] not in (None, "random"):
            sentences += [_against_random(report, other) for other in reports if other["selection"] == "random"]
    return sentences


def _against_random(report: dict[str, Any], random: dict[str, Any]) -> str:
    ours, theirs = report["forgetting"], random["forgetting"]
    figures = f"{_name(report)} forgot {ours:.2f}%, {_name(random)} {theirs:.2f}%"
    if ours < theirs:
        return f"{figures}: here the selection by {report['selection']} forgot less than random rows (one seed each)."
    return f"{figures}: here the selection by {report['selection']} did not beat random rows, so it has shown nothing."


def _name(report: dict[str, Any]) -> str:
    return Path(report["run"]).name


def read_report(run: str | Path) -> dict[str, Any]:
    """A finished run's `report.json`."""
    path = RunFolder(run).report / "report.json"
    if not path.exists():
        raise Refusal(f"{path}: no report there; the run is not finished or the folder is not a run folder")
    return json.loads(path.read_text(encoding="utf-8"))
