"""What lm-eval found of a task by document: numbers, and in words the question, answer and gold."""

import math
from typing import Any

import numpy as np

from loki_ds.refusal import Refusal
from loki_ds.retention.messages import Sample, TaskSamples
from loki_ds.tasks.loading import TaskFound
from loki_ds.tasks.metrics import Metric, choices_of, gold_choices, likelihood, number_of

LONGEST_PROMPT = 2000  # characters of a prompt that are kept for the report, from its end


def samples_of(task: TaskFound, tasks: dict[str, Any], results: Any) -> TaskSamples:
    """One task's result; a group's subtasks as one task whose documents come in clusters."""
    samples = {member: results["samples"][member] for member in task.documents if member in results["samples"]}
    return {
        "version": {member: results["versions"][member] for member in samples},
        "shots": {member: results["n-shot"][member] for member in samples},
        "metrics": task.metrics,
        "by_size": task.by_size,
        "samples": [
            _sample_result(task, member, tasks[member], by_filter)
            for member, of_member in samples.items()
            for by_filter in _by_document(of_member)
        ],
    }


def _by_document(samples: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """lm-eval's samples of a task by document, and those of a document by filter."""
    documents: dict[int, dict[str, dict[str, Any]]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    return list(documents.values())


def _sample_result(declared: TaskFound, member: str, task: Any, by_filter: dict[str, dict[str, Any]]) -> Sample:
    """A document's numbers, and in words what was asked, answered and right.

    Raises:
        Refusal: a number that is none, or no number of the main metric.
    """
    first = next(iter(by_filter.values()))
    scores = [_number(metric, declared, task, by_filter) for metric in declared.metrics]
    for metric, score in zip(declared.metrics, scores, strict=True):
        if (score is None and metric == declared.main) or (score is not None and not math.isfinite(score)):
            raise Refusal(
                f"task {member}: document {first['doc_id']} (SHA-256 {first['doc_hash'][:16]}) scores {score} in "
                f"{metric['name']}, which can be compared with nothing; the model's numbers may have overflowed "
                "(model.dtype), or leave the task out"
            )
    answer, gold = _in_words(task, first)
    return {
        "doc_hash": first["doc_hash"],
        "place": first["doc_id"],
        "cluster": member if len(declared.documents) > 1 else None,
        "prompt_hash": first["prompt_hash"],
        "scores": scores,
        "prompt": str(first["arguments"][0][0])[-LONGEST_PROMPT:],
        "answer": answer,
        "gold": gold,
    }


def _number(metric: Metric, declared: TaskFound, task: Any, by_filter: dict[str, dict[str, Any]]) -> float | None:
    """The document's, None where the task gives none."""
    if not metric["filter"]:
        return likelihood(task, next(iter(by_filter.values())))
    sample = by_filter[metric["filter"]]
    return number_of(metric, declared.metrics, {name: sample[name] for name in sample["metrics"]})


def _in_words(task: Any, sample: dict[str, Any]) -> tuple[str, str]:
    """What the model answered, and what is right."""
    gold = gold_choices(task, sample["doc"])
    if gold:
        choices = choices_of(task, sample["doc"])
        nats = [float(responses[0][0]) for responses in sample["resps"]][: len(choices)]
        return choices[int(np.argmax(nats))], " or ".join(choices[place] for place in gold)
    answered = sample["filtered_resps"][0]
    if task.OUTPUT_TYPE == "loglikelihood":
        answered = f"{sample['target']}, {'' if answered[1] else 'not '}the likeliest continuation"
    return str(answered), str(sample["target"])
