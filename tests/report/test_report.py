"""The three forms of the report say the same, and text from models cannot break the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from paired import task

from loki_ds.recipe.sections import RetentionSection
from loki_ds.refusal import Refusal
from loki_ds.report.build import build_report, write_model_card, write_report
from loki_ds.report.compare import compare_runs, comparison, draw_trade_off, is_read, read_report, write_comparison
from loki_ds.report.pictures import heat_map, overlap_curve, retention, training_curves
from loki_ds.report.verdict import gate

VERIFIED = {
    "identical_outside_rows": True,
    "tensors": 3,
    "bytes": 1000,
    "rows_selected": 4,
    "rows_changed": 4,
    "change": 0.0123,
    "change_by_layer": [0.02, 0.034],
    "changed_outside": [],
}

FACTS: dict[str, Any] = {
    "base_digest": "abc",
    "changes_rows": True,
    "mode": "rows",
    "selection": "random",
    "verification": VERIFIED,
    "costs": {"implant": {"seconds": 12.5, "peak_gib_per_rank": 1.5, "ranks": 2, "joules": None, "device": "CPU"}},
    "origin": {"training": "<1>"},
    "settings": {"dtype": "float32"},
}


def report(run: str, selection: str | None, lost: int, name: str = "sums", n: int = 10) -> dict:
    facts = {
        **FACTS,
        "changes_rows": selection is not None,
        "mode": "rows" if selection else "full",
        "selection": selection,
    }
    abilities = task([1] * n, [1] * (n - lost) + [0] * lost, name)
    nats = task([-1.0] * n, [-1.0] * (n - lost) + [-2.0] * lost, name, name="log-likelihood", unit="nats")
    return build_report(run, [abilities, nats, task([0] * 12, [1] * 12, "calls")], section(name), facts)


def section(*abilities: str, **changes: Any) -> RetentionSection:
    return RetentionSection.model_validate(
        {"abilities": {"tasks": [*abilities]}, "new_task": {"tasks": ["calls"]}, **changes}
    )


def test_the_verdict_at_a_glance() -> None:
    made = report("runs/x", "layer_balanced", lost=1, n=1000)
    assert (made["outcome"], made["headline"]) == ("kept", "Kept: 1 task within 1 point of the base.")
    assert made["forgetting"] == made["losses_only"] == pytest.approx(0.1)
    lost = report("runs/x", "layer_balanced", lost=31, n=1000)
    assert lost["outcome"] == "lost"
    assert lost["headline"].startswith("Lost: sums by 3.1 points (95% interval 2.")
    assert "Losses alone 3.10% (95% interval" in lost["verdict"]
    assert "with gains, the paper's average 3.10%" in lost["verdict"]
    few = report("runs/x", "layer_balanced", lost=0, n=10)
    assert few["headline"] == "Not shown: sums may have lost more than 1 point; too few documents or subtasks to tell."
    assert "New task: calls went from 0.000 to 1.000." in few["verdict"]
    assert [gate(one)[0] for one in (made, lost, few)] == [0, 2, 3]


def test_a_new_task_is_learned_and_not_kept() -> None:
    assert [line["verdict"] for line in report("runs/x", None, 0)["new_task"]] == ["learned"]


def test_a_new_task_of_few_subtasks_is_learned_by_its_documents() -> None:
    """Four subtasks say little of a fifth; a third of the documents learned from nothing is no
    chance."""
    subtasks = ["a"] * 44 + ["b"] * 44 + ["c"] * 44 + ["d"] * 44
    right = [i % 4 == 0 and s in "ab" for i, s in enumerate(subtasks)]
    group = task([0] * 176, [int(one) for one in right], "calls", clusters=subtasks)
    made = build_report("runs/x", [task([1] * 9, [1] * 9), group], section("sums"), {})
    assert [line["verdict"] for line in made["new_task"]] == ["learned"]
    assert made["new_task"][0]["p_holm"] > 0.05  # over subtasks


def test_gains_do_not_pay_in_the_headline() -> None:
    tasks = [task([1] * 1000, [1] * 900 + [0] * 100), task([0] * 500 + [1] * 500, [0] * 300 + [1] * 700, "codes")]
    made = build_report("runs/x", tasks, section("sums", "codes"), {})
    assert made["forgetting"] == pytest.approx(-15)
    assert made["losses_only"] == pytest.approx(5)
    assert made["outcome"] == "lost"
    assert [line["lost_percent"] for line in made["tasks"]] == pytest.approx([10, -40])


def test_a_task_at_zero_is_left_out_and_named() -> None:
    tasks = [task([1, 1], [1, 1]), task([0, 0], [0, 0], "codes")]
    made = build_report("runs/x", tasks, section("sums", "codes"), {})
    assert made["forgetting"] == 0
    assert "Left out of both figures, because the base scores 0 or less: codes." in made["verdict"]


def test_where_the_base_scores_nothing_there_is_a_report_and_it_says_so(tmp_path: Path) -> None:
    """A finished training always gets one."""
    dead = build_report("runs/dead", [task([0] * 50, [0] * 50, "codes")], section("codes"), FACTS)
    assert (dead["outcome"], dead["losses_only"], dead["forgetting"]) == ("not shown", None, None)
    assert dead["headline"].startswith("Nothing can be shown: the base scores 0 on every ability")
    write_report(dead, tmp_path / "dead" / "report")
    write_report(report("runs/loki", "layer_balanced", 1), tmp_path / "loki" / "report")
    compared = compare_runs([tmp_path / "dead", tmp_path / "loki"])
    assert "dead is not ranked: the base has no scores to lose." in compared["sentences"]
    write_comparison(compared, tmp_path / "page")
    assert gate(dead)[0] == 3


def test_what_learned_nothing_says_so_and_is_not_ranked(tmp_path: Path) -> None:
    for name, right in (("idle", [0] * 40), ("taught", [1] * 40)):
        made = [task([1] * 40, [1] * 40), task([0] * 40, right, "calls")]
        write_report(build_report(f"runs/{name}", made, section("sums"), FACTS), tmp_path / name / "report")
    first, second = compare_runs([tmp_path / "idle", tmp_path / "taught"])["sentences"][:2]
    assert first.startswith("Least lost first: taught ")
    assert "idle" not in first
    assert second == "idle is not ranked: it has not learned the new task."
    page = (tmp_path / "idle/report/report.html").read_text()
    assert '<span class="badge not-learned">not learned</span>' in page
    assert "calls went from 0.000 to 0.000: not learned" in page


def test_a_new_task_by_bits_per_byte_is_learned() -> None:
    texts = task([2.0, 2.1] * 50, [1.5, 1.6] * 50, "calls", name="bits", unit="bits per byte", higher_is_better=False)
    made = build_report("runs/x", [task([1] * 9, [1] * 9), texts], section("sums"), FACTS)
    assert [(line["metric"], line["verdict"]) for line in made["new_task"]] == [("bits", "learned")]
    assert made["likelihoods"] == []


def test_the_gold_answers_likelihood_stands_beside_right_or_wrong() -> None:
    made = report("runs/x", "layer_balanced", lost=2)
    assert [(line["metric"], line["unit"], line["worse"]) for line in made["likelihoods"]] == [
        ("log-likelihood", "nats", 2)
    ]
    assert [line["metric"] for line in made["tasks"]] == ["exact_match"]


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
    assert "sums: 2 worse, 0 better</summary>" in page
    for said in ("prompt 9</pre>", "right: <b>gold 9</b>", "base: old 1<", "model: &lt;b&gt;new 0&lt;/b&gt;"):
        assert said in page


def test_counts_are_of_all_documents_and_not_of_those_shown(tmp_path: Path) -> None:
    write_report(report("runs/x", "layer_balanced", lost=192, n=400), tmp_path / "report")
    assert "sums: 192 worse, 0 better (50 shown)" in (tmp_path / "report/report.html").read_text()


def test_how_each_task_was_asked_is_said(tmp_path: Path) -> None:
    made = build_report(
        "runs/x",
        [task([1] * 10, [1] * 10, clusters=["a", "b"] * 5), task([0] * 9, [1] * 9, "calls")],
        section("sums", abilities={"tasks": ["sums"], "limit": 10, "apply_chat_template": True}),
        {**FACTS, "settings": {"dtype": "bfloat16"}},
    )
    write_report(made, tmp_path / "report")
    page, text = ((tmp_path / f"report/report.{ending}").read_text() for ending in ("html", "md"))
    assert "| sums | 5 | 10 drawn | yes | none | 1.0 |" in text
    assert "- dtype: bfloat16" in text
    assert "Kept: no loss beyond 1 point lies" in page
    assert "2 subtasks" in page
    assert "{'" not in page


def test_pictures_are_inside_the_page_and_beside_the_markdown(tmp_path: Path) -> None:
    heat_map(torch.randn(3, 4, 300, generator=torch.Generator().manual_seed(0)), tmp_path / "heat.png")
    overlap_curve([{"prompts": 2, "overlap": 0.5}, {"prompts": 4, "overlap": 0.75}], 0.1, tmp_path / "overlap.png")
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


def test_the_model_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\ntags: [chat]\n---\nHello")
    write_model_card(report("runs/x", "layer_balanced", 1), tmp_path / "model", tmp_path / "base", "org/base-1B")
    card = (tmp_path / "model/README.md").read_text()
    assert "| sums (exact_match) | 10 | 1.000 | 0.900 | -0.100 |" in card
    assert "outside 4 rows" in card
    assert "of these sums is not shown to be kept" in card
    data = ModelCard.load(tmp_path / "model/README.md").data
    assert (data.base_model, data.license, data.language) == ("org/base-1B", "apache-2.0", ["en"])
    assert [(one.dataset_name, one.metric_value) for one in data.eval_results] == [("sums", 0.9), ("calls", 1.0)]
    assert metadata_load(tmp_path / "model/README.md")["model-index"][0]["name"] == "x"


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe---", b"---\n\ta: b\n---\n"])
def test_a_bases_broken_card_is_its_own_matter(card: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "README.md").write_bytes(card)
    write_model_card(report("runs/x", None, 1), tmp_path / "model", tmp_path, "org/base")
    assert metadata_load(tmp_path / "model/README.md")["base_model"] == "org/base"


def test_a_base_without_a_card_or_an_id_names_none(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model_card(report("runs/x", None, 1), tmp_path / "model", tmp_path, str(tmp_path))
    found = metadata_load(tmp_path / "model/README.md")
    assert found.keys().isdisjoint({"base_model", "license"})
    card = (tmp_path / "model/README.md").read_text()
    assert "taught a new task by full fine-tuning." in card
    assert "loki" not in found.get("tags", [])


@pytest.mark.parametrize(
    ("changes", "says", "tags"),
    [
        ({}, "base, taught a new task by LoKI (low-damage knowledge implanting).", True),
        ({"changes_rows": False, "mode": "lora"}, "base, taught a new task by LoRA.", False),
        (
            {"changes_rows": False, "mode": "full", "origin": {"pull": "fade 0.88"}},
            "base, taught a new task by full fine-tuning, pulled to the base.",
            False,
        ),
        ({"mode": "suppress"}, "base, with the selected rows set to zero.", True),
    ],
)
def test_a_card_says_how_the_model_came_to_be(changes: dict[str, Any], says: str, tags: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model_card(report("runs/x", "random", 1) | changes, tmp_path / "model", tmp_path, "base")
    assert says in (tmp_path / "model/README.md").read_text()
    assert ("loki" in metadata_load(tmp_path / "model/README.md").get("tags", [])) == tags


def test_what_trained_outside_rows_is_named(tmp_path: Path) -> None:
    changed = {"identical_outside_rows": False, "changed_outside": ["a", "b"]}
    for mode, says in (("full", "every parameter trained"), ("dora", "an adapter trained")):
        made = report("runs/x", None, 1) | {"mode": mode, "verification": VERIFIED | changed}
        write_report(made, tmp_path / mode)
        for ending in ("html", "md"):
            assert f"changed outside selected rows ({says})." in (tmp_path / mode / f"report.{ending}").read_text()


def test_gains_do_not_pay_in_a_comparison(tmp_path: Path) -> None:
    for name, fallen, risen in (("pays", 100, 400), ("holds", 10, 0)):
        tasks = [
            task([1] * 1000, [1] * (1000 - fallen) + [0] * fallen),
            task([0] * 1000, [1] * risen + [0] * (1000 - risen), "codes"),
            task([0] * 12, [1] * 12, "calls"),
        ]
        facts = {**FACTS, "selection": "layer_balanced" if name == "pays" else "random"}
        write_report(build_report(name, tasks, section("sums", "codes"), facts), tmp_path / name / "report")
    first, second = compare_runs([tmp_path / "pays", tmp_path / "holds"])["sentences"]
    assert first.startswith("Least lost first: holds ")
    assert "here random rows lost less than the selection by layer_balanced" in second


@pytest.mark.parametrize(
    ("ours", "says"),
    [(1, "lost less than random rows"), (40, "did not beat random rows"), (95, "random rows lost less")],
)
def test_comparison_says_whether_random_rows_and_baselines_were_beaten(tmp_path: Path, ours: int, says: str) -> None:
    for name, selection, lost in (("loki", "layer_balanced", ours), ("random", "random", 40), ("full", None, 80)):
        write_report(report(f"runs/{name}", selection, lost, n=100), tmp_path / name / "report")
    runs = [tmp_path / name for name in ("loki", "random", "full")]
    found = compare_runs(runs)
    table = comparison(found)
    assert [column.header for column in table.columns] == ["", "base", "loki", "random", "full"]
    assert table.row_count == 7  # verdict, learned, both figures, size, the new task, one ability
    sentences = found["sentences"]
    assert "full 80.00%" in sentences[0]
    assert len(sentences) == 3
    assert any(says in sentence and "random" in sentence for sentence in sentences)
    baseline = next(sentence for sentence in sentences[1:] if "full lost 80.00%" in sentence)
    assert "selection by" not in baseline  # full fine-tuning says nothing of the choice of rows


def test_a_report_of_an_older_version_is_named_and_drawn_beside_none(tmp_path: Path) -> None:
    (tmp_path / "old/report").mkdir(parents=True)
    (tmp_path / "old/report/report.json").write_text('{"run": "old", "forgetting": 3.0}')
    with pytest.raises(Refusal, match="written by an older loki-ds"):
        read_report(tmp_path / "old")
    assert not is_read(tmp_path / "old")


def test_runs_without_a_new_task_have_no_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made = {**report(f"runs/{name}", "random", 1), "new_task": [], "flips": []}
        write_report(made, tmp_path / name / "report")
    write_comparison(compare_runs([tmp_path / "one", tmp_path / "two"]), tmp_path / "together")
    assert "<img" not in (tmp_path / "together/compare.html").read_text()
    assert not (tmp_path / "together/trade_off.png").exists()


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no report there"):
        read_report(tmp_path)


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
    assert "loki lost 10.00%" in page
    assert json.loads((tmp_path / "together/compare.json").read_text())["runs"][1]["selection"] == "random"


def test_a_run_is_drawn_among_those_beside_it(tmp_path: Path) -> None:
    for name, lost, base in (("one", 10, "abc"), ("another base", 20, "xyz")):
        write_report({**report(f"runs/{name}", "random", lost, n=100), "base_digest": base}, tmp_path / name / "report")
    own = report("runs/own", "layer_balanced", 5, n=100)
    draw_trade_off(own, [tmp_path / "another base"], tmp_path / "alone.png")
    assert not (tmp_path / "alone.png").exists()
    draw_trade_off(own, [tmp_path / "another base", tmp_path / "one"], tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_ranked_each_by_its_own_losses(tmp_path: Path) -> None:
    for place, lost in (("a", 40), ("b", 1)):
        write_report(report("runs/x", "random", lost, n=100), tmp_path / place / "x" / "report")
    (first, *_) = compare_runs([tmp_path / "a/x", tmp_path / "b/x"])["sentences"]
    assert first == "Least lost first: b/x 1.00%, a/x 40.00%."


def test_runs_that_were_asked_something_else_are_not_ranked_together(tmp_path: Path) -> None:
    asked = report("runs/first", "random", lost=40, n=100)
    write_report(asked, tmp_path / "first/report")
    (task, *_) = asked["tasks"]
    write_report({**asked, "tasks": [{**task, "task": "names"}], "flips": []}, tmp_path / "less/report")
    write_report({**asked, "base_digest": "another"}, tmp_path / "other/report")
    write_report(report("runs/more", "random", lost=1, n=200), tmp_path / "more/report")
    compared = compare_runs([tmp_path / name for name in ("less", "first", "other", "more")])
    assert compared["sentences"][1:] == [
        "first is not ranked: it was not asked the documents that less was.",
        "other is not ranked: its base is not that of less.",
        "more is not ranked: it was not asked the documents that less was.",
    ]
    assert [row["task"] for row in compared["tasks"]] == ["names", *(task["task"] for task in asked["tasks"])]
    assert [cell is None for cell in compared["tasks"][0]["cells"]] == [False, True, True, True]


def test_some_of_the_new_tasks_answers_are_shown_even_where_nothing_changed(tmp_path: Path) -> None:
    made = report("runs/x", "random", lost=0, n=100)
    assert {answer["task"] for answer in made["answers"]} == {"calls"}
    assert len(made["answers"]) == 5
    write_report(made, tmp_path / "report")
    for ending in ("html", "md"):
        assert "What it says now" in (tmp_path / f"report/report.{ending}").read_text()
