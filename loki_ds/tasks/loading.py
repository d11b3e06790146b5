"""lm-eval's tasks: which there are, what is behind a name, and which run code that a model wrote.

Used for the protected set and for retention, in the main process and in the arms' own.
"""

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import disable_progress_bars

from loki_ds.refusal import Refusal, did_you_mean, short
from loki_ds.tasks.metrics import Metric, metrics_of

FILES = ("data_files", "path")  # of a task's dataset_kwargs: those of data sets, and of `HeldOutCalls`


def task_manager(names: Sequence[str], folders: Sequence[str], key: str) -> Any:
    """lm-eval's own `TaskManager` for these tasks: of the user's folders alone if they are all
    there (lm-eval's thousands take seconds to list), else of all.

    folders: of the user's own tasks; key: of the recipe, for the sentence.

    Raises:
        Refusal: a task that nobody knows.
    """
    from lm_eval.tasks import TaskManager

    if folders:
        _check_folders(names, folders, key)
        manager = TaskManager(include_path=[*folders], include_defaults=False)
        if set(names) <= manager.task_index.keys():
            return _with_files_beside(manager, folders)
    manager = _with_files_beside(TaskManager(include_path=[*folders] or None), folders)
    for name in names:
        if name not in manager.task_index:
            if files := _files_of(name, folders):  # no YAML, or it includes what is not there
                raise Refusal(f"{key}: lm-eval cannot read {files[0]}, which has the task {name!r}")
            raise Refusal(f"{key}: lm-eval knows no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    return manager


def _check_folders(names: Sequence[str], folders: Sequence[str], key: str) -> None:
    for folder in folders:
        if not Path(folder).is_dir():
            raise Refusal(f"{key.partition('.')[0]}.include_path is {folder}, which is no folder of tasks")
    for name in names:
        if len(files := _files_of(name, folders)) > 1:
            raise Refusal(f"{key}: the task {name!r} stands in {files[0]} and in {files[1]}, allowed is one of them")


def _check_keys(file: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a key that the YAML of a task, or one that it includes, has twice in one mapping;
    lm-eval takes the last.
    """
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # lm-eval says it of a task that is asked for
    nodes, seen = [root], {id(root)}
    for node in nodes:  # grows while it is walked
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = [name.value for name, _ in node.value if name.value != "<<"]
            if twice := next((name for name in keys if keys.count(name) > 1), None):
                place = f"{file}: what begins in line {node.start_mark.line + 1}"
                raise Refusal(f"{place} has the key {twice!r} twice, allowed is once")
            parts = [value for _, value in node.value]
        nodes += [part for part in parts if id(part) not in seen]
        seen.update(map(id, parts))
    top = root.value if isinstance(root, yaml.MappingNode) else []
    for included in (value for name, value in top if name.value == "include"):
        for other in included.value if isinstance(included, yaml.SequenceNode) else [included]:
            if (below := (file.parent / other.value).resolve()) not in above:
                _check_keys(below, (*above, below))


def _files_of(name: str, folders: Sequence[str]) -> list[Path]:
    """The user's files that have a task of this name, whether or not lm-eval lists it."""
    says = re.compile(rf"^\s*[\"']?(task|group)[\"']?:\s*[\"']?{re.escape(name)}[\"']?\s*,?\s*(#.*)?$", re.MULTILINE)
    files = {file.resolve(): file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))}
    return [file for file in files.values() if says.search(file.read_text(encoding="utf-8", errors="replace"))]


def _with_files_beside(manager: Any, folders: Sequence[str]) -> Any:
    """The manager, whose tasks of the user's folders find their data files beside their YAML, too;
    lm-eval looks for them in the folder that one stands in.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for entry in manager.task_index.values():
        settings = (entry.cfg or {}).get("dataset_kwargs") or {}
        named = {key: settings[key] for key in FILES if key in settings}
        if not named or entry.yaml_path is None or not _within(Path(entry.yaml_path), folders):
            continue
        beside = _found_files(named, Path(entry.yaml_path).parent)
        if beside != named:
            try:
                entry.cfg = load_yaml(entry.yaml_path, resolve_func=True)
            except Exception:  # noqa: BLE001 (lm-eval says it of a task that is asked for)
                continue
            entry.cfg["dataset_kwargs"] = {**entry.cfg["dataset_kwargs"], **beside}
            entry.yaml_path = None  # or it would be read anew
    return manager


def _within(file: Path, folders: Sequence[str]) -> bool:
    return any(file.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def _found_files(files: Any, beside: Path) -> Any:
    """Data files, of one split, several, or by splits, as they are found."""
    if isinstance(files, dict):
        return {split: _found_files(of_split, beside) for split, of_split in files.items()}
    if isinstance(files, list):
        return [_found_files(file, beside) for file in files]
    return str(beside / files) if not Path(files).exists() and (beside / files).exists() else files


def members_of(name: str, manager: Any) -> dict[str, Any]:
    """lm-eval's tasks behind a name, by their own: itself, or the subtasks of a group or tag."""
    tasks = dict(manager.load([name])["tasks"])
    return {name: tasks[name]} if name in tasks else tasks


@dataclass(frozen=True)
class TaskFound:
    """A task or group as asked for.

    documents: of each task behind the name; metrics: that all of them have, the main one first;
    by_size: whether a group's tasks weigh by their documents, as it declares, or all alike; digest:
    of all documents, and how they are asked; by_template: whether that takes a chat template;
    opposite: the task that asks for what this one asks not to do, if it names one.
    """

    name: str
    documents: dict[str, int]
    metrics: list[Metric]
    by_size: bool = True
    digest: str = ""
    by_template: bool = False
    opposite: str | None = None

    @property
    def main(self) -> Metric:
        return self.metrics[0]


def look_at_tasks(
    names: Sequence[str], folders: Sequence[str], allow_code_execution: bool, key: str
) -> list[TaskFound]:
    """Load the tasks as the evaluation will, and refuse what it would only find after the training.

    Raises:
        Refusal: a task that lm-eval does not know or cannot load, that runs code the model wrote
            and may not, or that gives no number per document.
    """
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise Refusal(f"{key}: task {twice[0]} is asked for twice, allowed is once, as an ability or as the new task")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its advice is for who runs lm-eval
    disable_progress_bars()
    manager = task_manager(names, folders, key)
    unsafe = [name for name in names if _config_of(manager, name).get("unsafe_code")]
    if unsafe and not allow_code_execution:
        raise Refusal(runs_code(unsafe))  # known before its data is fetched
    tasks = [_look_at(name, manager, allow_code_execution, key) for name in names]
    for name in {member for task in tasks for member in (task.name, *task.documents)}:
        for file in _files_of(name, folders):
            _check_keys(file)
    held: dict[str, str] = {}
    for task in tasks:
        for member in task.documents:
            if member in held:
                raise Refusal(f"{key}: task {member} is in {held[member]} and in {task.name}, allowed is once")
            held[member] = task.name
    return tasks


def _look_at(name: str, manager: Any, allow_code_execution: bool, key: str) -> TaskFound:
    members = _config_of(manager, name).get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str) and member not in manager.task_index:
            raise Refusal(f"{key}: the group {name} names the task {member!r}, which lm-eval does not know")
    try:
        tasks = members_of(name, manager)
        documents = {member: len(task.eval_docs) for member, task in tasks.items()}
    except Exception as error:  # whatever a task's own code or its data set raises
        raise Refusal(f"{key}: task {name} cannot be loaded: {type(error).__name__}: {short(error, 300)}") from error
    metrics = {}
    for member, task in tasks.items():
        named = member if member == name else f"{member} (of {name})"
        if task.config.unsafe_code and not allow_code_execution:
            raise Refusal(runs_code([named]))
        if not documents[member]:
            raise Refusal(f"{key}: task {named} has no documents")
        metrics[member], unpaired = metrics_of(task)
        if not metrics[member]:
            reasons = ", ".join(f"{metric} {why}" for metric, why in unpaired.items()) or "it declares none"
            raise Refusal(f"{key}: task {named} has no metric that can be paired by document: {reasons}")
    first, *others = metrics.values()
    shared = [metric for metric in first if all(metric in other for other in others)]
    if not shared or any(other[0] != shared[0] for other in (first, *others)):
        mains = ", ".join(f"{member} has {declared[0]['name']}" for member, declared in metrics.items())
        raise Refusal(f"{key}: the tasks of {name} do not share one main metric ({mains}); name them instead")
    by_template = any(getattr(task, "BY_TEMPLATE", False) for task in tasks.values())
    by_size, opposite = _by_size(name, manager), _opposite(name, tasks, manager)
    return TaskFound(name, documents, shared, by_size, _digest(tasks), by_template, opposite)


def _digest(tasks: dict[str, Any]) -> str:
    """SHA-256 over all documents and how they are asked, wherever they come from."""
    whole = hashlib.sha256()
    for member in sorted(tasks):
        whole.update(f"{member}: {_settings(tasks[member])}".encode())
        for document in tasks[member].eval_docs:
            whole.update(json.dumps([member, document], sort_keys=True, default=str).encode())
    return whole.hexdigest()


def _settings(task: Any) -> str:
    """A task's own, with the sources of its functions; the same in every process."""
    text = json.dumps(task.dump_config(), sort_keys=True, default=_source)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return str(value)


def _by_size(name: str, manager: Any) -> bool:
    """What a group declares of how its tasks are averaged; lm-eval's default is by size."""
    declared = _config_of(manager, name).get("aggregate_metric_list") or []
    declared = declared if isinstance(declared, list) else [declared]
    return all(one.get("weight_by_size", True) for one in declared)


def _opposite(name: str, tasks: dict[str, Any], manager: Any) -> str | None:
    """The task that a task or group names in its metadata."""
    declared = tasks[name].config.metadata if name in tasks else _config_of(manager, name).get("metadata")
    return (declared or {}).get("opposite")


def _config_of(manager: Any, name: str) -> dict[str, Any]:
    return manager.task_index[name].cfg or {}


def runs_code(names: Sequence[str]) -> str:
    """The sentence for such tasks."""
    return (
        f"retention: {', '.join(names)} run code that the model wrote, with all your rights; if this machine is "
        "isolated, say retention.allow_code_execution=true"
    )
