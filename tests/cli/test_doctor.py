"""What the first command on a node says of this very machine, and when it ends otherwise than with
0.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from loki_ds.cli.doctor import examine


def found(runs: Path) -> dict[str, tuple[str, bool]]:
    return {one.at: (one.state, one.stops) for one in examine(runs)}


def test_this_machine_can_start_the_main_job(tmp_path: Path) -> None:
    looked = found(tmp_path / "not/there/yet")
    assert not any(stops for _, stops in looked.values())
    assert "GiB free" in looked["disk"][0]
    assert str(tmp_path) in looked["disk"][0]
    assert "torch 2" in looked["libraries"][0]


def test_without_a_compiler_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    says, stops = found(tmp_path)["compiler"]
    assert says.startswith("no C++ compiler")
    assert stops


@pytest.mark.skipif(not hasattr(cpp_extension, "FileBaton"), reason="this torch takes no lock's file for a build")
def test_a_killed_build_s_lock_is_named_and_the_command_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "shm_comm").mkdir()
    (tmp_path / "shm_comm/lock").touch()
    command = [sys.executable, "-m", "loki_ds.cli.commands", "doctor"]
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/shm_comm/lock: left by a build that was killed" in done.stdout
    assert "the main job cannot start" in done.stdout
