"""`loki-ds` as a user types it: what it prints, and one sentence with exit status 2 for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.sweep import Swept
from loki_ds.positions import Positions


def loki_ds(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "loki_ds.command_line", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a kept attribution of 4 prompts, 2 layers, 10 nodes."""
    kept = KeptScores(tmp_path / "run/attribution")
    kept.open_for({})
    kept.add(range(4), Swept(torch.arange(10.0).expand(4, 2, 10), torch.zeros(4, dtype=torch.long), torch.ones(4), torch.zeros(4, 2)))
    return tmp_path / "run"


def test_select_from_a_kept_attribution(run: Path) -> None:
    out = run / "p.json"
    done = loki_ds("select", run, "--quota", 20, "--strategy", "layer_highest", "--out", out)
    assert done.returncode == 0, done.stderr
    assert Positions.load(out).rows == [[8, 9], [8, 9]]
    assert Positions.load(out).digest in done.stdout
    assert loki_ds("select", run, "--quota", 20, "--strategy", "random", "--seed", 3, "--out", out).returncode == 0
    assert [len(rows) for rows in Positions.load(out).rows] == [2, 2]


def test_positions_side_by_side(tmp_path: Path) -> None:
    Positions([[0, 1], [2, 3]]).save(tmp_path / "a.json")
    Positions([[1, 4], [2, 3]]).save(tmp_path / "b.json")
    done = loki_ds("positions", tmp_path / "a.json", tmp_path / "b.json")
    assert "overlap 75.00% (layer by layer: 50.0% 100.0%)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["select", "{run}", "--quota", "0", "--out", "x"], "--quota is 0, allowed is a percentage above 0 and below 100"),
        (["select", "{run}/nowhere", "--quota", "5", "--out", "x"], "no kept scores there"),
        (["positions", "{run}/nowhere.json", "b.json"], "the positions file cannot be read"),
        (["report", "{run}"], "no report there"),
        (["plan", "nowhere.yaml"], "the recipe cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(run: Path, arguments: list[str], says: str) -> None:
    done = loki_ds(*(argument.format(run=run) for argument in arguments))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
