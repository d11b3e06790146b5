"""One run's report from its paired tasks.

`report.json` is the source; Markdown and HTML are rendered from it.
"""

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loki_ds.disk.files import write_json, written_whole
from loki_ds.recipe.sections import RetentionSection, TaskGroup
from loki_ds.refusal import short, short_end
from loki_ds.report.card import came_by, card_data
from loki_ds.report.decisions import decisions_of
from loki_ds.report.schema import Asked, Document, Facts, Flip, Report, TaskLine
from loki_ds.report.verdict import headline, learned_of, outcome_of, points, sentences
from loki_ds.retention.forgetting import losses_only, relative_loss, signed
from loki_ds.retention.mean_change import LEVEL
from loki_ds.retention.pairing import Pair, PairedTask, main_metric_only
from loki_ds.retention.statistics import gain_of, suite_changes

MOST_FLIPS = 50  # documents of a task that changed and that the report shows
MOST_SAID = 300  # characters of a document in Markdown
MOST_ANSWERS = 5  # documents of the new task that it shows, changed or not


def build_report(
    run: str,
    paired: Sequence[PairedTask],
    section: RetentionSection,
    facts: Facts,
    opposites: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """The report of one run.

    paired: every task by every metric, the main one first; abilities count by that one; opposites:
    of tasks that are one side of a decision, the other.
    """
    new = set(section.new_task.tasks) if section.new_task else set()
    main = main_metric_only(paired)
    abilities = [task for task in main if task.task not in new]
    likelihoods = [task for task in paired if task.metric["unit"] != "score" and task not in main]
    learned = [task for task in paired if task.task in new and task not in likelihoods]
    lines = _lines(abilities, section)
    losses = {
        line["task"]: relative_loss(task) for task, line in zip(abilities, lines, strict=True) if line["base"] > 0
    }
    both, only = (signed([*losses.values()]), losses_only([*losses.values()])) if losses else (None, None)
    for line in lines:
        line["lost_percent"] = 100 * losses[line["task"]].value if line["task"] in losses else None
    taught = _learned(learned, section)
    decisions = decisions_of([*lines, *taught], opposites, section.margin)
    return {
        "run": run,
        "outcome": outcome_of(lines, decisions),
        "learned": learned_of(taught, decisions),
        "headline": headline(lines, decisions, section.margin),
        "verdict": sentences(both, only, lines, taught, section.margin),
        "forgetting": both.percent if both else None,
        "forgetting_ci": both.ci if both else None,
        "losses_only": only.percent if only else None,
        "losses_only_ci": only.ci if only else None,
        "margin": section.margin,
        "tasks": lines,
        "likelihoods": _lines(likelihoods, section),
        "new_task": taught,
        "decisions": decisions,
        "flips": [flip for task in main for flip in _flips(task)],
        "answers": [answer for task in main if task.task in new for answer in _answers(task)],
        **facts,
    }


def _lines(tasks: Sequence[PairedTask], section: RetentionSection) -> list[TaskLine]:
    group_of = {name: group for group in section.groups for name in group.tasks}
    return [
        {**change, "lost_percent": None, "asked": _asked(task, group_of[task.task])}
        for task, change in zip(tasks, suite_changes(tasks, section.margin), strict=True)
    ]


def _asked(task: PairedTask, group: TaskGroup) -> Asked:
    return {
        "shots": _range(task.shots.values()),
        "limit": group.limit,
        "chat_template": group.apply_chat_template,
        "filter": task.metric["filter"],
        "version": _version(task.versions.values()),
    }


def _range(values: Any) -> str:
    """The distinct values of a group's subtasks."""
    return ", ".join(sorted({str(value) for value in values}))


def _version(versions: Any) -> str:
    """As `_range`; lm-eval calls the version of a task that states none by the word of its file."""
    return _range("-" if version == "Yaml" else version for version in versions)


def _learned(tasks: Sequence[PairedTask], section: RetentionSection) -> list[TaskLine]:
    """A new task is not kept but learned: a gain on its documents that chance does not explain,
    whatever few subtasks would say of others.
    """
    alone = [replace(task, pairs=[replace(pair, cluster=None) for pair in task.pairs]) for task in tasks]
    chances = [change["p_holm"] for change in suite_changes(alone, section.margin)]
    return [
        {**line, "verdict": "not shown" if p >= LEVEL else "learned" if gain_of(line) > 0 else "lost"}
        for line, p in zip(_lines(tasks, section), chances, strict=True)
    ]


def _flips(task: PairedTask) -> list[Flip]:
    """The documents whose score fell or rose, losses first, at most `MOST_FLIPS` a task."""
    better = 1 if task.metric["higher_is_better"] else -1
    changed = sorted(
        (pair for pair in task.pairs if pair.base != pair.implanted),
        key=lambda pair: (better * (pair.implanted - pair.base), pair.doc_hash),
    )
    return [
        {**_document(task, pair), "lost": better * (pair.implanted - pair.base) < 0} for pair in changed[:MOST_FLIPS]
    ]


def _answers(task: PairedTask) -> list[Document]:
    """Some documents of a task, from its first to its last, whatever came of them."""
    apart = max(1, len(task.pairs) // MOST_ANSWERS)
    return [_document(task, pair) for pair in task.pairs[::apart][:MOST_ANSWERS]]


def _document(task: PairedTask, pair: Pair) -> Document:
    return {
        "task": task.task,
        "prompt": pair.prompt,
        "gold": pair.gold,
        "base": pair.base_answer,
        "implanted": pair.implanted_answer,
    }


def settings_in_words(
    section: RetentionSection, dtype: str, libraries: Mapping[str, str], cut: Sequence[str]
) -> dict[str, str]:
    """How both models were evaluated.

    cut: a line for each task of which prompts are longer than the model was made for.
    """
    return {
        "dtype": dtype,
        "seed of limits and shots": str(section.seed),
        **({"chat template's arguments": in_a_line(args)} if (args := section.chat_template_args) else {}),
        **({"documents": "in random order, until decided"} if section.stop == "decided" else {}),
        **({"prompts that were cut": "; ".join(cut)} if cut else {}),
        "versions": in_a_line(libraries),
    }


def in_a_line(settings: Mapping[str, Any]) -> str:
    """Settings as people write them; what is not set is left out."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, [], {}))


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


def write_model_card(report: Report, model: Path, base: Path, base_name: str) -> None:
    """`README.md` in the model folder: where the model comes from, what may have changed, and what
    was kept; with the metadata that the hub reads.

    base: the base's folder; base_name: as the recipe names it.
    """
    data = card_data(report, base, base_name)
    facts = {"metadata": data.to_yaml(), "base": base_name, "came_by": came_by(report)}
    card = pages().get_template("card.md.j2").render(report=report, **facts)
    with written_whole(model / "README.md") as aside:
        aside.write_text(card, encoding="utf-8")


def pages() -> Environment:
    """The templates beside this module; HTML is escaped."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: str(name).endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["points"] = points
    made.filters["asked"] = lambda prompt: repr(short_end(prompt, MOST_SAID))  # a question stands last
    made.filters["said"] = lambda text: repr(short(text, MOST_SAID))
    return made
