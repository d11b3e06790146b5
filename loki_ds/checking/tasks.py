"""The retention tasks in words, and whether they can show at all that something was kept."""

from collections.abc import Sequence

from loki_ds.checking.findings import Findings
from loki_ds.recipe import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.retention.statistics import FEWEST, least_margin, least_margin_of_group
from loki_ds.tasks import TaskFound


def in_words(section: RetentionSection, tasks: Sequence[TaskFound], halved: bool = False) -> Findings:
    """A line for each task that the section asks for, in its order.

    halved: whether one half of the documents chooses a scale, and the other is reported.

    Raises:
        Refusal: documents that cannot be halved.
    """
    limits = [group.limit for group in section.groups for _ in group.tasks]
    return [("task", _in_words(task, limit, section.margin, halved)) for task, limit in zip(tasks, limits, strict=True)]


def limits_in_words(section: RetentionSection) -> Findings:
    """What is known of the tasks before their data is: whether as many documents as a limit allows
    can show that one was kept.
    """
    findings: Findings = []
    for group in section.groups:
        if group.limit and (least := least_margin(group.limit)) > section.margin:
            few = f"at most {group.limit:,} documents each, too few to show them kept at retention.margin"
            findings.append(("task", f"{', '.join(group.tasks)}: {few} {section.margin:g} (from {least:.3f} on)"))
    return findings


def _in_words(task: TaskFound, limit: int | None, margin: float, halved: bool) -> str:
    counts = [min(limit or count, count) for count in task.documents.values()]
    if halved:
        if 1 in counts:
            raise Refusal(f"task {task.name}: one document, and with tune one half of them chooses the scale; ask more")
        counts = [count // 2 for count in counts]
    subtasks = f" in {len(counts)} subtasks" if len(counts) > 1 else ""
    lower = "" if task.main["higher_is_better"] else ", which is better when lower"
    each = " of each half" if halved else ""
    said = f"{task.name}: {sum(counts):,} documents{each}{subtasks}, by {task.main['name']}{lower}"
    if 1 < len(counts) < FEWEST:
        return f"{said}; a group of fewer than {FEWEST} subtasks is never shown to be kept, name its subtasks"
    if task.main["unit"] != "score":
        return said
    least = least_margin_of_group(counts, task.by_size) if subtasks else least_margin(counts[0])
    if least > margin:
        shown = f"from {least:.3f} on, {'none' if subtasks else 'half of them right and none'} changed"
        said += f"; too few to show it kept at retention.margin {margin:g} ({shown})"
    return said
