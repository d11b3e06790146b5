"""What travels in `launch/` starts the ranks it says; the scheduler's commands are pretended."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = {
    "scontrol": "echo first; sleep 0.2; echo second",  # who reads the first line alone ends it by a signal
    "srun": 'for node in 1 0; do SLURM_NODEID=$node SRUN=$SRUN_CPUS_PER_TASK "$@"; done',  # nodes come in any order
    "torchrun": 'echo "node $SLURM_NODEID, cores $SRUN, $*" >> "$SAID"',
}


@pytest.fixture
def said(tmp_path: Path) -> list[str]:
    """What each node of a job of two is told to start."""
    for name, script in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
    environment = {**os.environ, **job, "SAID": str(tmp_path / "said"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", ROOT / "launch/slurm.sh", "a recipe.yaml", "retention.abilities=quick"]
    subprocess.run(command, env=environment, check=True)
    return (tmp_path / "said").read_text().splitlines()


def test_a_node_keeps_its_number_whenever_it_comes(said: list[str]) -> None:
    """The results lie on the node that SLURM counts first, at every start."""
    assert [line.partition(",")[0] for line in said] == ["node 1", "node 0"]
    assert ["--node-rank 1 " in said[0], "--node-rank 0 " in said[1]] == [True, True]


def test_every_node_starts_its_own_ranks_with_all_its_cores(said: list[str]) -> None:
    for line in said:
        assert "cores 64, --nnodes 2 " in line
        assert "--nproc-per-node 8 --master-addr first --master-port 29500 launch/implant.py" in line
        assert line.endswith("--recipe a recipe.yaml retention.abilities=quick")
