"""The paper's forgetting score as an `evaluate` metric:
`evaluate.load("eval/metrics/forgetting")`.
"""

import datasets
import evaluate

from loki_ds.retention.forgetting import forgetting

_DESCRIPTION = (
    "Average relative loss over a suite of tasks, in percent: 100/N * sum_i (So_i - St_i) / So_i (LoKI, AAAI 2026)."
)
_KWARGS = "predictions: each task's score after implanting. references: the same tasks' scores before, above 0."
_CITATION = "Wang et al., LoKI: Low-damage Knowledge Implanting of Large Language Models, AAAI 2026, arXiv 2505.22120."


class Forgetting(evaluate.Metric):
    """Scores after implanting against scores before, task by task."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_KWARGS, features=features
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"forgetting": forgetting(references, predictions)}
