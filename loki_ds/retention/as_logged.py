"""One arm's answers as lm-eval logs them (`results_DATE.json`, `samples_TASK_DATE.jsonl`), for its
own tools and for whoever reads its files.

What is kept of a document is written: its answer in words, the end of its prompt, its scores. The
gold answer's likelihood stands among the scores; that of other choices is not kept, so that every
task is written as one whose answers are texts (`output_type: generate_until`).
"""

import hashlib
import json
import statistics
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from loki_ds.disk.files import write_json, written_whole
from loki_ds.retention.messages import ArmResult, Sample, TaskSamples
from loki_ds.tasks.metrics import Metric

Members = dict[str, list[Sample]]  # a task's documents, or those of each task of a group


def write_logged(answers: ArmResult, name: str, folder: Path) -> None:
    """Add results and samples of now to a folder of one model.

    name: the model's, as tables show it.
    """
    date = datetime.now().isoformat().replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for task, asked in answers["tasks"].items():
        for member, samples in _members(task, asked).items():
            lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(samples, asked["metrics"]))
            with (
                written_whole(folder / f"samples_{member}_{date}.jsonl") as aside,
                aside.open("w", encoding="utf-8") as file,
            ):
                file.writelines(lines)
    write_json(folder / f"results_{date}.json", _results(answers, name))


def _members(task: str, asked: TaskSamples) -> Members:
    members: Members = {}
    for sample in asked["samples"]:
        members.setdefault(sample["cluster"] or task, []).append(sample)
    return members


def _lines(samples: list[Sample], metrics: list[Metric]) -> Iterator[dict[str, Any]]:
    """A line for every document and filter."""
    for sample in samples:
        for by in _filters(metrics):
            scores = {
                metric["metric"]: score
                for metric, score in zip(metrics, sample["scores"], strict=True)
                if _filter(metric, metrics) == by and score is not None
            }
            yield {
                "doc_id": sample["place"],
                "doc": {"gold": sample["gold"]},
                "target": sample["gold"],
                "arguments": {"gen_args_0": {"arg_0": sample["prompt"], "arg_1": ""}},
                "resps": [[sample["answer"]]],
                "filtered_resps": [sample["answer"]],
                "filter": by,
                "metrics": [*scores],
                "doc_hash": sample["doc_hash"],
                "prompt_hash": sample["prompt_hash"],
                "target_hash": hashlib.sha256(sample["gold"].encode()).hexdigest(),
                **scores,
            }


def _filter(metric: Metric, metrics: list[Metric]) -> str:
    """A likelihood has none, and goes with the main metric."""
    return metric["filter"] or metrics[0]["filter"] or "none"


def _filters(metrics: list[Metric]) -> list[str]:
    return list(dict.fromkeys(_filter(metric, metrics) for metric in metrics))


def _results(answers: ArmResult, name: str) -> dict[str, Any]:
    groups = answers.get("key", {}).get("groups", [])
    templated = any(group["apply_chat_template"] for group in groups)
    limits = {group["limit"] for group in groups}
    limit = limits.pop() if len(limits) == 1 else None  # lm-eval has one for all tasks
    libraries = {f"{library}_version": said for library, said in answers["libraries"].items()}
    by_task = {task: _members(task, asked) for task, asked in answers["tasks"].items()}
    results: dict[str, Any] = {
        "results": {},
        "groups": {},
        "group_subtasks": {task: [*members] for task, members in by_task.items() if [*members] != [task]},
        "weight_by_size": {task: asked["by_size"] for task, asked in answers["tasks"].items()},
        **{part: {} for part in ("configs", "versions", "n-shot", "higher_is_better")},
        "config": {"model": "loki-ds", "model_args": {"pretrained": name}, "limit": limit},
        "chat_template_sha": answers["tokenizer"] if templated else None,
        "model_source": "loki-ds",
        "model_name": name,
        **libraries,
    }
    for task, members in by_task.items():
        asked = answers["tasks"][task]
        if task in results["group_subtasks"]:
            results["groups"][task] = results["results"][task] = _of_group(task, members, asked)
        for member, samples in members.items():
            results["results"][member] = _means(member, samples, asked["metrics"])
            results["configs"][member] = _config(member, asked["metrics"])
            results["versions"][member] = asked["version"].get(member)
            results["n-shot"][member] = asked["shots"].get(member, 0)
            results["higher_is_better"][member] = {one["metric"]: one["higher_is_better"] for one in asked["metrics"]}
    return results


def _means(name: str, samples: list[Sample], metrics: list[Metric]) -> dict[str, Any]:
    """By metric and filter its mean over documents, with the standard error; None are left out."""
    line: dict[str, Any] = {"alias": name}
    for place, metric in enumerate(metrics):
        scores = [score for sample in samples if (score := sample["scores"][place]) is not None]
        if scores:
            by = _filter(metric, metrics)
            error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else "N/A"
            line |= {f"{metric['metric']},{by}": statistics.fmean(scores), f"{metric['metric']}_stderr,{by}": error}
    return line


def _of_group(name: str, members: Members, asked: TaskSamples) -> dict[str, Any]:
    """A group's mean over documents, or over its tasks where it weighs all alike."""
    if asked["by_size"]:
        return _means(name, asked["samples"], asked["metrics"])
    lines = [_means(name, samples, asked["metrics"]) for samples in members.values()]
    means = [key for key in lines[0] if "," in key and "_stderr," not in key and all(key in line for line in lines)]
    return {"alias": name, **{key: statistics.fmean(line[key] for line in lines) for key in means}}


def _config(name: str, metrics: list[Metric]) -> dict[str, Any]:
    declared = {metric["metric"]: metric["higher_is_better"] for metric in metrics}
    filters = [{"name": by, "filter": [{"function": "take_first"}]} for by in _filters(metrics)]
    return {
        "task": name,
        "output_type": "generate_until",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": better} for metric, better in declared.items()
        ],
        **({"filter_list": filters} if len(filters) > 1 else {}),
    }
