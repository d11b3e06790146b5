"""`report.json`, key by key. What a run's report is made of, and what comparisons read."""

from typing import Any, TypedDict


class TaskLine(TypedDict):
    """One task on both models (`retention.statistics.TaskChange`)."""

    task: str
    metric: str
    n: int  # documents
    base: float
    implanted: float
    change: float
    ci: tuple[float, float]  # 95%
    p_value: float
    p_holm: float
    right_to_wrong: int
    wrong_to_right: int
    detectable: float
    verdict: str  # kept, lost or not shown


class Flip(TypedDict):
    """A document whose score fell or rose."""

    task: str
    lost: bool
    prompt: str
    base: str  # the answer
    implanted: str


class Facts(TypedDict):
    """Where the figures come from."""

    base_digest: str
    changes_rows: bool
    mode: str
    selection: str | None  # None when everything trained
    verification: dict[str, Any]  # verify.json
    costs: dict[str, dict[str, Any]]  # costs.json
    origin: dict[str, str]


class Report(Facts):
    """One run's report."""

    run: str
    verdict: str
    forgetting: float  # percent
    forgetting_ci: tuple[float, float]
    margin: float
    tasks: list[TaskLine]
    new_task: list[TaskLine]
    flips: list[Flip]


class RunLine(TypedDict):
    """What a run is and what came of it, in a line."""

    name: str
    mode: str
    selection: str | None
    forgetting: float
    forgetting_ci: tuple[float, float]
    skill: float | None
    identical_outside_rows: bool
    seconds: float | None


class TaskRow(TypedDict):
    """One task in several runs; None where a run was not asked for it."""

    task: str
    metric: str
    base: float
    cells: list[TaskLine | None]


class Comparison(TypedDict):
    """Runs side by side."""

    sentences: list[str]
    runs: list[RunLine]
    new_task: list[TaskRow]
    tasks: list[TaskRow]
