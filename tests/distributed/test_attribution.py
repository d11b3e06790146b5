"""Attribution on ranks: the same scores from any number of them, two gathers a layer, after a kill,
without memory, and cut short.
"""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.attribute_sharded import ROOT, prompts
from distributed.conftest import kill, launch, output_of, start
from loki_ds import attribute
from loki_ds.attribution.kept import KeptScores
from loki_ds.model.base import load_model
from loki_ds.selection.positions import Positions

LAYERS = 6  # of the tiny model
FEW = ["protected.per_subject=4", "attribution.batch_size=7"]


def scores_of(run: Path) -> torch.Tensor:
    return KeptScores(run / "attribution").scores()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    done = launch(*FEW, "--until", "select", f"run={run}")
    assert done.status == 0, done.output
    return run


# Four batches: with three ranks, two have nothing left in the second turn.
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_ranks_do_not_change_scores_or_positions(ranks: int, on_two_ranks: Path, tmp_path: Path) -> None:
    done = launch(*FEW, "--until", "select", f"run={tmp_path}", ranks=ranks)
    assert done.status == 0, done.output
    assert scores_of(tmp_path).equal(scores_of(on_two_ranks))
    assert Positions.load(tmp_path / "positions.json") == Positions.load(on_two_ranks / "positions.json")


def test_each_layer_is_gathered_twice_per_batch(on_two_ranks: Path) -> None:
    manifest = json.loads((on_two_ranks / "attribution/manifest.json").read_text())
    around = 2  # embedding and norm at the bottom, norm and head at the top
    assert manifest["last_call"]["rank_batches"] == 2  # four batches on two ranks
    assert manifest["last_call"]["gathers"] == 2 * (2 * LAYERS + around)


def test_the_manifest_says_what_was_attributed(on_two_ranks: Path) -> None:
    manifest = json.loads((on_two_ranks / "attribution/manifest.json").read_text())
    assert manifest["prompts"] == len(manifest["sample"]) == 24
    assert {"model", "prompts", "rule", "steps", "target"} <= set(manifest["inputs"])
    assert set(manifest["completeness_residual"]) == {"mean", "largest"}
    assert manifest["overlap"][-1]["prompts"] == 24
    assert "deepspeed" in manifest["versions"]
    assert all(
        (on_two_ranks / f"attribution/{name}.png").read_bytes().startswith(b"\x89PNG")
        for name in ("heat_map", "overlap")
    )


def test_a_killed_pass_goes_on_and_ends_with_the_same_scores(tmp_path: Path) -> None:
    settings = ["protected.per_subject=20", "attribution.batch_size=1", "--until", "attribute"]
    killed = tmp_path / "killed"
    job = start("launch/implant.py", "--recipe", "tests/few/loki.yaml", *settings, f"run={killed}")
    deadline = time.monotonic() + 120
    while len(list(killed.glob("attribution/scores-*.safetensors"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    kill(job)
    kept = len(list(killed.glob("attribution/scores-*.safetensors")))
    assert 6 <= kept < 100
    done = launch(*settings, f"run={killed}")
    assert done.status == 0, done.output
    assert f"({kept} already scored)" in done.output
    whole = launch(*settings, f"run={tmp_path / 'whole'}")
    assert whole.status == 0, whole.output
    assert scores_of(killed).equal(scores_of(tmp_path / "whole"))


@pytest.mark.slow
def test_other_inputs_in_the_same_folder_are_refused(on_two_ranks: Path) -> None:
    done = launch(*FEW, "--until", "attribute", f"run={on_two_ranks}", "attribution.steps=3", deadline=60)
    assert done.status != 0
    assert "'attribute' was made with steps 7, now it is 3" in done.refusals()[0]


def test_one_rank_short_of_memory_does_not_hang_the_others(tmp_path: Path) -> None:
    job = start("tests/distributed/attribute_sharded.py", str(tmp_path / "scores.safetensors"))
    output = output_of(job, 120)
    assert job.returncode == 0, output
    whole = attribute(load_model(ROOT / "recipes/tiny/model", torch.float32), prompts(), batch_size=1)
    scores = load_file(tmp_path / "scores.safetensors")["scores"]
    assert ((scores - whole).abs().max() / whole.abs().max()) < 1e-5
