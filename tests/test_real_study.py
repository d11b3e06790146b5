"""The registered study: its tests by run, its places, its cells."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from scipy import stats

from loki_ds.positions import Positions
from loki_ds.recipe import RetentionSection
from loki_ds.recipe_file import load_recipe

STUDIES = ROOT / "eval/studies"
sys.path.insert(0, str(STUDIES))  # as when its scripts run
from by_other_choices import loss_where_last  # noqa: E402
from by_run import (  # noqa: E402
    Place,
    Seed,
    against_highest,
    against_random,
    at_equal_skill,
    common_skill,
    equivalence,
    holm,
    loss_at,
    losses,
    places,
    seeds_of,
)
from one_base import put_in  # noqa: E402
from primary import verdict  # noqa: E402
from real_study_report import negative_control, told_apart  # noqa: E402

RANDOM = np.random.default_rng(0)
STUDY = yaml.safe_load((STUDIES / "real_study.yaml").read_text())
RUN = [Place(0, 0, 0), Place(1, 4, 0.5), Place(5, 6, 1.0)]


@pytest.mark.parametrize(("skill", "loss"), [(0, 0), (2, 0.5), (4, 1), (5, 3), (6, 5)])
def test_a_loss_at_equal_skill_lies_on_the_straight_lines_between_places(skill: float, loss: float) -> None:
    assert loss_at(RUN, skill=skill) == pytest.approx(loss)


def test_beyond_its_places_a_run_has_no_loss() -> None:
    assert np.isnan(loss_at(RUN, skill=6.1))
    assert loss_at(RUN, size=0.25) == pytest.approx(0.5)


def test_a_run_that_falls_back_is_looked_at_where_it_first_gets_there() -> None:
    falling = [Place(0, 0, 0), Place(1, 10, 0.5), Place(5, 6, 1.0)]
    assert loss_at(falling, skill=8) == pytest.approx(0.8)
    assert loss_where_last(falling, skill=8) == pytest.approx(3)
    assert loss_where_last(RUN, skill=5) == pytest.approx(loss_at(RUN, skill=5))


def test_runs_are_compared_where_all_of_them_have_been() -> None:
    weaker = [Place(0, 0, 0), Place(1, 5, 1.0)]
    assert common_skill([RUN, weaker]) == pytest.approx(4.5)


def test_a_loss_counts_rises_alone_and_in_percent_of_the_base() -> None:
    gold, code = "log-likelihood of the gold answer", "bits per byte of the text"
    base = {"calls": {gold: -10.0}, "a": {gold: -2.0}, "b": {gold: -4.0}, "code": {code: 0.5}}
    now = {"calls": {gold: -4.0}, "a": {gold: -2.2}, "b": {gold: -3.0}, "code": {code: 0.6}}
    assert losses(base, now, ["a", "b", "code"]) == pytest.approx({"a": 10, "b": -25, "code": 20})
    cell = {"change": 0.2, "places": {"1": now, "0.5": base}}
    found = places(base, cell, ["a", "b", "code"], "calls")
    assert found[1:] == [Place(0, 0, 0.1), pytest.approx(Place(10, 6, 0.2))]


@pytest.mark.parametrize(("code", "said"), [(0.53, "6.0% on code, so losses can"), (0.52, "4.0% on code, so NOTHING")])
def test_the_report_says_whether_full_fine_tuning_loses_enough(code: float, said: str) -> None:
    study = {"covered": ["real_gold_mmlu"], "held out": ["real_code"]}
    gold, bits = "log-likelihood of the gold answer", "bits per byte of the text"
    base = {"real_gold_mmlu": {gold: -2.0}, "real_code": {bits: 0.5}}
    found = {"base": {"first": base}, "cells": {"lowest, 0": {"arm": "lowest"}}}
    assert told_apart(study, found) == "Full fine-tuning has not run yet."
    for seed, mmlu in enumerate((-1.0, -2.0)):
        places = {"1": {"real_gold_mmlu": {gold: mmlu}, "real_code": {bits: code}}}
        found["cells"][f"full, {seed}"] = {"arm": "full", "places": places}
    assert said in told_apart(study, found)


def test_the_rank_is_held_against_every_order_of_the_runs() -> None:
    seeds = [Seed(0.0, 0, [1.0, 2.0]), Seed(1.5, 0, [1.0, 2.0, 3.0])]
    ranks, p = against_random(seeds)
    assert ranks == [1, 2]
    every = [sum(one) for one in itertools.product(range(1, 4), range(1, 5))]
    below, above = np.mean([one <= 3 for one in every]), np.mean([one >= 3 for one in every])
    assert p == pytest.approx(min(1, 2 * min(below, above)))


@pytest.mark.parametrize("kind", ["random", "highest"])
def test_where_nothing_matters_a_test_is_wrong_as_rarely_as_it_says(kind: str) -> None:
    wrong = 0
    for _ in range(400):
        drawn = [Seed(one[0], one[1], list(one[2:])) for one in RANDOM.normal(size=(2, 10))]
        wrong += (against_random if kind == "random" else against_highest)(drawn)[1] <= 0.05
    assert wrong / 400 <= stats.binom.ppf(0.999, 400, 0.05) / 400


def test_a_difference_as_large_as_none_is_found() -> None:
    seeds = [Seed(-9.0, 9.0, list(RANDOM.normal(size=8))) for _ in range(2)]
    assert against_random(seeds)[1] == pytest.approx(2 / 81)
    assert against_highest(seeds) == (-18, pytest.approx(2 / 90**2))


def test_runs_stand_beside_those_of_their_own_data_seed() -> None:
    cells = {name: {"arm": name[:-2], "seed": int(name[-1])} for name in ("lowest 0", "highest 0", "lowest 1")}
    cells |= {f"random {draw} {seed}": {"arm": "random", "seed": seed} for draw in range(2) for seed in range(2)}
    cells["full 0"] = {"arm": "full", "seed": 0}
    runs = {name: [Place(0, 0, 0), Place(number, 10, 1)] for number, name in enumerate(cells)}
    (seed,) = seeds_of(cells, runs, at_equal_skill)  # of the second no highest ran
    assert (seed.lowest, seed.highest, *seed.random) == pytest.approx((0, 0.9, 2.7, 4.5))


@pytest.mark.parametrize(
    ("lowest", "says"),
    [
        (-9.0, "against random a difference is shown (p 0.025), against highest a difference is shown (p 0.000)"),
        (0.0, "against random a difference is not shown"),
    ],
)
def test_the_verdict_is_said_in_the_registrations_words(lowest: float, says: str) -> None:
    draws = [float(one) for one in np.linspace(-0.2, 0.2, 8)]
    seeds = [Seed(lowest, 9.0 if lowest else 0.1, draws)] * 2
    assert says in verdict(seeds, final=True)
    assert verdict(seeds, final=False).startswith("Interim, and decides nothing: ")
    assert ("not shown to be equivalent to random rows" in verdict(seeds, final=True)) == (lowest < 0)


def test_the_base_stands_beside_itself_at_the_end() -> None:
    first = {"a": {"n": 2, "likelihood": -4.0}}
    found = {"base": {"first": first, "again": first}}
    assert negative_control(found) == "The base asked twice gives the same numbers."
    found["base"]["last"] = {"a": {"n": 2, "likelihood": -4.004}}
    assert negative_control(found).endswith("they differ by 1.0e-03 of themselves at most.")
    found["base"]["again"] = found["base"]["last"]
    assert "OTHER NUMBERS" in negative_control(found)


def test_holm_is_the_published_step_down() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})


def test_equivalence_of_one_seed_is_students_interval_for_one_more_draw() -> None:
    draws = [1.0, 2.0, 4.0, 3.0]
    found = equivalence([Seed(2.5, 0, draws)], margin=1.0)
    assert found is not None
    error = np.std(draws, ddof=1) * np.sqrt(1 + 1 / 4)
    low, high = stats.t.interval(0.9, 3, loc=0.0, scale=error)
    assert (found.difference, found.low, found.high) == pytest.approx((0, low, high))
    assert found.p_value == pytest.approx(stats.t.sf(1.0 / error, 3))
    assert equivalence([Seed(0, 0, [1.0])], margin=1.0) is None


def test_every_cell_has_a_recipe_a_rate_and_rows() -> None:
    for batch in STUDY["cells"]:
        for arm in batch["arms"]:
            own = STUDY["arms"][arm]
            assert own["class"] in STUDY["rates"]
            assert own.get("rows", "random") in {*STUDY["selections"], "random"}
            changes = [f"{key}={value}" for key, value in own.get("set", {}).items()]
            assert load_recipe(f"recipes/smollm2/{own['recipe']}.yaml", changes).training["max_steps"] > STUDY["steps"]
    for section in ("likelihoods", "scores"):
        assert RetentionSection(**STUDY[section]).abilities


def test_a_variant_is_in_the_base_for_a_while_and_leaves_no_trace(build_model: Callable, tmp_path: Path) -> None:
    model = build_model("llama", torch.float32)
    base, trained = tmp_path / "base", tmp_path / "trained"
    model.save_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    down = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        down[2] += 1
    model.save_pretrained(trained)
    with torch.no_grad():
        down[2] = before["model.layers.1.mlp.down_proj.weight"][2]
    with put_in(model, base, {"trained": str(trained), "scale": 0.5}):
        moved = down - before["model.layers.1.mlp.down_proj.weight"]
        assert torch.allclose(moved[2], torch.full_like(moved[2], 0.5), atol=1e-6)
        assert moved.count_nonzero() == moved.shape[1]
    Positions([[], [0, 3], [], []]).save(tmp_path / "rows.json")
    with put_in(model, base, {"zeroed": str(tmp_path / "rows.json")}):
        assert down[[0, 3]].count_nonzero() == 0
        assert (
            down.count_nonzero() == before["model.layers.1.mlp.down_proj.weight"][[1, 2, *range(4, len(down))]].numel()
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
