"""What a report says at a glance: the outcome of all abilities, which one and by how much."""

from collections.abc import Sequence

from loki_ds.report.schema import Decision, Report, TaskLine
from loki_ds.retention.forgetting import Forgotten
from loki_ds.retention.statistics import gain_of

# What is said of a new task, by its verdict.
LEARNED = {"learned": "", "not shown": ": not learned, no more than by chance", "lost": ": lost"}
BOTH_SIDES = {"lost": "Lost on both sides together", "not shown": "Not shown of both sides", "kept": "Both sides"}
WORST_FIRST = ("lost", "not shown", "kept")
EXIT_STATUS = {"kept": 0, "lost": 2, "not shown": 3}  # of a gate


def outcome_of(tasks: Sequence[TaskLine], decisions: Sequence[Decision]) -> str:
    """`lost` when any is, or a decision; `kept` when all are, else `not shown`; and so where the
    base scores 0 on all, and has nothing to lose.
    """
    return _worst([_of_abilities(tasks), *(decision["verdict"] for decision in decisions)])


def _of_abilities(tasks: Sequence[TaskLine]) -> str:
    return "not shown" if nothing_to_lose(tasks) else _worst([task["verdict"] for task in tasks])


def _worst(verdicts: Sequence[str]) -> str:
    return next(verdict for verdict in WORST_FIRST if verdict in verdicts)


def nothing_to_lose(tasks: Sequence[TaskLine]) -> bool:
    """Whether the base scores 0 on every ability."""
    return all(task["unit"] == "score" and task["base"] <= 0 for task in tasks)


def learned_of(new: Sequence[TaskLine], decisions: Sequence[Decision]) -> str | None:
    """`learned` when all new tasks are, but those that ask for silence, if there are others; None
    without any.
    """
    silence = {decision["refrains"] for decision in decisions}
    taught = [task for task in new if task["task"] not in silence] or new
    if not taught:
        return None
    return "learned" if all(task["verdict"] == "learned" for task in taught) else "not learned"


def headline(tasks: Sequence[TaskLine], decisions: Sequence[Decision], margin: float) -> str:
    """Which tasks the outcome comes from, in one sentence, and one for each decision; what decides
    stands first.
    """
    said = [(_of_abilities(tasks), _of_tasks(tasks, margin))]
    said += [(decision["verdict"], both_sides(decision)) for decision in decisions]
    return " ".join(sentence for _, sentence in sorted(said, key=lambda each: WORST_FIRST.index(each[0])))


def both_sides(decision: Decision) -> str:
    """A decision in one sentence."""
    (before, after), (silent_before, silent_after) = decision["acts_scores"], decision["refrains_scores"]
    low, high = decision["ci"]
    said = (
        f"{BOTH_SIDES[decision['verdict']]}: right where one fits ({decision['acts']}) "
        f"{before:.3f} to {after:.3f}, silent where none fits ({decision['refrains']}) {silent_before:.3f} to "
        f"{silent_after:.3f}; balanced mean {decision['base']:.3f} to {decision['implanted']:.3f} (95% interval of "
        f"the change {low:+.3f} to {high:+.3f})"
    )
    return said + ("." if decision["base_can_act"] else "; the base cannot do it, so its silence is no skill.")


def _of_tasks(tasks: Sequence[TaskLine], margin: float) -> str:
    if nothing_to_lose(tasks):
        return (
            "Nothing can be shown: the base scores 0 on every ability, so there is nothing to lose; look at what it "
            "answers, and whether a filter is missing."
        )
    chosen = _of_abilities(tasks)
    named = [task for task in tasks if task["verdict"] == chosen]
    if chosen == "lost":
        losses = ", ".join(f"{task['task']} by {_amount(task)}" for task in named)
        return f"Lost: {losses}, of {_tasks(len(tasks))}."
    if chosen == "kept":
        return f"Kept: {_tasks(len(tasks))} within {points(margin)} of the base."
    names = ", ".join(task["task"] for task in named)
    return f"Not shown: {names} may have lost more than {points(margin)}; too few documents or subtasks to tell."


def sentences(
    signed: Forgotten | None, only: Forgotten | None, tasks: Sequence[TaskLine], new: Sequence[TaskLine], margin: float
) -> str:
    """The figures, and the tasks by their verdicts."""
    said = ["Losses: none can be stated."]
    if signed and only:
        counted = _tasks(sum(task["lost_percent"] is not None for task in tasks))
        gains = f"with gains, the paper's average {_percent(signed)}"
        said = [f"Losses alone {_percent(only)}; {gains}, over {counted}."]
    for verdict, meaning in (
        ("kept", f"Kept within {points(margin)}"),
        ("lost", "Lost, more than chance explains"),
        ("not shown", "Not shown either way"),
    ):
        names = [task["task"] for task in tasks if task["verdict"] == verdict]
        said += [f"{meaning}: {', '.join(names)}."] if names else []
    early = [f"{t['task']} after {t['n']:,} of {t['documents']:,}" for t in tasks if t["documents"] > t["n"]]
    said += [f"Decided before the last document; intervals speak of all: {', '.join(early)}."] if early else []
    unscored = [task["task"] for task in tasks if task["lost_percent"] is None]
    said += [f"Left out of both figures, because the base scores 0 or less: {', '.join(unscored)}."] if unscored else []
    for task in new:
        went = f"{task['task']} went from {task['base']:.3f} to {task['implanted']:.3f}"
        unclear = ": not shown, it may have lost" if task["verdict"] == "not shown" and gain_of(task) < 0 else ""
        said.append(f"New task: {went}{unclear or LEARNED[task['verdict']]}.")
    return " ".join(said)


def gate(report: Report) -> tuple[int, str]:
    """The exit status of a gate, and the sentence that says why."""
    return EXIT_STATUS[report["outcome"]], report["headline"]


def points(share: float) -> str:
    """A share as points: 0.01 is 1 point."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _amount(task: TaskLine) -> str:
    loss, low, high = -task["change"], -task["ci"][1], -task["ci"][0]
    if not task["higher_is_better"]:
        loss, low, high = task["change"], *task["ci"]
    if task["unit"] == "score":
        return f"{100 * loss:.1f} points (95% interval {100 * low:.1f} to {100 * high:.1f})"
    return f"{loss:.3g} {task['unit']} (95% interval {low:.3g} to {high:.3g})"


def _percent(figure: Forgotten) -> str:
    return f"{figure.percent:.2f}% (95% interval {figure.ci[0]:.2f} to {figure.ci[1]:.2f})"


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n} tasks"
