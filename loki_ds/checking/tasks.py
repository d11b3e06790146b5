"""The retention tasks in words, and whether they can show at all that something was kept."""

from collections.abc import Mapping, Sequence

from loki_ds.checking.findings import Findings
from loki_ds.recipe.sections import RetentionSection, TuneSection
from loki_ds.refusal import Refusal, did_you_mean
from loki_ds.retention.forgetting import least_loss
from loki_ds.retention.statistics import FEWEST, least_margin, least_margin_of_group
from loki_ds.tasks.loading import TaskFound


def in_words(section: RetentionSection, tasks: Sequence[TaskFound], tune: TuneSection | None = None) -> Findings:
    """A line for each task that the section asks for, in its order.

    tune: with it one half of the documents chooses a scale, and the other is reported.

    Raises:
        Refusal: documents that cannot be halved, or that cannot show a budget to be kept, or a task
            of chats without a chat template.
    """
    chats = [group.apply_chat_template for group in section.groups for _ in group.tasks]
    for task, chat in zip(tasks, chats, strict=True):
        if task.by_template and not chat:
            raise Refusal(f"task {task.name} puts chats to the model: apply_chat_template must be true")
    limits = [group.limit for group in section.groups for _ in group.tasks]
    counts = [_counts(task, limit, tune is not None) for task, limit in zip(tasks, limits, strict=True)]
    if tune and tune.budget.forgetting is not None:
        abilities = sum(len(group.tasks) for group in section.abilities)
        scored = zip(tasks[:abilities], counts[:abilities], strict=True)
        known = [(of, task.by_size) for task, of in scored if task.main["unit"] == "score"]
        _check_budget(tune.budget.forgetting, known)
    if tune and section.new_task and not (taught := tasks[-len(section.new_task.tasks)]).main["higher_is_better"]:
        raise Refusal(
            f"tune: the new task {taught.name} is better when {taught.main['name']} is lower; a scale is chosen by a "
            "skill that is better when higher"
        )
    asked = {task.name: task for task in tasks}
    each, new = " of each half" if tune else "", section.new_task.tasks if section.new_task else []
    return [
        ("task", _in_words(task, of, None if task.name in new else section.margin, each) + _other_side(task, asked))
        for task, of in zip(tasks, counts, strict=True)
    ]


def _other_side(task: TaskFound, asked: Mapping[str, TaskFound]) -> str:
    """What is said of a task that is one side of a decision.

    Raises:
        Refusal: a side without a score, which has no mean with the other's.
    """
    if task.opposite is None:
        return ""
    if task.opposite not in asked:
        near = did_you_mean(task.opposite, asked)
        return f"; its opposite {task.opposite} is not asked, and silence alone is no skill{near}"
    if other := [side.name for side in (task, asked[task.opposite]) if side.main["unit"] != "score"]:
        raise Refusal(f"task {task.name}: its opposite is {task.opposite}, and {other[0]} has no score to balance")
    return f"; the other side of {task.opposite}"


def limits_in_words(section: RetentionSection) -> Findings:
    """Whether as many documents as a limit allows can show a task kept, before data is known."""
    findings: Findings = []
    for group in section.groups:
        if group.limit and (least := least_margin(group.limit)) > section.margin:
            few = f"at most {group.limit:,} documents each, too few to show them kept at retention.margin"
            findings.append(("task", f"{', '.join(group.tasks)}: {few} {section.margin:g} (from {least:.3f} on)"))
    return findings


def _check_budget(budget: float, abilities: list[tuple[list[int], bool]]) -> None:
    """Refuse a budget that no scale can be shown to keep, not even the base itself."""
    if abilities and (least := least_loss(abilities, right=1.0)) > budget:
        raise Refusal(
            f"tune.budget.forgetting is {budget:g}; were no answer changed, half of these documents would show losses "
            f"alone below {least:.3f} where the base is always right, below {least_loss(abilities, right=0.5):.3f} "
            "where it is in half of them; allow more, or ask more documents"
        )


def _counts(task: TaskFound, limit: int | None, halved: bool) -> list[int]:
    """Documents of each of the task's parts that are asked, and then reported."""
    counts = [min(limit or count, count) for count in task.documents.values()]
    if not halved:
        return counts
    if 1 in counts:
        raise Refusal(f"task {task.name}: one document, and with tune one half of them chooses the scale; ask more")
    return [count // 2 for count in counts]


def _in_words(task: TaskFound, counts: list[int], margin: float | None, each: str) -> str:
    """One task in a line. margin: None of what is to be learned, not kept."""
    subtasks = f" in {len(counts)} subtasks" if len(counts) > 1 else ""
    lower = "" if task.main["higher_is_better"] else ", which is better when lower"
    said = f"{task.name}: {sum(counts):,} documents{each}{subtasks}, by {task.main['name']}{lower}"
    if margin is None:
        return said
    if 1 < len(counts) < FEWEST:
        return f"{said}; a group of fewer than {FEWEST} subtasks is never shown to be kept, name its subtasks"
    if task.main["unit"] != "score":
        return said
    least = least_margin_of_group(counts, task.by_size) if subtasks else least_margin(counts[0])
    if least > margin:
        shown = f"from {least:.3f} on, {'none' if subtasks else 'half of them right and none'} changed"
        said += f"; too few to show it kept at retention.margin {margin:g} ({shown})"
    elif not subtasks and (wider := least_margin(counts[0], always_right=True)) > margin:
        said += f"; where the base is always right, too few to show it kept below {wider:.3f}"
    return said
