"""What lighteval kept of a model (`--save-details`, from any backend), as the answers of one arm.

A folder holds `results/MODEL/results_DATE.json` and `details/MODEL/DATE/details_TASK_DATE.parquet`;
of several dates the newest counts. Read as lighteval 0.11 to 0.13 write it
(`lighteval.logging.evaluation_tracker`), without lighteval.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from loki_ds.disk.text import json_value, read_text
from loki_ds.refusal import Refusal, short
from loki_ds.retention.lighteval_documents import (
    Row,
    Task,
    doc_hash,
    is_templated,
    keeps_words,
    metrics_of,
    names_of,
    task_samples,
)
from loki_ds.retention.logged import WRITER, Logged
from loki_ds.retention.messages import TaskSamples

# By what both must have been asked; prompts, shots, versions and metrics are compared in pairs.
OF_RUN = ("max_samples", "num_fewshot_seeds")
OF_MODEL = (
    "system_prompt",
    "override_chat_template",
    "add_special_tokens",
    "multichoice_continuations_start_space",
    "pairwise_tokenization",
)
OF_TASK = "prompt_function few_shots_split few_shots_select generation_size generation_grammar stop_sequence".split()
FILE = re.compile(r"details_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)$")
FIELDS = ("input", "input_tokens", "text", "text_post_processed", "logprobs", "padded_tokens_count")
COLUMNS = ["doc", "metric", *(f"model_response.{field}" for field in FIELDS)]  # logits may be gigabytes


def holds_details(folder: Path) -> bool:
    """Whether lighteval kept documents there."""
    return any(folder.rglob("details_*.parquet"))


def read_details(folder: Path) -> Logged:
    """One model's documents, the newest of each task.

    Raises:
        Refusal: there are several models, no results beside the details, dates that were not asked
            alike, or other columns than lighteval's since 0.11.
    """
    files = _newest(folder)
    results = {file: _results(file, folder) for file in files.values()}
    asked: dict[str, Any] = {}
    for file, of_date in results.items():
        for field, value in _asked_of_model(of_date).items():
            if asked.setdefault(field, value) != value:
                raise Refusal(f"{file}: {field} is {value!r}, and {asked[field]!r} on another date, allowed is one")
    tasks = {key: _task(key, file, results[file]) for key, file in files.items()}
    for key, task in tasks.items():
        asked |= _asked_of_task(_shown(key), task.config)
    rows = [row for task in tasks.values() for rows in task.documents for row in rows]
    asked["what is kept of a prompt"] = "words" if all(map(keeps_words, rows)) else "tokens"
    general = results[max(files.values(), key=lambda file: file.parent.name)]["config_general"]
    said, templated = general.get("lighteval_sha"), general["model_config"].get("override_chat_template")
    libraries = {"lighteval": "not said" if said in (None, "?") else str(said)}
    return Logged(
        folder,
        {"tasks": _together(tasks), "tokenizer": "", "libraries": libraries},
        asked,
        str(general.get("model_name", "not said")),
        "lighteval",
        general.get("max_samples"),
        is_templated(rows[0]) if templated is None else templated,
    )


def _newest(folder: Path) -> dict[str, Path]:
    """Each task's newest file, by lighteval's name of the task, which ends with its shots."""
    found = sorted(folder.resolve().rglob("details_*.parquet"), key=lambda file: (file.parent.name, file.name))
    models = sorted({file.parent.parent for file in found})
    if len(models) > 1:
        raise Refusal(f"{folder}: the answers of {len(models)} models, allowed is one; name {models[0]} or another")
    files = {}
    for file in found:
        name = FILE.match(file.stem)
        if name is None or name["date"] != file.parent.name:
            raise Refusal(f"{file}: no file of lighteval's, which are called DATE/details_TASK_DATE.parquet")
        files[name["task"]] = file
    return files


def _results(file: Path, folder: Path) -> dict[str, Any]:
    """What lighteval wrote of the same start: in its own folder, which may have been moved."""
    name = f"results_{file.parent.name}.json"
    tops = [parent for parent in file.parents if parent.name == "details"]
    places = [top.parent / "results" / file.parent.parent.relative_to(top) / name for top in tops]
    found = next((place for place in (*places, *folder.rglob(name)) if place.exists()), None)
    if found is None:
        raise Refusal(f"{file}: no {name} beside the details, which says how they were asked")
    results = json_value(read_text(found, "results"), str(found))
    if not isinstance(results, dict) or not isinstance(results.get("config_general", {}).get("model_config"), dict):
        raise Refusal(f"{found}: no config_general.model_config, which lighteval writes since 0.11")
    return results


def _task(key: str, file: Path, results: dict[str, Any]) -> Task:
    config = results.get("config_tasks", {}).get(key)
    if not isinstance(config, dict):
        raise Refusal(f"{file}: its results have no config_tasks of {key}, which says how it was asked")
    documents: dict[str, list[Row]] = {}
    for row in _rows(file):
        documents.setdefault(doc_hash(row["doc"]), []).append(row)
    if not documents:
        raise Refusal(f"{file}: no document")
    return Task(file, config, list(documents.values()))


def _rows(file: Path) -> Iterator[Row]:
    try:
        with ParquetFile(file) as table:
            if missing := {"doc", "metric", "model_response"} - set(table.schema_arrow.names):
                raise Refusal(f"{file}: no column {min(missing)}, which lighteval writes since 0.11")
            for batch in table.iter_batches(columns=COLUMNS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise Refusal(f"{file}: not a parquet file: {short(error, 200)}") from None


def _asked_of_model(results: dict[str, Any]) -> dict[str, Any]:
    general = results["config_general"]
    model = general["model_config"]
    writes = model.get("generation_parameters") or {}
    return {
        WRITER: "lighteval",
        **{field: general[field] for field in OF_RUN if field in general},
        **{field: model[field] for field in OF_MODEL if field in model},
        **{f"generation_parameters.{field}": value for field, value in writes.items()},
    }


def _asked_of_task(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Also by what each metric is computed, without places in memory, which no two starts share."""
    computed = {
        f"how {metric} of {name} is computed": re.sub(r" at 0x[0-9a-f]+", "", str(declared.get("sample_level_fn")))
        for declared in config.get("metrics", [])
        for metric in names_of(declared)
    }
    return {**{f"{field} of {name}": config[field] for field in OF_TASK if field in config}, **computed}


def _together(tasks: Mapping[str, Task]) -> dict[str, TaskSamples]:
    """Tasks by the names that a report shows; subtasks (`mmlu:anatomy|5`) as one, as lighteval
    averages them, but for those that do not share their metrics.
    """
    metrics = {key: metrics_of(task) for key, task in tasks.items()}
    groups: dict[str, list[str]] = {}
    for key in tasks:
        groups.setdefault(re.sub(r":[^|]*", "", key), []).append(key)
    for group, keys in list(groups.items()):
        if len(keys) == 1 or any(metrics[key] != metrics[keys[0]] for key in keys):
            del groups[group]
            groups |= {key: [key] for key in keys}
    count = Counter(map(_shown, groups))
    names = {key: _shown(key) if count[_shown(key)] == 1 else f"{_shown(key)}, {_shots(key)} shots" for key in groups}
    return {
        names[group]: task_samples({_shown(key): tasks[key] for key in keys}, metrics[keys[0]])
        for group, keys in groups.items()
    }


def _shown(key: str) -> str:
    """A task's name without its shots, and without bars, which would end a table's cell."""
    return key.rpartition("|")[0].replace("|", "/")


def _shots(key: str) -> str:
    return key.rpartition("|")[2]
