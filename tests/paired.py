"""Paired tasks made from scores, for what works on them."""

from collections.abc import Sequence
from typing import Any

from loki_ds.retention.pairing import Pair, PairedTask
from loki_ds.tasks.metrics import Metric


def metric(name: str = "exact_match", **changes: Any) -> Metric:
    made: Any = {"name": name, "metric": name, "filter": "none", "unit": "score", "higher_is_better": True, **changes}
    return made


def task(
    base: Sequence[float],
    implanted: Sequence[float],
    of: str = "sums",
    clusters: Sequence[str] | None = None,
    **changes: Any,
) -> PairedTask:
    """Documents in order; changes: to the metric."""
    pairs = [
        Pair(
            f"{i:05d}",
            f"prompt {i}",
            b,
            a,
            f"old {b}",
            f"<b>new {a}</b>",
            clusters[i] if clusters else None,
            f"gold {i}",
        )
        for i, (b, a) in enumerate(zip(base, implanted, strict=True))
    ]
    return PairedTask(of, metric(**changes), pairs, shots={of: 5}, versions={of: "1.0"})
