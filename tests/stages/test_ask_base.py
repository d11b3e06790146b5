"""Tasks of which the base can do nothing are named before anything trains."""

import logging
from typing import Any

import pytest

from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.stages.ask_base import _look_at

METRIC = {"name": "exact_match", "metric": "exact_match", "filter": "none", "unit": "score", "higher_is_better": True}


def answered(scores: list[float]) -> Any:
    samples = [
        {"scores": [score], "prompt": "capital of France?", "gold": "Paris", "answer": " Paris"} for score in scores
    ]
    return {"metrics": [METRIC], "samples": samples}


def section(*names: str) -> RetentionSection:
    return RetentionSection.model_validate({"abilities": {"tasks": list(names)}})


def test_a_dead_task_is_named_with_what_was_asked_right_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="loki_ds"):
        _look_at({"tasks": {"dead": answered([0, 0]), "live": answered([0, 1])}}, section("dead", "live"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "retain: task dead: the base scores 0 on all 2 documents; asked 'capital of France?', where 'Paris' is right, "
        "it says ' Paris'; is a filter missing, or a template?"
    )


def test_where_all_are_dead_nothing_trains() -> None:
    with pytest.raises(
        Refusal, match=r"the base scores 0 on all of them, so there is nothing to lose; task a: .*Paris"
    ):
        _look_at({"tasks": {"a": answered([0]), "b": answered([0])}}, section("a", "b"))
