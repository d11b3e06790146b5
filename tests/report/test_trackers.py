"""Retention's figures reach a tracker, and a tracker that fails costs nothing."""

import logging
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_report import report

from loki_ds.report.trackers import send


def test_tensorboard_has_what_the_report_has(tmp_path: Path) -> None:
    made = report("runs/x", "layer_balanced", lost=2, n=10)
    send(made, ["tensorboard"], tmp_path)
    read = EventAccumulator(str(tmp_path / "x retention")).Reload()
    figures = {name: read.Scalars(name)[0].value for name in read.Tags()["scalars"]}
    assert figures["retention/losses_only"] == pytest.approx(20)
    assert figures["retention/sums/exact_match/model"] == pytest.approx(0.8)
    assert figures["retention/calls/exact_match/change"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "says"), [("codecarbon", "codecarbon has the training's figures alone"), ("aim", "aim did not take")]
)
def test_what_cannot_take_them_is_named(name: str, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        send(report("runs/x", "layer_balanced", lost=2), name, tmp_path)
    assert says in caplog.text
    send(report("runs/x", "layer_balanced", lost=2), "none", tmp_path)
    assert list(tmp_path.iterdir()) == []
