"""Rankings against measures worked by hand."""

from math import log2

import pytest
from conftest import ROOT

from loki_ds.judges.ranking import candidates, expected_score, load_beir, measure

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
