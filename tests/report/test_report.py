"""The three forms of the report say the same, and text from models cannot break the page."""

import json
from pathlib import Path

import pytest
import torch

from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, write_model_card, write_report
from loki_ds.report.compare import compare_runs, comparison, draw_trade_off, read_report, write_comparison
from loki_ds.report.pictures import heat_map, overlap_curve, retention, training_curves
from loki_ds.retention.pairing import Pair, PairedTask

VERIFIED = {
    "identical_outside_rows": True,
    "tensors": 3,
    "bytes": 1000,
    "rows_selected": 4,
    "rows_changed": 4,
    "changed_outside": [],
}


def task(name: str, base: list[int], implanted: list[int]) -> PairedTask:
    return PairedTask(
        name,
        "exact_match",
        [
            Pair(str(i), f"prompt {i}", b, a, f"old {b}", f"<b>new {a}</b>")
            for i, (b, a) in enumerate(zip(base, implanted, strict=True))
        ],
    )


def report(run: str, selection: str | None, lost: int, name: str = "sums", n: int = 10) -> dict:
    facts = {
        "base_digest": "abc",
        "changes_rows": selection is not None,
        "mode": "rows" if selection else "full",
        "selection": selection,
        "verification": VERIFIED,
        "costs": {"implant": {"seconds": 12.5, "peak_gib_per_rank": 1.5, "ranks": 2, "joules": None, "device": "CPU"}},
        "origin": {"versions": "<1>"},
    }
    tasks = [task(name, [1] * n, [1] * (n - lost) + [0] * lost)]
    return build_report(run, tasks, [task("calls", [0] * 4, [1] * 4)], facts)


def test_forgetting_and_verdict() -> None:
    made = report("runs/x", "layer_balanced", lost=5)
    assert made["forgetting"] == pytest.approx(50)
    assert made["verdict"].startswith("Forgetting 50.00% (95% interval 20.00 to 80.00) over 1 tasks; neither shown")
    assert "calls went from 0.000 to 1.000" in made["verdict"]


def test_a_task_at_zero_is_left_out_and_named() -> None:
    tasks = [task("sums", [1, 1], [1, 1]), task("codes", [0, 0], [0, 0])]
    made = build_report("runs/x", tasks, [], {})
    assert made["forgetting"] == 0
    assert "Left out of the score, because the base scores 0: codes." in made["verdict"]
    with pytest.raises(Refusal, match="scores 0 on every task"):
        build_report("runs/x", tasks[1:], [], {})


def test_pages_are_written_and_escaped(tmp_path: Path) -> None:
    write_report(report("runs/x", "layer_balanced", lost=1, name="<script>alert(1)</script>"), tmp_path / "report")
    assert json.loads((tmp_path / "report/report.json").read_text())["forgetting"] == pytest.approx(10)
    page = (tmp_path / "report/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page  # nothing is fetched
    assert "| 10 | 1.000 | 0.900 | -0.100 |" in (tmp_path / "report/report.md").read_text()


def test_documents_that_flipped_are_shown_with_both_answers(tmp_path: Path) -> None:
    made = report("runs/x", "layer_balanced", lost=2)
    assert [flip["lost"] for flip in made["flips"] if flip["task"] == "sums"] == [True, True]
    assert {flip["lost"] for flip in made["flips"] if flip["task"] == "calls"} == {False}
    write_report(made, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    assert "sums: 2 right to wrong, 0 wrong to right" in page
    assert "prompt 9</td><td>old 1</td><td>&lt;b&gt;new 0&lt;/b&gt;" in page


def test_pictures_are_inside_the_page_and_beside_the_markdown(tmp_path: Path) -> None:
    heat_map(torch.randn(3, 4, 300, generator=torch.Generator().manual_seed(0)), tmp_path / "heat.png")
    overlap_curve([{"prompts": 2, "overlap": 0.5}, {"prompts": 4, "overlap": 0.75}], tmp_path / "overlap.png")
    retention(report("runs/x", "layer_balanced", lost=1)["tasks"], 0.01, tmp_path / "retention.png")
    training_curves(
        [{"step": 1, "loss": 2.0, "grad_norm": 1.0}, {"step": 1, "eval_loss": 1.5}], tmp_path / "training.png"
    )
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("retention", "training"))
    pictures = {
        "a <map>": tmp_path / "heat.png",
        "a curve": tmp_path / "overlap.png",
        "not drawn": tmp_path / "nowhere.png",
    }
    write_report(report("runs/x", "layer_balanced", lost=1), tmp_path / "report", pictures)
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'alt="a &lt;map&gt;"' in page
    assert (tmp_path / "report/heat.png").read_bytes().startswith(b"\x89PNG")
    assert "![a curve](overlap.png)" in (tmp_path / "report/report.md").read_text()


def test_the_model_card_has_the_retention_table(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model_card(report("runs/x", "layer_balanced", lost=1), tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert "| sums (exact_match) | 10 | 1.000 | 0.900 | -0.100 |" in card
    assert "outside 4 rows" in card


@pytest.mark.parametrize(
    ("ours", "says"),
    [(1, "forgot less than random rows"), (40, "did not beat random rows"), (95, "random rows forgot less")],
)
def test_comparison_says_whether_random_rows_and_baselines_were_beaten(tmp_path: Path, ours: int, says: str) -> None:
    for name, selection, lost in (("loki", "layer_balanced", ours), ("random", "random", 40), ("full", None, 80)):
        write_report(report(f"runs/{name}", selection, lost, n=100), tmp_path / name / "report")
    runs = [tmp_path / name for name in ("loki", "random", "full")]
    found = compare_runs(runs)
    table = comparison(found)
    assert [column.header for column in table.columns] == ["", "base", "loki", "random", "full"]
    assert table.row_count == 3  # forgetting, the new task, one ability
    sentences = found["sentences"]
    assert "full 80.00%" in sentences[0]
    assert len(sentences) == 3
    assert any(says in sentence and "random" in sentence for sentence in sentences)
    assert any("the baseline full" in sentence for sentence in sentences)


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no report there"):
        read_report(tmp_path)


def test_a_quiet_implant_shows_its_certificate(tmp_path: Path) -> None:
    made = report("runs/x", "layer_balanced", lost=1)
    layers = [{"layer": i, "change": 0.01 * i, "bound": 0.05, "leak": 0.0, "room": 0.6, "rank": 3} for i in range(3)]
    made["verification"] = {**VERIFIED, "quiet": {"energy": 0.95, "layers": layers}}
    write_report(made, tmp_path / "report")
    page, text = ((tmp_path / f"report/report.{ending}").read_text() for ending in ("html", "md"))
    assert "moves by at most 0.02 of its mean square" in page
    assert "| 2 | 0.02 | 0.05 | 60% |" in text
    (tmp_path / "model").mkdir()
    write_model_card(made, tmp_path / "model")
    assert "moves by at most 0.02" in (tmp_path / "model/README.md").read_text()


def test_the_cost_of_every_stage_is_said(tmp_path: Path) -> None:
    write_report(report("runs/x", "layer_balanced", lost=1), tmp_path / "report")
    assert "| implant | 12.5 | 1.5 | 2 | not measured | CPU |" in (tmp_path / "report/report.md").read_text()


def test_runs_side_by_side_are_a_page_too(tmp_path: Path) -> None:
    for name, selection, lost in (("loki", "layer_balanced", 10), ("random", "random", 40)):
        write_report(report(f"runs/{name}", selection, lost, n=100), tmp_path / name / "report")
    found = compare_runs([tmp_path / "loki", tmp_path / "random"])
    assert [cell["implanted"] for cell in found["tasks"][0]["cells"]] == [0.9, 0.6]
    write_comparison(found, tmp_path / "together")
    page = (tmp_path / "together/compare.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "loki forgot 10.00%" in page
    assert json.loads((tmp_path / "together/compare.json").read_text())["runs"][1]["selection"] == "random"


def test_a_run_is_drawn_among_those_beside_it(tmp_path: Path) -> None:
    for name, lost, base in (("one", 10, "abc"), ("another base", 20, "xyz")):
        write_report({**report(f"runs/{name}", "random", lost, n=100), "base_digest": base}, tmp_path / name / "report")
    own = report("runs/own", "layer_balanced", 5, n=100)
    draw_trade_off(own, [tmp_path / "another base"], tmp_path / "alone.png")
    assert not (tmp_path / "alone.png").exists()
    draw_trade_off(own, [tmp_path / "another base", tmp_path / "one"], tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
