"""Both sides of a decision stand together, and neither hides the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paired import task

from loki_ds.recipe.sections import RetentionSection
from loki_ds.report.build import build_report, write_report
from loki_ds.report.compare import compare_runs, comparison, write_comparison
from loki_ds.report.decisions import interval_of_mean
from loki_ds.report.schema import Report
from loki_ds.report.verdict import gate
from loki_ds.retention.statistics import paired_proportions_interval

FACTS: dict[str, Any] = {
    "base_digest": "abc",
    "changes_rows": False,
    "mode": "full",
    "selection": None,
    "verification": None,
    "costs": {},
    "origin": {},
    "settings": {},
}
N = 300
SECTION = RetentionSection.model_validate(
    {"abilities": {"tasks": ["silence"]}, "new_task": {"tasks": ["calls"]}, "margin": 0.05}
)


def share(right: float) -> list[int]:
    return [1] * round(N * right) + [0] * (N - round(N * right))


def both(base: tuple[float, float], model: tuple[float, float]) -> Report:
    """The report on shares (calls right where one fits, silent where none fits)."""
    calls, silence = (task(share(base[i]), share(model[i]), of) for i, of in enumerate(("calls", "silence")))
    return build_report("runs/x", [silence, calls], SECTION, FACTS, {"silence": "calls"})


@pytest.mark.parametrize("stub", [(0.0, 1.0), (0.6, 0.0)], ids=["never calls", "always calls"])
def test_a_stub_fails_the_gate(stub: tuple[float, float]) -> None:
    report = both((0.6, 0.9), stub)
    assert report["decisions"][0]["verdict"] == "lost"
    status, sentence = gate(report)
    assert status == 2
    assert sentence.startswith(("Lost on both sides together", "Lost: silence"))
    assert f"right where one fits (calls) 0.600 to {stub[0]:.3f}, silent where none fits (silence)" in sentence


def test_what_is_not_shown_of_both_sides_is_no_pass() -> None:
    """Four documents that all lose their silence are few, but no reason to let them pass."""
    calls, kept = task([0] * 11, [1] * 9 + [0] * 2, "calls"), task(share(0.9), share(0.9), "other")
    silence = task([1] * 4, [0] * 4, "silence")
    section = {"abilities": {"tasks": ["other"]}, "new_task": {"tasks": ["calls", "silence"]}, "margin": 0.2}
    made = RetentionSection.model_validate(section)
    report = build_report("runs/x", [kept, calls, silence], made, FACTS, {"silence": "calls"})
    assert report["decisions"][0]["verdict"] == "not shown"
    status, sentence = gate(report)
    assert status == 3
    assert sentence.startswith("Not shown of both sides: right where one fits (calls) 0.000 to 0.818, silent")
    assert "New task: silence went from 1.000 to 0.000: not shown, it may have lost." in report["verdict"]


def test_the_side_of_silence_is_nothing_that_is_learned() -> None:
    calls, silence = task(share(0.0), share(0.8), "calls"), task(share(1.0), share(0.9), "silence")
    section = {"abilities": {"tasks": ["other"]}, "new_task": {"tasks": ["calls", "silence"]}}
    tasks = [task(share(0.9), share(0.9), "other"), calls, silence]
    made = RetentionSection.model_validate(section)
    assert build_report("runs/x", tasks, made, FACTS, {"silence": "calls"})["learned"] == "learned"


def test_without_its_opposite_the_stub_that_never_calls_would_pass() -> None:
    silence = task(share(0.9), share(1.0), "silence")
    alone = RetentionSection.model_validate({"abilities": {"tasks": ["silence"]}, "margin": 0.05})
    report = build_report("runs/x", [silence], alone, FACTS, {"silence": "calls"})
    assert (report["decisions"], gate(report)[0]) == ([], 0)


def test_who_learns_both_sides_passes() -> None:
    report = both((0.5, 0.9), (0.8, 0.9))
    (decision,) = report["decisions"]
    assert (decision["base"], decision["implanted"], decision["change"]) == pytest.approx((0.7, 0.85, 0.15))
    assert decision["verdict"] == "kept"
    assert gate(report)[0] == 0


def test_the_silence_of_a_base_that_cannot_call_is_no_skill() -> None:
    assert "the base cannot do it, so its silence is no skill." in both((0.0, 1.0), (0.4, 1.0))["headline"]
    assert "no skill" not in both((0.3, 1.0), (0.4, 1.0))["headline"]


def test_the_interval_of_the_balanced_mean_covers_the_truth() -> None:
    """Of 1,000 pairs of samples, whose true changes are known."""
    draw, covered = np.random.default_rng(0), 0
    sides = ((0.7, 0.2, 0.3), (0.3, 0.1, 0.15))  # right before; of these wrong after; of the others right after
    truth = sum(-before * falls + (1 - before) * rises for before, falls, rises in sides) / 2
    for _ in range(1000):
        lines = []
        for before, falls, rises in sides:
            base = draw.random(120) < before
            model = np.where(base, draw.random(120) >= falls, draw.random(120) < rises)
            ci = paired_proportions_interval(base.astype(float), model.astype(float))
            lines.append({"change": float(model.mean() - base.mean()), "ci": ci})
        low, high = interval_of_mean(*lines)  # type: ignore[arg-type]  # it reads no other keys
        covered += low <= truth <= high
    assert 0.94 <= covered / 1000 <= 0.98


def test_both_sides_stand_in_every_form(tmp_path: Path) -> None:
    for name, model in (("mute", (0.0, 1.0)), ("taught", (0.8, 0.9))):
        write_report(both((0.6, 0.9), model), tmp_path / name / "report")
    page, text = ((tmp_path / f"mute/report/report.{ending}").read_text() for ending in ("html", "md"))
    assert '<h2 id="decisions">Both sides of a decision</h2>' in page
    assert "| calls, silence | 0.600 to 0.000 | 0.900 to 1.000 | 0.750 to 0.500 |" in text
    compared = compare_runs([tmp_path / "mute", tmp_path / "taught"])
    assert [cell and cell["verdict"] for cell in compared["decisions"][0]["cells"]] == ["lost", "kept"]
    assert "balanced mean of calls and silence" in [*comparison(compared).columns[0].cells]
    write_comparison(compared, tmp_path / "page")
    assert json.loads((tmp_path / "page/compare.json").read_text())["decisions"][0]["base"] == pytest.approx(0.75)
    assert "calls, silence</small>" in (tmp_path / "page/compare.html").read_text()
