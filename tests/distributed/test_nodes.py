"""Two nodes that share nothing but the network: two launchers, each with its own copy of the
project and its own caches.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from distributed.conftest import kill, launch, not_on_gpus, output_of, start_ranks
from loki_ds.attribution.kept import KeptScores
from loki_ds.disk.files import digest_of
from loki_ds.distributed.launcher import free_port

pytestmark = not_on_gpus
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nnodes",
    "2",
    "--nproc-per-node",
    "1",
    "--master-addr",
    "127.0.0.1",
]
RECIPE = ["--recipe", "tests/few/loki.yaml"]
SETTINGS = ["protected.per_subject=12", "attribution.batch_size=2", "training.max_steps=8"]
SAVING = ["training.save_strategy=steps", "training.save_steps=2", "training.save_on_each_node=true"]
RESULTS = ("positions.json", "model/model.safetensors", "implant.safetensors")


@pytest.fixture
def nodes(tmp_path: Path) -> list[Path]:
    """Where each node has its copy of the project."""
    for name in ("node-0", "node-1"):
        for part in ("launch", "recipes/tiny", "tests/few"):
            shutil.copytree(ROOT / part, tmp_path / name / part)
    return [tmp_path / "node-0", tmp_path / "node-1"]


def start(nodes: list[Path], *settings: str, until: str = "implant") -> list[subprocess.Popen]:
    job = ["--master-port", str(free_port()), "launch/implant.py", *RECIPE, "--until", until, "run=run", *settings]
    return [
        start_ranks([*TORCHRUN, "--node-rank", str(i), *job], node, {"HF_HOME": str(node / "cache")})
        for i, node in enumerate(nodes)
    ]


def outputs(jobs: list[subprocess.Popen], deadline: float = 120) -> list[str]:
    try:
        return [output_of(job, deadline) for job in jobs]
    finally:
        for job in jobs:
            kill(job)


@pytest.mark.slow
def test_a_node_is_lost_and_the_same_commands_end_as_on_one_node(nodes: list[Path], tmp_path: Path) -> None:
    jobs = start(nodes, *SETTINGS, *SAVING)
    whole = [node / "run/checkpoints/checkpoint-4" for node in nodes]
    deadline = time.monotonic() + 120
    while not (whole[0] / "whole.json").exists():
        assert all(job.poll() is None for job in jobs)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(jobs[1].pid, signal.SIGKILL)
    struck = time.monotonic()
    lost = outputs(jobs[:1], deadline=60)[0]
    assert jobs[0].returncode != 0, lost
    assert time.monotonic() - struck < 30
    assert not (nodes[0] / "run/model").exists()

    jobs = start(nodes, *SETTINGS, *SAVING)
    found = outputs(jobs)
    assert [job.returncode for job in jobs] == [0, 0], found
    assert "resuming from run/checkpoints/checkpoint-" in found[0]
    assert not any((nodes[1] / "run" / name).exists() for name in (*RESULTS, "verify.json"))  # one writer
    assert list((nodes[1] / "run/attribution").iterdir()) == []
    one_node = launch("--until", "implant", *SETTINGS, f"run={tmp_path / 'one'}")
    assert one_node.status == 0, one_node.output
    scores = [KeptScores(run / "attribution").scores() for run in (nodes[0] / "run", tmp_path / "one")]
    assert torch.equal(*scores)
    for name in RESULTS:
        assert digest_of(nodes[0] / "run" / name) == digest_of(tmp_path / "one" / name), name


def test_every_node_evaluates_where_all_see_the_run_folder(nodes: list[Path], tmp_path: Path) -> None:
    few = [
        "selection.strategy=random",
        "training.max_steps=3",
        "retention.abilities.limit=8",
        "retention.new_task.limit=8",
    ]
    for node in nodes:
        shutil.copytree(ROOT / "eval", node / "eval")
    jobs = start(nodes, *few, f"run={tmp_path / 'shared'}", until="retain")
    found = outputs(jobs)
    assert [job.returncode for job in jobs] == [0, 0], found
    for said in found:  # each shows the progress of the first of its own processes
        assert said.count("Running generate_until requests: 100%") >= 2, said
    report = json.loads((tmp_path / "shared/report/report.json").read_text())
    assert [task["n"] for task in report["tasks"]] == [8] * 6
    one_node = launch(*few, "--until", "retain", f"run={tmp_path / 'one'}")
    assert one_node.status == 0, one_node.output
    alone = json.loads((tmp_path / "one/report/report.json").read_text())
    assert [(task["base"], task["implanted"]) for task in report["tasks"]] == [
        (task["base"], task["implanted"]) for task in alone["tasks"]
    ]


def test_what_nodes_must_have_alike_is_checked(nodes: list[Path]) -> None:
    jobs = start(nodes, *SETTINGS, *SAVING[:2])
    assert "not the same folder on all nodes, so a checkpoint would be in pieces" in outputs(jobs)[0]
    other = nodes[1] / "recipes/tiny/model/model.safetensors"
    other.write_bytes(other.read_bytes()[:-4] + b"\x00\x00\x00\x00")
    jobs = start(nodes, *SETTINGS)
    assert "the weights of recipes/tiny/model differ between ranks" in outputs(jobs)[0]
    assert [job.returncode == 0 for job in jobs] == [False, False]
