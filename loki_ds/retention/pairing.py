"""Join two arms' samples by document; what does not match is an error that names the task."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from loki_ds.refusal import Refusal
from loki_ds.retention.messages import ArmResult, Sample, Stopped, TaskSamples
from loki_ds.tasks.metrics import Metric


@dataclass(frozen=True)
class Pair:
    """One document on both arms; `cluster` is its subtask in a group of tasks like MMLU."""

    doc_hash: str
    prompt: str
    base: float
    implanted: float
    base_answer: str
    implanted_answer: str
    cluster: str | None = None
    gold: str = ""


@dataclass(frozen=True)
class PairedTask:
    """One task by one metric: its lm-eval name, and its documents on both arms.

    by_size: whether a group's subtasks weigh by their documents; shots, versions: of each subtask;
    stopped: what is known of all documents, if not all were asked and this metric decided.
    """

    task: str
    metric: Metric
    pairs: list[Pair]
    by_size: bool = True
    shots: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    stopped: Stopped | None = None


def pair(base: ArmResult, implanted: ArmResult, one_tokenizer: bool = True) -> list[PairedTask]:
    """Tasks of two arms (`worker.run_lm_eval`), samples joined by document hash, never by position.

    A task with several metrics comes once for each, its main one first; but for those that some
    document has no number for.

    one_tokenizer: whether both must have read the same tokens, as a base and what was made of it.

    Raises:
        Refusal: the arms differ in tokenizer, library versions, tasks, task versions, metrics,
            shots, documents or, of one tokenizer, in what was asked of them.
    """
    tasks = ", ".join(base["tasks"])
    for what in ("tokenizer", "libraries") if one_tokenizer else ("libraries",):
        if base[what] != implanted[what]:
            raise Refusal(
                f"tasks {tasks}: {what} differ: {base[what]} on the base and {implanted[what]} on the implanted model"
            )
    if set(base["tasks"]) != set(implanted["tasks"]):
        differing = sorted(set(base["tasks"]) ^ set(implanted["tasks"]))
        raise Refusal(f"the arms were not run on the same tasks: only one of them has {', '.join(differing)}")
    return [
        paired
        for task in base["tasks"]
        for paired in _pair_task(task, base["tasks"][task], implanted["tasks"][task], one_tokenizer)
    ]


def _pair_task(task: str, base: TaskSamples, implanted: TaskSamples, one_prompt: bool) -> list[PairedTask]:
    for what in ("version", "metrics", "shots", "by_size"):
        if base[what] != implanted[what]:
            raise Refusal(
                f"task {task}: {what} is {base[what]} on the base and {implanted[what]} on the implanted model"
            )
    stopped, asked = implanted.get("stopped"), base["samples"]
    if stopped is not None:
        seen = {(sample["cluster"], sample["place"]) for sample in implanted["samples"]}
        asked = [sample for sample in asked if (sample["cluster"], sample["place"]) in seen]
    before, after = _by_document(asked), _by_document(implanted["samples"])
    if before.keys() != after.keys():
        alone = len(before.keys() ^ after.keys())
        raise Refusal(
            f"task {task}: {alone} documents were seen by one arm only; both must evaluate the same documents"
        )
    other = sum(before[key]["prompt_hash"] != after[key]["prompt_hash"] for key in before) if one_prompt else 0
    if other:
        raise Refusal(
            f"task {task}: {other} documents were asked in other words on the base than on the implanted model; if the "
            "task's files changed in between, delete the base's answers (retention/answers, and .base-results beside "
            "the run)"
        )
    return [
        PairedTask(
            task,
            metric,
            [_pair(key[0], before[key], after[key], place) for key in sorted(before)],
            base["by_size"],
            base["shots"],
            base["version"],
            stopped if place == 0 else None,
        )
        for place, metric in enumerate(base["metrics"])
        if all(sample["scores"][place] is not None for sample in (*asked, *implanted["samples"]))
    ]


def _pair(doc_hash: str, before: Sample, after: Sample, place: int) -> Pair:
    return Pair(
        doc_hash,
        before["prompt"],
        float(before["scores"][place] or 0),
        float(after["scores"][place] or 0),
        before["answer"],
        after["answer"],
        before["cluster"],
        before["gold"],
    )


def _by_document(samples: list[Sample]) -> dict[tuple[str, int], Sample]:
    """Samples by document hash and occurrence (some data sets hold a document twice)."""
    by_document: dict[tuple[str, int], Sample] = {}
    occurrences: Counter[str] = Counter()
    for sample in samples:
        by_document[sample["doc_hash"], occurrences[sample["doc_hash"]]] = sample
        occurrences[sample["doc_hash"]] += 1
    return by_document


def main_metric_only(tasks: Iterable[PairedTask]) -> list[PairedTask]:
    """Each task once, by its main metric."""
    first: dict[str, PairedTask] = {}
    for task in tasks:
        first.setdefault(task.task, task)
    return list(first.values())
