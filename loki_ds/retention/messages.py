"""What the main process and the arms hand each other, as JSON: a request, and what came of it."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict

from loki_ds.recipe.sections import TaskGroup
from loki_ds.tasks.loading import TaskFound
from loki_ds.tasks.metrics import Metric

Half = Literal["choosing", "confirming"]  # of the documents, where a scale is chosen


class Stop(BaseModel):
    """When a model is asked no more documents of an ability: see `retention.stopping`.

    base: the file of the base's answers, base_key: of what they are; abilities: how many of the
    groups of tasks are abilities, the first ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    base_key: str
    abilities: int
    margin: float


class Request(BaseModel):
    """One model and everything that is asked of it.

    `model` is its folder, `adapter` that of a PEFT adapter on it, `implant` a file of rows that are
    put into it once it is loaded. `tasks` is what the check found behind every name. Each of
    `processes` evaluates a share of the documents: process `part[0]` of `part[1]`. `seed` draws the
    documents of a limit; of those `half` is asked, None for all. `stop`: when no more are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    adapter: str | None = None
    implant: str | None = None
    tokenizer: str | None  # its folder, where it is not the model's
    dtype: str
    device: str
    trust_remote_code: bool
    processes: int
    devices_per_model: int
    batch_size: int
    include_path: list[str]
    allow_code_execution: bool
    chat_template_args: dict[str, Any] = {}
    think_end_token: str | None = None
    seed: int
    groups: list[TaskGroup]
    tasks: list[TaskFound]
    half: Half | None = None
    stop: Stop | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def names(self) -> list[str]:
        """All names that are asked for."""
        return [task for group in self.groups for task in group.tasks]

    @property
    def abilities(self) -> list[str]:
        """The names that may be stopped before all documents are asked."""
        return [task for group in self.groups[: self.stop.abilities if self.stop else 0] for task in group.tasks]


class Sample(TypedDict):
    """One document on one model."""

    doc_hash: str
    place: int  # in the task
    cluster: str | None  # the subtask's name in a group of tasks like MMLU
    scores: list[float | None]  # of the task's metrics, in their order; None where it has none
    prompt: str  # its end
    prompt_hash: str  # SHA-256 of all of it, as lm-eval has it
    answer: str  # in words: of a multiple choice the chosen one
    gold: str


class Stopped(TypedDict):
    """Why a task's last documents were not asked: the bounds of its gain over all of them
    (`retention.stopping.Bounds`), of how many.
    """

    documents: int
    low: float
    high: float
    p_value: float


class TaskSamples(TypedDict):
    """One task, or a group of them as one, on one model.

    stopped: where some of its documents were not asked.
    """

    version: dict[str, str]  # of each subtask
    shots: dict[str, int]
    metrics: list[Metric]  # the main one first
    by_size: bool  # whether a group's subtasks weigh by their documents
    samples: list[Sample]
    stopped: NotRequired[Stopped]


def together(parts: Sequence[dict[str, TaskSamples]]) -> dict[str, TaskSamples]:
    """Parts of one model's samples under one roof, in the documents' order, so that the whole does
    not depend on how many there were.
    """
    tasks: dict[str, TaskSamples] = {}
    for part in parts:
        for name, task_samples in part.items():
            task = tasks.setdefault(name, {**task_samples, "samples": [], "version": {}, "shots": {}})
            task["version"].update(task_samples["version"])
            task["shots"].update(task_samples["shots"])
            task["samples"] += task_samples["samples"]
    for task in tasks.values():
        task["samples"].sort(key=lambda sample: (sample["cluster"] or "", sample["place"]))
    return tasks


class ArmResult(TypedDict):
    """One model on everything that was asked of it."""

    tasks: dict[str, TaskSamples]
    tokenizer: str  # SHA-256 of all that turns a document into tokens
    libraries: dict[str, str]  # the versions that may change a score
    key: NotRequired[dict[str, Any]]  # all that determines them, where they are kept by it
