"""A task's documents as lighteval keeps them: numbers, and in words the question, answer and gold.

A row is a document by one way of asking it: its choices' likelihoods, or a text. Its parts are
lighteval's `Doc`, `ModelResponse` and metrics (`lighteval.logging.info_loggers`).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loki_ds.refusal import Refusal
from loki_ds.retention.messages import Sample, TaskSamples
from loki_ds.retention.samples import LONGEST_PROMPT
from loki_ds.tasks.metrics import LIKELIHOOD, Metric, in_order, likelihood_metric, score

NO_FILTER = "none"  # as lm-eval calls it; lighteval has none

Row = dict[str, Any]


class Task(NamedTuple):
    """One task: its file, its configuration, and its documents, each with its rows."""

    file: Path
    config: dict[str, Any]
    documents: list[list[Row]]


def metrics_of(task: Task) -> list[Metric]:
    """Those that are means over documents, the main one first, and the gold answer's likelihood.

    Raises:
        Refusal: there is none.
    """
    first = _numbers(task.documents[0])
    scores, names = [], []
    for declared in task.config.get("metrics", []):
        for name in names_of(declared):
            mean, higher = (_of_one(declared.get(field), name) for field in ("corpus_level_fn", "higher_is_better"))
            names.append(name)
            if mean == "mean" and isinstance(first.get(name), int | float):
                scores.append(score(name, NO_FILTER, [NO_FILTER], higher is not False))
    if not scores:
        raise Refusal(f"{task.file}: none of its metrics ({', '.join(names)}) is a mean over documents")
    known = likelihood_metric("multiple_choice") if _likelihood(task.documents[0]) is not None else None
    return in_order(scores, [NO_FILTER]) + ([known] if known else [])


def names_of(declared: dict[str, Any]) -> list[str]:
    """Of a metric, or of several that are computed together."""
    names = declared["metric_name"]
    return list(names) if isinstance(names, list) else [names]


def _of_one(declared: Any, name: str) -> Any:
    return declared.get(name) if isinstance(declared, dict) else declared


def task_samples(tasks: Mapping[str, Task], metrics: list[Metric]) -> TaskSamples:
    """A task's answers, or those of a group's tasks as one, by the names that are shown; each of
    one weight, as lighteval averages them.
    """
    return {
        "version": {name: str(task.config.get("version", "-")) for name, task in tasks.items()},
        "shots": {name: int(task.config.get("num_fewshots", 0)) for name, task in tasks.items()},
        "metrics": metrics,
        "by_size": False,
        "samples": [
            _sample(task.file, place, name if len(tasks) > 1 else None, rows, metrics)
            for name, task in tasks.items()
            for place, rows in enumerate(task.documents)
        ],
    }


def _sample(file: Path, place: int, cluster: str | None, rows: list[Row], metrics: list[Metric]) -> Sample:
    document, numbers = rows[0]["doc"], _numbers(rows)
    scores = [
        _likelihood(rows) if metric["metric"] == LIKELIHOOD else _number(numbers.get(metric["metric"]))
        for metric in metrics
    ]
    if scores[0] is None or not math.isfinite(scores[0]):
        raise Refusal(f"{file}: document {document['id']} has no {metrics[0]['metric']} that is a number")
    return {
        "doc_hash": doc_hash(document),
        "place": place,
        "cluster": cluster,
        "prompt_hash": _digest([[_prompt(row), *_around(row["doc"])] for row in rows]),
        "scores": scores,
        "prompt": _prompt_in_words(rows[0])[-LONGEST_PROMPT:],
        "answer": _answer(rows[0]),
        "gold": " or ".join(str(document["choices"][gold]).strip() for gold in _gold(document)),
    }


# --- numbers --------------------------------------------------------------------------------------


def _numbers(rows: list[Row]) -> dict[str, Any]:
    """A document's, whichever way it was asked; Arrow gives each row the keys of all."""
    return {name: value for row in rows for name, value in row["metric"].items() if value is not None}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _likelihood(rows: list[Row]) -> float | None:
    """Nats of the gold answer, of several the likeliest; None where nobody asked for them."""
    return max((nats[gold] for row in rows if (nats := _nats(row)) for gold in _gold(row["doc"])), default=None)


def _nats(row: Row) -> list[float]:
    """Its choices' log-likelihoods; none where a text was written, or read whole."""
    nats, choices = row["model_response"].get("logprobs") or [], row["doc"].get("choices") or []
    reads = "PERPLEXITY" in (row["doc"].get("sampling_methods") or [])
    return [] if reads or row["model_response"].get("text") or len(nats) != len(choices) else nats


def _gold(document: dict[str, Any]) -> list[int]:
    """The right choices' places."""
    gold, choices = document["gold_index"], document.get("choices") or []
    places: list[int] = gold if isinstance(gold, list) else [gold]
    return [place for place in places if place in range(len(choices))]


# --- words ----------------------------------------------------------------------------------------


def doc_hash(document: dict[str, Any]) -> str:
    """SHA-256 of what a document asks, and what is right."""
    return _digest([document.get(key) for key in ("id", "query", "choices", "gold_index")])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def keeps_words(row: Row) -> bool:
    """Whether the backend keeps a prompt's words; that of transformers keeps its tokens alone."""
    return row["model_response"].get("input") is not None


def is_templated(row: Row) -> bool | None:
    """Whether a prompt was put into a chat template, after which a question is not the end of it;
    None where only its tokens are kept.
    """
    if not keeps_words(row):
        return None
    put = row["model_response"]["input"]
    return not isinstance(put, str) or not put.rstrip().endswith(row["doc"]["query"].rstrip())


def _prompt(row: Row) -> Any:
    """As a text or messages; where the backend keeps none, the tokens without padding."""
    response = row["model_response"]
    if keeps_words(row):
        return response["input"]
    tokens = (response.get("input_tokens") or [])[response.get("padded_tokens_count") or 0 :]
    return [token for token in tokens if token != -1]  # -1 pads what several processes gather


def _around(document: dict[str, Any]) -> list[Any]:
    """What else a prompt is made of, and how many answers were wanted."""
    shots = [[shot["query"], shot["choices"], shot["gold_index"]] for shot in document.get("fewshot_samples") or []]
    return [document.get("instruction"), shots, document.get("num_samples")]


def _prompt_in_words(row: Row) -> str:
    """As the model read it, or the question alone where the backend keeps no more."""
    put = _prompt(row) if keeps_words(row) else row["doc"]["query"]
    messages = put if isinstance(put, list) else [put]
    return "\n".join(str(message["content"] if isinstance(message, dict) else message) for message in messages)


def _answer(row: Row) -> str:
    """What the model says, or the choice that it finds likeliest."""
    if nats := _nats(row):
        return str(row["doc"]["choices"][nats.index(max(nats))]).strip()
    said = row["model_response"].get("text_post_processed") or row["model_response"].get("text") or [""]
    return str(said[0])
