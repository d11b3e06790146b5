"""One run's report from its paired tasks.

`report.json` is the source; Markdown and HTML are rendered from it.
"""

import base64
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loki_ds.refusal import Refusal
from loki_ds.report.schema import Facts, Flip, Report, TaskLine
from loki_ds.retention.forgetting import forgetting
from loki_ds.retention.pairing import PairedTask
from loki_ds.retention.statistics import TaskChange, forgetting_interval, suite_changes
from loki_ds.run_folder import write_json, written_whole

MOST_FLIPS = 50  # documents of a task that the report shows


def build_report(
    run: str, abilities: list[PairedTask], new_task: list[PairedTask], facts: Facts, margin: float = 0.01
) -> Report:
    """The report of one run."""
    kept, new = suite_changes(abilities, margin), suite_changes(new_task, margin)
    scored = [
        task for task, change in zip(abilities, kept, strict=True) if change.base > 0
    ]  # the score is relative to the base's
    if not scored:
        raise Refusal("retention.abilities: the base scores 0 on every task, so there is nothing it could forget")
    with_score = [change for change in kept if change.base > 0]
    score = forgetting([task.base for task in with_score], [task.implanted for task in with_score])
    interval = forgetting_interval(scored)
    return {
        "run": run,
        "verdict": _verdict(score, interval, margin, kept, new),
        "forgetting": score,
        "forgetting_ci": interval,
        "margin": margin,
        "tasks": [_line(task) for task in kept],
        "new_task": [_line(task) for task in new],
        "flips": [flip for task in (*abilities, *new_task) for flip in _flips(task)],
        **facts,
    }


def _line(task: TaskChange) -> TaskLine:
    line: Any = asdict(task)
    return line


def _flips(task: PairedTask) -> list[Flip]:
    """The documents whose score fell or rose, losses first, at most `MOST_FLIPS` a task."""
    changed = sorted(
        (pair for pair in task.pairs if pair.base != pair.implanted),
        key=lambda pair: (pair.implanted - pair.base, pair.doc_hash),
    )
    return [
        {
            "task": task.task,
            "lost": pair.implanted < pair.base,
            "prompt": pair.prompt,
            "base": pair.base_answer,
            "implanted": pair.implanted_answer,
        }
        for pair in changed[:MOST_FLIPS]
    ]


def _verdict(
    score: float, interval: tuple[float, float], margin: float, kept: list[TaskChange], new: list[TaskChange]
) -> str:
    by_verdict = {
        verdict: [task.task for task in kept if task.verdict == verdict] for verdict in ("kept", "lost", "not shown")
    }
    parts = {
        "kept": f"kept within {100 * margin:g} points",
        "lost": "lost (below zero after Holm's correction)",
        "not shown": "neither shown, too few documents for so small a change",
    }
    said = "; ".join(f"{parts[verdict]}: {', '.join(tasks)}" for verdict, tasks in by_verdict.items() if tasks)
    unscored = [task.task for task in kept if task.base <= 0]
    left_out = f" Left out of the score, because the base scores 0: {', '.join(unscored)}." if unscored else ""
    learnt = "; ".join(f"{task.task} went from {task.base:.3f} to {task.implanted:.3f}" for task in new)
    return (
        f"Forgetting {score:.2f}% (95% interval {interval[0]:.2f} to {interval[1]:.2f}) over "
        f"{len(kept) - len(unscored)} tasks; {said}." + left_out + (f" New task: {learnt}." if learnt else "")
    )


def write_report(report: Report, folder: Path, pictures: dict[str, Path] | None = None) -> None:
    """`report.json`, `report.md` and `report.html`, put in place together.

    pictures: caption and PNG file; the page holds them itself, Markdown points to copies beside it.
    Files that a run did not draw (a baseline attributes nothing) are left out.
    """
    drawn = {caption: file for caption, file in (pictures or {}).items() if file.exists()}
    templates = pages()
    with written_whole(folder) as aside:
        aside.mkdir(parents=True)
        write_json(aside / "report.json", report)
        embedded = []
        for caption, file in drawn.items():
            shutil.copyfile(file, aside / file.name)
            embedded.append(
                {"caption": caption, "file": file.name, "base64": base64.b64encode(file.read_bytes()).decode()}
            )
        for ending in ("md", "html"):
            page = templates.get_template(f"page.{ending}.j2").render(report=report, pictures=embedded)
            (aside / f"report.{ending}").write_text(page, encoding="utf-8")


def write_model_card(report: Report, model: Path) -> None:
    """`README.md` in the model folder: where the model comes from, what may have changed, and what
    was kept.
    """
    card = pages().get_template("card.md.j2").render(report=report)
    with written_whole(model / "README.md") as aside:
        aside.write_text(card, encoding="utf-8")


def pages() -> Environment:
    """The templates beside this module; HTML is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: str(name).endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
