"""Rankings against measures worked by hand."""

import json
from math import log2
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.judges.ranking import candidates, expected_score, load_beir, measure
from loki_ds.refusal import Refusal

BEIR = ROOT / "tests/retention/data/beir"


def test_measures_by_hand() -> None:
    # relevant passages at ranks 2 (grade 1) and 3 (grade 2) of four
    found = measure({"b": 1, "c": 2, "d": 0}, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
    assert found["mrr"] == pytest.approx(1 / 2)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["ndcg@10"] == pytest.approx((1 / log2(3) + 2 / log2(4)) / (2 / log2(2) + 1 / log2(3)))


def test_the_score_is_the_mean_label() -> None:
    assert expected_score([0.0] * 7) == pytest.approx(4)
    assert expected_score([-1000.0] * 6 + [-3.0]) == pytest.approx(7)


def test_candidates_come_from_the_first_stage_or_hold_every_judged_passage() -> None:
    data = load_beir(str(BEIR))
    assert data.corpus["d0"] == "about lamp\na text of lamp"
    assert candidates(data, str(BEIR / "first_stage.trec"), 2, 0) == {"q1": ["d3", "d0"], "q2": ["d4", "d5"]}
    drawn = candidates(data, None, 4, 0)
    assert {"d0", "d2"} <= set(drawn["q1"])
    assert len(drawn["q1"]) == len(set(drawn["q1"])) == 4
    assert drawn == candidates(data, None, 4, 0)


def folder(place: Path, judgements: str) -> str:
    for name, rows in {"corpus": ("d1", "d2", "d3"), "queries": ("q1", "q2")}.items():
        lines = [json.dumps({"_id": row, "text": f"text of {row}"}) + "\n" for row in rows]
        (place / f"{name}.jsonl").write_text("".join(lines))
    (place / "qrels").mkdir()
    (place / "qrels/test.tsv").write_text(judgements)
    return str(place)


@pytest.mark.parametrize(
    "judgements",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n",
        "query-id\tcorpus-id\tscore\n\nq1\td1\t1.0\nq2\td2\t2.0\n\n",
        "q1\td1\t1\nq2\td2\t2\n",
        "q1 0 d1 1\nq2 0 d2 2\n",
    ],
    ids=["BEIR", "decimals and blank lines", "no header", "TREC"],
)
def test_judgements_are_read_as_they_are_written(judgements: str, tmp_path: Path) -> None:
    assert load_beir(folder(tmp_path, judgements)).judged == {"q1": {"d1": 1}, "q2": {"d2": 2}}


@pytest.mark.parametrize(
    ("judgements", "says"),
    [
        ("q1\tGONE\t1\n", "name the passage 'GONE', which is not in the corpus"),
        ("q9\td1\t1\n", "name the query 'q9', which is not among the queries"),
        ("q1\td1\t0.5\n", r"line 1 is 'q1\\td1\\t0.5', allowed are a query, a passage and a whole number"),
        ("q1\td1\n", "line 1 is .*, allowed are a query, a passage and a whole number"),
    ],
)
def test_judgements_that_cannot_be_are_named(judgements: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        load_beir(folder(tmp_path, judgements))


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("q1 Q0 d1 1 9.1 bm25\n", "it ranks nothing for the query 'q2', which is judged"),
        ("q1 Q0 d1 1 9.1 x\nq2 Q0 GONE 1 9.1 x\n", "it ranks the passage 'GONE', which is not in the corpus"),
    ],
)
def test_a_first_stage_that_lacks_something_is_refused(run: str, says: str, tmp_path: Path) -> None:
    data = load_beir(folder(tmp_path, "q1\td1\t1\nq2\td2\t1\n"))
    (tmp_path / "run.trec").write_text(run)
    with pytest.raises(Refusal, match=says):
        candidates(data, str(tmp_path / "run.trec"), 3, 0)
