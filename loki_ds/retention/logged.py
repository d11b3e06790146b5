"""What lm-eval logged of a model (`--output_path FOLDER --log_samples`, from any backend), as the
answers of one arm.

A folder holds `results_DATE.json` and `samples_TASK_DATE.jsonl`; of several dates the newest
counts.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loki_ds.disk.text import json_lines, json_value
from loki_ds.refusal import Refusal
from loki_ds.retention.messages import ArmResult, Sample, TaskSamples
from loki_ds.retention.samples import LONGEST_PROMPT
from loki_ds.tasks.metrics import LIKELIHOOD, TEXTS, Metric, in_order, likelihood_metric, number_of, score

KEPT = {LIKELIHOOD: "multiple_choice", TEXTS: "loglikelihood_rolling"}  # what `as_logged` writes as a score
WRITER = "the evaluating program"
# By what both must have been asked; a version of lm-eval that lacks one says nothing.
ASKED_BY = ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
SEEDS = ("limit", "random_seed", "numpy_seed", "fewshot_seed", "gen_kwargs")
BY_TASK = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "weight_by_size")
DATE = re.compile(r"_\d{4}-\d\d-\d\dT[\d.:-]+$")


class Logged(NamedTuple):
    """One model's answers, and what was written beside them.

    asked: in what two models must agree, by its field, but for what is compared when documents are
    paired; model, backend: their names; limit: of documents, None for all;
    templated: whether by a chat template, None where it is not said.
    """

    folder: Path
    answers: ArmResult
    asked: dict[str, Any]
    model: str
    backend: str
    limit: int | float | None
    templated: bool | None


def read_logged(folder: Path) -> Logged:
    """One model's samples, the newest of each task.

    Raises:
        Refusal: there are several models, no results beside the samples, or other lines than its.
    """
    by_date = {_date(file): file for file in sorted(folder.rglob("results_*.json"))}
    if not by_date:
        raise Refusal(f"{folder}: no results_*.json beside the samples, which says how they were asked")
    models = sorted({file.parent for file in folder.rglob("results_*.json")})
    if len(models) > 1:
        raise Refusal(f"{folder}: the answers of {len(models)} models, allowed is one; name {models[0]} or another")
    samples: dict[str, Path] = {}
    for file in sorted(models[0].glob("samples_*.jsonl"), key=_date):
        if _date(file) not in by_date:
            raise Refusal(f"{file}: no results of its date beside it")
        samples[DATE.sub("", file.stem).removeprefix("samples_")] = file
    if not samples:
        raise Refusal(f"{models[0]}: no samples beside the results; lm-eval writes them with --log_samples")
    results = _together([by_date[date] for date in sorted({_date(file) for file in samples.values()})])
    tasks = {
        name: _task(name, members, samples, results)
        for asked, group in _asked(results, samples).items()
        for name, members in _weighed_together(asked, group, samples, results).items()
    }
    libraries = {"lm_eval": str(results.get("lm_eval_version", "not said"))}
    return Logged(
        folder,
        {"tasks": tasks, "tokenizer": "", "libraries": libraries},
        {WRITER: "lm-eval", **{key: _asked_by(results, key) for key in (*ASKED_BY, *SEEDS)}},
        str(results.get("model_name", "not said")),
        str(results.get("model_source", "not said")),
        _asked_by(results, "limit"),
        results.get("chat_template_sha") is not None,
    )


def _date(file: Path) -> str:
    found = DATE.search(file.stem)
    return found[0] if found else ""


def _together(files: list[Path]) -> dict[str, Any]:
    """Results of several dates as one.

    Raises:
        Refusal: they were not asked alike.
    """
    whole: dict[str, Any] = {}
    for file in files:
        results = json_value(file.read_text(encoding="utf-8"), str(file))
        for key in (*ASKED_BY, *SEEDS):
            first, second = (_asked_by(each, key) for each in (whole or results, results))
            if first != second:
                raise Refusal(f"{file}: {key} is {second!r}, and {first!r} on an earlier date; allowed is the same")
        whole = {**whole, **results, **{name: {**whole.get(name, {}), **results.get(name, {})} for name in BY_TASK}}
    return whole


def _asked_by(results: dict[str, Any], key: str) -> Any:
    return results.get(key) if key in ASKED_BY else results.get("config", {}).get(key)


def check_alike(base: Logged, model: Logged) -> None:
    """Refuse answers that were asked for in two ways, by field; documents and prompts are compared
    when they are paired.
    """
    for key, first in base.asked.items():
        second = model.asked.get(key, first)  # what one of them lacks, it says nothing of
        if first != second:
            raise Refusal(
                f"{model.folder}: {key} is {second!r}, and {first!r} in {base.folder}; both must be asked alike"
            )


def _asked(results: dict[str, Any], samples: dict[str, Path]) -> dict[str, list[str]]:
    """What was asked for, each with its subtasks: groups within no other, and tasks in none."""
    groups = {name: members for name, members in results.get("group_subtasks", {}).items() if members}

    def tasks_of(name: str) -> Iterator[str]:
        for member in groups.get(name, []):
            yield from tasks_of(member) if member in groups else (member,)

    within = {member for members in groups.values() for member in members}
    whole = {name: [task for task in tasks_of(name) if task in samples] for name in groups if name not in within}
    alone = {name: [name] for name in samples if not any(name in members for members in whole.values())}
    return {name: members for name, members in {**whole, **alone}.items() if members}


def _weighed_together(
    name: str, members: list[str], files: dict[str, Path], results: dict[str, Any]
) -> dict[str, list[str]]:
    """A group as one, or its tasks one by one where they do not share one main metric."""
    mains = [_metrics(member, _documents(files[member]), results)[0] for member in members]
    return {name: members} if all(main == mains[0] for main in mains) else {member: [member] for member in members}


def _task(name: str, members: list[str], files: dict[str, Path], results: dict[str, Any]) -> TaskSamples:
    """A task's answers, or those of a group's tasks as one; lm-eval does not say how they weigh."""
    by_member = {member: _documents(files[member]) for member in members}
    metrics = _metrics(members[0], by_member[members[0]], results)
    return {
        "version": {member: str(results.get("versions", {}).get(member, "-")) for member in members},
        "shots": {member: int(results.get("n-shot", {}).get(member, 0)) for member in members},
        "metrics": metrics,
        "by_size": bool(results.get("weight_by_size", {}).get(name, True)),
        "samples": [
            _sample(files[member], member if len(members) > 1 else None, of_filters, metrics, reads)
            for member, documents in by_member.items()
            for reads in [_Reads.of(_kind(member, results), documents)]
            for of_filters in documents
        ],
    }


def _kind(task: str, results: dict[str, Any]) -> str:
    return str(results.get("configs", {}).get(task, {}).get("output_type", ""))


def _documents(file: Path) -> list[dict[str, dict[str, Any]]]:
    """A task's lines, one for every document and filter: those of a document by their filter."""
    documents: dict[int, dict[str, dict[str, Any]]] = {}
    for number, sample in json_lines(file, "samples"):
        if not isinstance(sample, dict) or not {"doc_id", "doc_hash", "prompt_hash", "resps"} <= sample.keys():
            raise Refusal(f"{file}: line {number} is none of lm-eval's samples (doc_id, doc_hash, prompt_hash, resps)")
        documents.setdefault(sample["doc_id"], {})[sample.get("filter", "none")] = sample
    if not documents:
        raise Refusal(f"{file}: no sample")
    return [documents[place] for place in sorted(documents)]


def _metrics(task: str, documents: list[dict[str, dict[str, Any]]], results: dict[str, Any]) -> list[Metric]:
    """Those that are means over documents, the main one first, and the gold answer's likelihood.

    Raises:
        Refusal: there is none.
    """
    config = results.get("configs", {}).get(task, {})
    declared = {each["metric"]: each.get("aggregation", "mean") for each in config.get("metric_list") or []}
    first = next(iter(documents[0].values()))
    names = first.get("metrics") or [name for name in declared if name in first]
    higher = results.get("higher_is_better", {}).get(task, {})
    filters = list(documents[0])
    scores = [
        score(name, by, filters, bool(higher.get(name, True)))
        for name in names
        for by in filters
        if name not in KEPT and declared.get(name, "mean") == "mean" and isinstance(first[name], bool | int | float)
    ]
    if not scores:
        raise Refusal(f"task {task}: none of its metrics ({', '.join(names)}) is a number for each document")
    reads = _Reads.of(_kind(task, results), documents)
    kind = next((kind for name, kind in KEPT.items() if name in first), reads.kind)
    known = [likelihood_metric(kind)] if reads.likelihood(first) is not None else []
    return in_order(scores, filters) + [metric for metric in known if metric]


class _Reads(NamedTuple):
    """How a task's samples are read. kind: lm-eval's output type; places: whether targets are the
    right choices' places, and not their words.
    """

    kind: str
    places: bool

    @classmethod
    def of(cls, kind: str, documents: list[dict[str, dict[str, Any]]]) -> "_Reads":
        targets = [(str(sample["target"]), len(sample["resps"])) for by in documents for sample in by.values()]
        return cls(kind, all(target.isdigit() and int(target) < choices for target, choices in targets))

    def likelihood(self, sample: dict[str, Any]) -> float | None:
        """Nats of the gold answer, or bits per byte of a text; lm-eval writes numbers as text."""
        if written := [sample[name] for name in KEPT if name in sample]:
            return float(written[0])
        nats = [_number(response) for response in sample["resps"]]
        if self.kind == "loglikelihood_rolling":
            return None if nats[0] is None else -nats[0] / math.log(2) / max(1, len(str(sample["target"]).encode()))
        if self.kind == "loglikelihood":
            return nats[0]
        place = self.gold(sample)
        return nats[place] if place is not None and place < len(nats) else None

    def gold(self, sample: dict[str, Any]) -> int | None:
        """The place of the right choice; None where there are no choices."""
        if self.kind != "multiple_choice":
            return None
        target, choices = str(sample["target"]).strip(), _choices(sample)
        if self.places:
            return int(target)
        return choices.index(target) if target in choices else None

    def answer(self, sample: dict[str, Any]) -> str:
        """What the model says, or the choice that it finds likeliest."""
        if self.kind != "multiple_choice":
            return str((sample.get("filtered_resps") or [""])[0])
        nats = [-math.inf if (said := _number(response)) is None else said for response in sample["resps"]]
        return _word(sample, nats.index(max(nats)))

    def right(self, sample: dict[str, Any]) -> str:
        place = self.gold(sample)
        return str(sample["target"]) if place is None else _word(sample, place)


def _word(sample: dict[str, Any], place: int) -> str:
    choices = _choices(sample)
    return choices[place] if place < len(choices) else str(place)


def _number(response: Any) -> float | None:
    """The log-likelihood in `[["-1.5", "False"]]`."""
    while isinstance(response, list) and response:
        response = response[0]
    try:
        return float(response)
    except (TypeError, ValueError):
        return None


def _choices(sample: dict[str, Any]) -> list[str]:
    return [str(arguments[1]).strip() for arguments in _arguments(sample) if len(arguments) > 1]


def _arguments(sample: dict[str, Any]) -> list[list[Any]]:
    """Each request's, as lists; newer files name them (`gen_args_0: {arg_0: ...}`)."""
    given = sample.get("arguments") or []
    requests = list(given.values()) if isinstance(given, dict) else given
    return [list(request.values()) if isinstance(request, dict) else list(request) for request in requests]


def _sample(
    file: Path, cluster: str | None, by_filter: dict[str, dict[str, Any]], metrics: list[Metric], reads: _Reads
) -> Sample:
    """A document's numbers and words."""
    first = next(iter(by_filter.values()))
    scores = [
        reads.likelihood(first)
        if metric["metric"] in (LIKELIHOOD, TEXTS)
        else number_of(metric, metrics, by_filter.get(metric["filter"], {}))
        for metric in metrics
    ]
    if scores[0] is None or not math.isfinite(scores[0]):
        raise Refusal(f"{file}: document {first['doc_id']} has no {metrics[0]['metric']} that is a number")
    arguments = _arguments(first)
    return {
        "doc_hash": first["doc_hash"],
        "place": first["doc_id"],
        "cluster": cluster,
        "prompt_hash": first["prompt_hash"],
        "scores": scores,
        "prompt": str(arguments[0][0])[-LONGEST_PROMPT:] if arguments and arguments[0] else "",
        "answer": reads.answer(first),
        "gold": reads.right(first),
    }
