"""Runs at equal skill and at equal size, along their dials."""

import json
from pathlib import Path
from typing import Any

import pytest

from loki_ds.report.equal import Dial, dial_of, equal_sentences


def run(folder: Path, losses: list[float], size: float, chosen: int = 1) -> tuple[Path, Any]:
    """Scales a half and 1, at which the new task goes from 0.1 to 0.3 and to 0.9."""
    (folder / "tune").mkdir(parents=True)
    skills = [0.3, 0.9]
    curve = [
        {"scale": [scale, 0.0], "skill": skill, "base_skill": 0.1, "losses_only": lost}
        for scale, skill, lost in zip([0.5, 1.0], skills, losses, strict=True)
    ]
    (folder / "tune/curve.json").write_text(json.dumps(curve))
    (folder / "tune/chosen.json").write_text(json.dumps(curve[chosen]))
    change = size * curve[chosen]["scale"][0]  # type: ignore[index]
    return folder, {"run": str(folder), "verification": {"change": change}}


def test_a_dial_is_straight_between_what_was_measured(tmp_path: Path) -> None:
    dial = dial_of(*run(tmp_path / "a", [1.0, 5.0], 0.02, chosen=0))
    assert dial == Dial("a", [0.0, 0.5, 1.0], [0.1, 0.3, 0.9], [0.0, 1.0, 5.0], pytest.approx(0.02))
    assert dial.scale_of_skill(0.2) == pytest.approx(0.25)
    assert dial.scale_of_skill(0.6) == pytest.approx(0.75)
    assert dial.loss_at(0.75) == pytest.approx(3.0)


def test_the_sentences(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", [1.0, 5.0], 0.02), run(tmp_path / "b", [0.2, 2.0], 0.04)
    none = (tmp_path / "c", {"run": "c", "verification": None})
    runs, reports = zip(one, other, none, strict=True)
    assert equal_sentences(runs, reports) == [
        "At a score of 0.900 on the new task, along their dials, the runs lose: b 2.00% (scale 1.00), "
        "a 5.00% (scale 1.00).",
        "At a change of 2% of the weights, along their dials, the runs lose: b 0.20% (scale 0.50), "
        "a 5.00% (scale 1.00).",
    ]
    assert equal_sentences(runs[:1], reports[:1]) == []
