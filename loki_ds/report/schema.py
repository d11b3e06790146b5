"""`report.json`, key by key. What a run's report is made of, and what comparisons read."""

from typing import Any, TypedDict

from loki_ds.retention.statistics import TaskChange


class Asked(TypedDict):
    """How a task was asked."""

    shots: str
    limit: int | None  # documents drawn; None for all
    chat_template: bool | None  # None where it is not said
    filter: str  # empty for a likelihood
    version: str


class TaskLine(TaskChange):
    """One task by one metric on both models."""

    lost_percent: float | None  # of the base's score, below 0 for a gain; None where that is 0
    asked: Asked


class Decision(TypedDict):
    """Two tasks that are each other's opposite (`report.decisions`); both weigh alike."""

    acts: str  # the task where something is asked for
    refrains: str  # the task where nothing is
    acts_scores: tuple[float, float]  # base, implanted
    refrains_scores: tuple[float, float]
    base: float  # balanced mean
    implanted: float
    change: float
    ci: tuple[float, float]  # 95%
    verdict: str  # kept, lost (the mean, or either side) or not shown
    base_can_act: bool


class Document(TypedDict):
    """What both models said to a document."""

    task: str
    prompt: str
    gold: str  # the right answer
    base: str  # the answer given
    implanted: str


class Flip(Document):
    """A document that fell or rose by its task's main metric."""

    lost: bool


class Facts(TypedDict):
    """Where the figures come from.

    What a comparison of any two checkpoints does not know is None.
    """

    base_digest: str
    changes_rows: bool
    mode: str
    selection: str | None  # None when everything trained
    verification: dict[str, Any] | None  # verify.json
    costs: dict[str, dict[str, Any]]  # costs.json
    origin: dict[str, str]
    settings: dict[str, str]  # of the evaluation: dtype, seed, versions


class Report(Facts):
    """One run's report."""

    run: str
    outcome: str  # kept, lost or not shown: of all abilities
    learned: str | None  # learned or not learned: of all new tasks; None without any
    headline: str  # which, in one sentence
    verdict: str  # the sentences below it
    # Percent; None where the base scores 0 on every ability, so that nothing is there to lose.
    forgetting: float | None  # the paper's signed average
    forgetting_ci: tuple[float, float] | None
    losses_only: float | None  # gains counted as 0
    losses_only_ci: tuple[float, float] | None
    margin: float
    tasks: list[TaskLine]
    likelihoods: list[TaskLine]  # of the same tasks' gold answers
    new_task: list[TaskLine]
    decisions: list[Decision]
    flips: list[Flip]
    answers: list[Document]  # some of the new task's, whether they changed or not


class RunLine(TypedDict):
    """What a run is and what came of it, in a line."""

    name: str
    mode: str
    selection: str | None
    outcome: str
    learned: str | None
    losses_only: float | None
    losses_only_ci: tuple[float, float] | None
    forgetting: float | None
    forgetting_ci: tuple[float, float] | None
    skill: float | None
    identical_outside_rows: bool | None  # None where nobody compared
    change: float | None  # its size, as a share of the weights'
    seconds: float | None


class TaskRow(TypedDict):
    """One task in several runs; None where a run was not asked for it."""

    task: str
    metric: str
    base: float
    cells: list[TaskLine | None]


class DecisionRow(TypedDict):
    """One decision in several runs; None where a run was not asked for it."""

    acts: str
    refrains: str
    base: float
    cells: list[Decision | None]


class Comparison(TypedDict):
    """Runs side by side."""

    sentences: list[str]
    runs: list[RunLine]
    new_task: list[TaskRow]
    tasks: list[TaskRow]
    decisions: list[DecisionRow]
