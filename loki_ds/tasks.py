"""lm-eval's tasks: which there are, what is behind a name, and which of them run code that the
model wrote.

Used for the protected set and for retention, in the main process and in the arms' own.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import disable_progress_bars

from loki_ds.refusal import Refusal, did_you_mean


def task_manager(names: Sequence[str], include_path: str | None, key: str) -> Any:
    """lm-eval's own `TaskManager` for these tasks: of the user's folder alone if they are all in it
    (lm-eval's thousands take seconds to list), else of both.

    key: of the recipe, for the sentence.

    Raises:
        Refusal: a task that nobody knows.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= manager.task_index.keys():
            return manager
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            raise Refusal(f"{key}: lm-eval knows no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    return manager


def members_of(name: str, manager: Any) -> dict[str, Any]:
    """lm-eval's tasks behind a name, by their own: itself, or the subtasks of a group or tag."""
    tasks = dict(manager.load([name])["tasks"])
    return {name: tasks[name]} if name in tasks else tasks


def unpaired_metrics(task: Any) -> dict[str, str]:
    """Those of an lm-eval task's metrics that say nothing of a document, or the opposite of what
    the report would: by name, with the reason.
    """
    higher, reasons = task.higher_is_better(), {}
    for name, aggregation in task.aggregation().items():
        if not _is_mean(aggregation):
            reasons[name] = "is no mean over documents"
        elif higher.get(name) is False:
            reasons[name] = "is better when lower"
    return reasons


def _is_mean(aggregation: Callable[[list[float]], float]) -> bool:
    """Tasks bring aggregations of their own, so it is tried and not looked up."""
    try:
        return [aggregation([0.0, 1.0, 1.0, 1.0]), aggregation([0.25])] == [0.75, 0.25]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # it wants pairs or lists
        return False


@dataclass(frozen=True)
class TaskFound:
    """A task or group as asked for, with the documents of each task behind it and its metrics."""

    name: str
    documents: dict[str, int]
    metrics: list[str]


def look_at_tasks(
    names: Sequence[str], include_path: str | None, allow_code_execution: bool, key: str
) -> list[TaskFound]:
    """Load the tasks as the evaluation will, and refuse what it would only find after the training.

    Raises:
        Refusal: a task that lm-eval does not know or cannot load, that runs code the model wrote
            and may not, or that gives no number per document.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its advice is for who runs lm-eval
    disable_progress_bars()
    manager = task_manager(names, include_path, key)
    unsafe = [name for name in names if _config_of(manager, name).get("unsafe_code")]
    if unsafe and not allow_code_execution:
        raise Refusal(runs_code(unsafe))  # known before its data is fetched
    return [_look_at(name, manager, allow_code_execution, key) for name in names]


def _look_at(name: str, manager: Any, allow_code_execution: bool, key: str) -> TaskFound:
    try:
        tasks = members_of(name, manager)
        documents = {member: len(task.eval_docs) for member, task in tasks.items()}
    except Exception as error:  # whatever a task's own code or its data set raises
        raise Refusal(f"{key}: task {name} cannot be loaded: {type(error).__name__}: {_first_line(error)}") from error
    for member, task in tasks.items():
        named = member if member == name else f"{member} (of {name})"
        if task.config.unsafe_code and not allow_code_execution:
            raise Refusal(runs_code([named]))
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise Refusal(
                f"{key}: task {named} measures the perplexity of whole texts and gives no score per document, so "
                "nothing can be paired; name other tasks"
            )
        if not documents[member]:
            raise Refusal(f"{key}: task {named} has no documents")
        unpaired, declared = unpaired_metrics(task), list(task.aggregation())
        if not declared or not unpaired.keys() < set(declared):
            reasons = ", ".join(f"{metric} {why}" for metric, why in unpaired.items()) or "it declares none"
            raise Refusal(f"{key}: task {named} has no metric that can be paired by document: {reasons}")
    return TaskFound(name, documents, [metric for metric in declared if metric not in unpaired])


def _config_of(manager: Any, name: str) -> dict[str, Any]:
    return manager.task_index[name].cfg or {}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def runs_code(names: Sequence[str]) -> str:
    """The sentence for such tasks."""
    return (
        f"retention: {', '.join(names)} run code that the model wrote, with all your rights; if this machine is "
        "isolated, say retention.allow_code_execution=true"
    )
