"""A rate found by both sides: the rule, what it needs, and short trainings on two ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal
from loki_ds.stages.rates import Tried, _of_trial, choose, try_rates


@pytest.mark.parametrize(
    ("heldout", "drift", "chosen"),
    [
        ((1.00, 0.50, 0.40), (0.1, 0.2, 0.3), "3"),  # only one has learned enough
        ((1.00, 0.42, 0.40), (0.1, 0.2, 0.3), "2"),  # of two that have, the one that drifts less
        ((0.40, 0.41, 9.00), (0.2, 0.1, 0.0), "2"),  # not the one that learns nothing
    ],
)
def test_of_the_rates_that_learn_enough_the_one_that_drifts_least(
    heldout: tuple[float, ...], drift: tuple[float, ...], chosen: str
) -> None:
    tried = [Tried(str(i + 1), *both) for i, both in enumerate(zip(heldout, drift, strict=True))]
    assert choose(tried).rate == chosen


@pytest.mark.parametrize(
    ("overrides", "rates", "says"),
    [
        ([], ["1e-3", "quick"], "--rates holds 'quick', allowed are numbers above 0"),
        ([], ["0"], "--rates holds '0'"),
        (["data.heldout=null"], ["1e-3"], "data.heldout is missing"),
        (["selection.strategy=random", "protected=null"], ["1e-3"], "the section 'protected' is missing"),
    ],
)
def test_what_could_not_tell_rates_apart_is_refused(overrides: list[str], rates: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        try_rates(load_recipe(ROOT / "recipes/tiny/loki.yaml", overrides), rates, 2, lambda _: ["false"])


def test_a_run_folder_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path / "run+implant.rehearse={prompts: {a.jsonl: 0.15}}"
    assert load_recipe(ROOT / "recipes/tiny/loki.yaml", _of_trial("1e-3", 2, root, measure=True)).run == str(root)


def rates(folder: Path) -> str:
    """What `loki-ds rates` prints of two rates."""
    few = (ROOT / "recipes/tiny/data/toolcalls/heldout.jsonl").read_text().splitlines(keepends=True)[:8]
    (folder / "heldout.jsonl").write_text("".join(few))
    overrides = [
        *(f"data.heldout={folder / 'heldout.jsonl'}", "protected.prompts=recipes/tiny/data/protected.jsonl"),
        *("data.train=tests/few/train.jsonl", "protected.per_subject=4", "training.per_device_train_batch_size=4"),
        f"run={folder / 'run'}",
    ]
    typed = ["tiny/random", *overrides, "--gpus", "1", "--steps", "3", "--rates", "1e-4", "5e-3"]
    command = [sys.executable, "-m", "loki_ds.cli.commands", "rates", *typed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("rates")
    return folder, rates(folder)


@pytest.mark.slow
def test_what_is_tried_does_not_train_again(tried: tuple[Path, str]) -> None:
    assert "train_runtime" not in rates(tried[0])


def test_short_trainings_and_the_chosen_one(tried: tuple[Path, str]) -> None:
    folder, said = tried
    assert said.endswith("training.learning_rate=5e-3\n")
    assert "train_runtime" in said
    found = json.loads((folder / "run/rates.json").read_text())
    gentle, strong = found["tried"]
    assert (found["steps"], found["chosen"]) == (3, "5e-3")
    assert strong["heldout"] < gentle["heldout"]
    assert strong["drift"] > gentle["drift"] > 0
    rows = [json.loads((run / "positions.json").read_text()) for run in (folder / "run", folder / "run/rates/0.005x3")]
    assert rows[0] == rows[1]
