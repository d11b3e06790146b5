"""One run's report from its paired tasks. `report.json` is the source; Markdown and HTML are rendered from it."""

import base64
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loki_ds.refusal import Refusal
from loki_ds.retention.forgetting import forgetting
from loki_ds.retention.pairing import PairedTask
from loki_ds.retention.statistics import TaskChange, task_change
from loki_ds.run_folder import write_json, written_whole


def build_report(run: str, abilities: list[PairedTask], new_task: list[PairedTask], facts: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON. `facts` says where the figures come from: recipe, verification, versions."""
    kept, new = [task_change(task) for task in abilities], [task_change(task) for task in new_task]
    scored = [task for task in kept if task.base > 0]  # the score is relative to the base's, so a base at 0 has none
    if not scored:
        raise Refusal("retention.abilities: the base scores 0 on every task, so there is nothing it could forget")
    score = forgetting([task.base for task in scored], [task.implanted for task in scored])
    return {
        "run": run,
        "verdict": _verdict(score, kept, new),
        "forgetting": score,
        "tasks": [task.as_json() for task in kept],
        "new_task": [task.as_json() for task in new],
        **facts,
    }


def _verdict(score: float, kept: list[TaskChange], new: list[TaskChange]) -> str:
    lost = [task.task for task in kept if task.ci[1] < 0]
    unscored = [task.task for task in kept if task.base <= 0]
    left_out = f" Left out, because the base scores 0: {', '.join(unscored)}." if unscored else ""
    learnt = "; ".join(f"{task.task} went from {task.base:.3f} to {task.implanted:.3f}" for task in new)
    losses = f"a loss is shown (95% interval below 0) in {', '.join(lost)}" if lost else "no task's 95% interval lies below 0"
    return (
        f"Forgetting {score:.2f}% over {len(kept) - len(unscored)} tasks; {losses}."
        + left_out
        + (f" New task: {learnt}." if learnt else "")
    )


def write_report(report: dict[str, Any], folder: Path, pictures: dict[str, Path] | None = None) -> None:
    """`report.json`, `report.md` and `report.html`, put in place together.

    pictures: caption and PNG file; the page holds them itself, Markdown points to copies beside it. Files that a run did not draw (a
    baseline attributes nothing) are left out.
    """
    drawn = {caption: file for caption, file in (pictures or {}).items() if file.exists()}
    pages = _pages()
    with written_whole(folder) as aside:
        aside.mkdir(parents=True)
        write_json(aside / "report.json", report)
        embedded = []
        for caption, file in drawn.items():
            shutil.copyfile(file, aside / file.name)
            embedded.append({"caption": caption, "file": file.name, "base64": base64.b64encode(file.read_bytes()).decode()})
        for ending in ("md", "html"):
            page = pages.get_template(f"page.{ending}.j2").render(report=report, pictures=embedded)
            (aside / f"report.{ending}").write_text(page, encoding="utf-8")


def write_model_card(report: dict[str, Any], model: Path) -> None:
    """`README.md` in the model folder: where the model comes from, what may have changed, and what was kept."""
    card = _pages().get_template("card.md.j2").render(report=report)
    with written_whole(model / "README.md") as aside:
        aside.write_text(card, encoding="utf-8")


def _pages() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name == "page.html.j2",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
