"""The figures of eval/reports/promise.md anew, from every document's scores, by Python alone.

    python eval/recompute.py

Reads `eval/reports/promise/answers/*.json.xz`, holds each against `SHA256SUMS` there, and prints of
each arm: calls right, silence, their mean, how much less likely the six abilities' right answers
are, and what all abilities lost.
"""

import hashlib
import json
import lzma
from pathlib import Path
from statistics import fmean
from typing import Any

ANSWERS = Path(__file__).parent / "reports/promise/answers"
CALLS, SILENCE = "real_calls", "real_irrelevance"
LIKELIHOODS = ("real_mmlu", "real_definitions", "real_hypernyms", "real_capitals", "real_elements")
CODE = "real_code"
Tasks = dict[str, Any]  # by name: `metrics`, and the documents' scores on `base` and `implanted`


def main() -> None:
    for name in sums():
        figures = figures_of(read(name))
        print(name.removesuffix(".json.xz"), *(f"{key} {value}" for key, value in figures.items()), sep="; ")


def sums() -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    lines = (ANSWERS / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def read(name: str) -> Tasks:
    """One arm's answers; ends the script where the file is not the published one."""
    packed = (ANSWERS / name).read_bytes()
    if hashlib.sha256(packed).hexdigest() != sums()[name]:
        raise SystemExit(f"{ANSWERS / name}: not the file that SHA256SUMS names")
    return json.loads(lzma.decompress(packed))


def figures_of(tasks: Tasks) -> dict[str, str]:
    """As the report prints them."""
    calls, silence = (mean(tasks[task], 0, "implanted") for task in (CALLS, SILENCE))
    rises = [rise(tasks[task], nats_of(tasks[task])) for task in LIKELIHOODS] + [rise(tasks[CODE], 0)]
    kept = {name: task for name, task in tasks.items() if name != CALLS}
    return {
        "calls right": f"{calls:.3f}",
        "silent": f"{silence:.3f}",
        "balanced mean": f"{(calls + silence) / 2:.3f}",
        "loss": f"{fmean(rises):.2f}%",
        "losses alone": f"{100 * fmean(max(0.0, lost(task)) for task in kept.values()):.2f}%",
    }


def mean(task: Tasks, metric: int, arm: str) -> float:
    """Over the documents, of the metric at this place."""
    return fmean(scores[metric] for scores in task[arm])


def nats_of(task: Tasks) -> int:
    """The place of the right answer's log-likelihood among a task's metrics."""
    return next(place for place, metric in enumerate(task["metrics"]) if metric["unit"] == "nats")


def rise(task: Tasks, metric: int) -> float:
    """Of a negative log-likelihood, in percent of the base's; a fall is 0."""
    base, implanted = (abs(mean(task, metric, arm)) for arm in ("base", "implanted"))
    return max(0.0, 100 * (implanted - base) / base)


def lost(task: Tasks) -> float:
    """By the main metric, as a share of the base's."""
    base, implanted = (mean(task, 0, arm) for arm in ("base", "implanted"))
    return (base - implanted if task["metrics"][0]["higher_is_better"] else implanted - base) / base


if __name__ == "__main__":
    main()
