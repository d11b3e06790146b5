"""lm-eval's tasks: which there are, what is behind a name, and which of them run code that the
model wrote.

Used for the protected set and for retention, in the main process and in the arms' own.
"""

from collections.abc import Sequence
from typing import Any

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


def members_of(names: Sequence[str], manager: Any) -> dict[str, list[str]]:
    """For each name asked for, the tasks behind it: itself, or the subtasks of a group."""
    members = {name: list(manager.load([name])["tasks"]) for name in names}
    return {name: tasks if name not in tasks else [name] for name, tasks in members.items()}


def check_tasks(names: Sequence[str], include_path: str | None, allow_code_execution: bool, key: str) -> None:
    """Refuse before any training what an evaluation would only find after it.

    Raises:
        Refusal: a task that lm-eval does not know, or one that runs code the model wrote and may
            not.
    """
    index = task_manager(names, include_path, key).task_index
    unsafe = [name for name in names if index[name].cfg and index[name].cfg.get("unsafe_code")]
    if unsafe and not allow_code_execution:
        raise Refusal(runs_code(unsafe))


def runs_code(names: Sequence[str]) -> str:
    """The sentence for such tasks."""
    return (
        f"retention: {', '.join(names)} run code that the model wrote, with all your rights; if this machine is "
        "isolated, say retention.allow_code_execution=true"
    )
