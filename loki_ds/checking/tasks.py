"""The retention tasks in words, and whether they can show at all that something was kept."""

from loki_ds.checking.findings import Findings
from loki_ds.recipe import RetentionSection
from loki_ds.retention.statistics import least_margin
from loki_ds.tasks import TaskFound, look_at_tasks


def look_at_retention(section: RetentionSection) -> Findings:
    """Load every task as the evaluation will.

    Raises:
        Refusal: a task that lm-eval does not know, that gives no number per document, or that runs
            code and may not.
    """
    findings: Findings = []
    for group in section.groups:
        found = look_at_tasks(group.tasks, section.include_path, section.allow_code_execution, "retention")
        findings += [("task", _in_words(task, group.limit, section.margin)) for task in found]
    return findings


def _in_words(task: TaskFound, limit: int | None, margin: float) -> str:
    asked = sum(min(limit or count, count) for count in task.documents.values())
    if len(task.documents) > 1:
        return f"{task.name}: {asked:,} documents in {len(task.documents)} subtasks, by {task.metrics[0]}"
    said = f"{task.name}: {asked:,} documents by {task.metrics[0]}"
    if (least := least_margin(asked)) > margin:
        seen = f"from {least:.3f} on, half of them right and none changed"
        said += f", too few to show it kept at retention.margin {margin:g} ({seen})"
    return said
