"""The paper's forgetting score over a suite of tasks.

Pure arithmetic; also an `evaluate` metric module (eval/metrics/forgetting).
"""

from collections.abc import Sequence


def forgetting(base: Sequence[float], implanted: Sequence[float]) -> float:
    """`Avg = 100/N * sum_i (So_i - St_i) / So_i`, in percent; below zero when scores rose.

    Args:
        base: each task's score before implanting, above 0.
        implanted: the same tasks' scores after.

    Raises:
        ValueError: no tasks, a different number of scores, or a base score of 0 (nothing there to
            forget).
    """
    if len(base) != len(implanted) or not base:
        raise ValueError(f"forgetting needs one score per task on both sides, got {len(base)} and {len(implanted)}")
    if min(base) <= 0:
        raise ValueError("forgetting is relative to the base score, which is 0 or less for a task")
    return 100 / len(base) * sum((before - after) / before for before, after in zip(base, implanted, strict=True))
