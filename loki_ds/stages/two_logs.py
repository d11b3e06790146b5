"""Retention of two models from what lm-eval or lighteval kept of each: nothing is loaded and
nothing asked.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from loki_ds.recipe.sections import RetentionSection, TaskGroup
from loki_ds.refusal import Refusal
from loki_ds.report.schema import Facts, Report
from loki_ds.retention.lighteval_details import holds_details, read_details
from loki_ds.retention.logged import Logged, check_alike, read_logged
from loki_ds.retention.messages import TaskSamples
from loki_ds.stages.report import folder_for, put_report, report_of_pair


def retain_logged(base: Path, model: Path, section: RetentionSection, out: Path) -> Report:
    """Pair what was logged, and write the report.

    section: of it the margin and the new task count; abilities are all other tasks there.

    Raises:
        Refusal: the two were not asked alike, or cannot be read.
    """
    logged = [read_details(each) if holds_details(each) else read_logged(each) for each in (base, model)]
    check_alike(*logged)
    section = _section(section, logged[0])
    folder = folder_for(out)
    with folder.lock():
        results = [each.answers for each in logged]
        report_of_pair(str(out), results, section, _facts(logged), [], folder.retention / "logged")
        return put_report(folder.retention / "logged", folder)


def _section(section: RetentionSection, base: Logged) -> RetentionSection:
    """How the tasks were asked, as a recipe would say it."""
    tasks, limit = base.answers["tasks"], base.limit
    new = section.new_task.tasks if section.new_task else []
    if missing := [name for name in new if name not in tasks]:
        raise Refusal(f"retention.new_task: {missing[0]} is none of the logged tasks ({', '.join(tasks)})")

    def group(name: str, asked: TaskSamples) -> TaskGroup:
        drawn = int(limit) if isinstance(limit, int | float) and limit >= 1 else None
        said = TaskGroup(tasks=[name], num_fewshot=max(asked["shots"].values()), limit=drawn)
        return said.model_copy(update={"apply_chat_template": base.templated})  # also None, which no recipe says

    groups = {name: group(name, asked) for name, asked in tasks.items()}
    abilities = [asked for name, asked in groups.items() if name not in new]
    if not abilities:
        raise Refusal("retention.new_task: nothing but new tasks is logged, so there is nothing to keep")
    return section.model_copy(update={"abilities": abilities})


def _digest_of(logged: Logged) -> str:
    """SHA-256 of a model's answers, which stands for the model that nobody has here."""
    tasks = {
        name: [[s["doc_hash"], s["scores"]] for s in task["samples"]] for name, task in logged.answers["tasks"].items()
    }
    return hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest()


def _facts(logged: Sequence[Logged]) -> Facts:
    base, model = logged
    versions = model.answers["libraries"].items()
    said = [f"{each.model} ({each.folder})" for each in logged]
    return {
        "base_digest": _digest_of(base),
        "changes_rows": False,
        "mode": "logged",
        "selection": None,
        "verification": None,
        "costs": {},
        "origin": {"base model": said[0], "second model": said[1]},
        "settings": {
            "backend": base.backend,
            "versions": ", ".join(f"{name.replace('_', '-')} {said}" for name, said in versions),
        },
    }
