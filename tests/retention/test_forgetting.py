"""The paper's score by hand, in Python and as an `evaluate` metric."""

import evaluate
import pytest
from conftest import ROOT

from loki_ds.retention.forgetting import forgetting


def test_by_hand() -> None:
    assert forgetting([0.5, 0.8], [0.4, 0.8]) == pytest.approx(10.0)  # 20% and 0% of the base lost
    assert forgetting([0.5], [0.6]) == pytest.approx(-20.0)


def test_as_an_evaluate_metric(tmp_path) -> None:  # type: ignore[no-untyped-def]
    metric = evaluate.load(str(ROOT / "eval/metrics/forgetting"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[0.4, 0.8], references=[0.5, 0.8]) == pytest.approx({"forgetting": 10.0})


@pytest.mark.parametrize(("base", "implanted"), [([], []), ([0.5], [0.5, 0.5]), ([0.0], [0.5])])
def test_what_has_no_score_is_an_error(base: list[float], implanted: list[float]) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        forgetting(base, implanted)
