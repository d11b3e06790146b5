"""What the main process and the arms hand each other, as JSON: a request, and what came of it."""

from typing import TypedDict

from pydantic import BaseModel, ConfigDict

from loki_ds.recipe import TaskGroup


class Request(BaseModel):
    """One model and everything that is asked of it.

    `model` is its folder. Each of `processes` evaluates a share of the documents: process
    `share[0]` of `share[1]`. `seed` draws the documents of a limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    tokenizer: str | None  # its folder, where it is not the model's
    dtype: str
    device: str
    trust_remote_code: bool
    backend: str
    processes: int
    devices_per_model: int
    batch_size: int
    include_path: str | None
    allow_code_execution: bool
    seed: int
    groups: list[TaskGroup]
    share: tuple[int, int] = (0, 1)

    @property
    def tasks(self) -> list[str]:
        """All names that are asked for."""
        return [task for group in self.groups for task in group.tasks]


class Sample(TypedDict):
    """One document on one model."""

    doc_hash: str
    place: int  # in the task
    cluster: str | None  # the subtask's name in a group of tasks like MMLU
    scores: list[float]  # of the task's metrics, in their order
    prompt: str  # its end
    answer: str


class TaskSamples(TypedDict):
    """One task, or a group of them as one, on one model."""

    version: dict[str, str]  # of each subtask
    shots: dict[str, int]
    metrics: list[str]  # the main one first
    samples: list[Sample]


class ArmResult(TypedDict):
    """One model on everything that was asked of it."""

    tasks: dict[str, TaskSamples]
    tokenizer: str  # SHA-256 of all that turns a document into tokens
    libraries: dict[str, str]  # the versions that may change a score
