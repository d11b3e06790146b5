"""A build lock that nobody holds is named at once; one that a build holds is waited for."""

import os
import re
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from distributed.conftest import launch, not_on_gpus
from loki_ds.distributed.builds import check_builds
from loki_ds.refusal import Refusal

BATON = hasattr(cpp_extension, "FileBaton")  # up to torch 2.13


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch locks a build; as torch up to 2.13 means it."""
    monkeypatch.setattr(cpp_extension, "FileBaton", object, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "deepspeed_shm_comm").mkdir()
    return tmp_path / "deepspeed_shm_comm/lock"


def test_a_lock_that_nobody_holds_is_refused(lock: Path) -> None:
    check_builds()
    lock.touch()
    with pytest.raises(Refusal, match=f"{re.escape(str(lock))}: left by a build that was killed"):
        check_builds()


def test_a_build_at_work_is_not_disturbed(lock: Path) -> None:
    """As torch holds it: created, and open until the build's end."""
    held = os.open(lock, os.O_CREAT | os.O_EXCL)
    check_builds()
    os.close(held)
    with pytest.raises(Refusal):
        check_builds()


def test_the_file_that_torch_leaves_since_2_14_is_no_fault(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cpp_extension, "FileBaton")
    lock.touch()
    check_builds()


def test_only_the_first_rank_of_a_node_looks(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_builds()


def test_torchs_own_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(cpp_extension, "FileBaton", object, raising=False)
    monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    old, ours = (
        tmp_path / f"py{python}_cu128/fused_adam" for python in ("27", "".join(map(str, sys.version_info[:2])))
    )
    for folder in (old, ours):
        folder.mkdir(parents=True)
    (old / "lock").touch()
    check_builds()  # another Python's
    (ours / "lock").touch()
    with pytest.raises(Refusal, match="fused_adam/lock"):
        check_builds()


@pytest.mark.skipif(not BATON, reason="this torch takes no lock's file for a build")
@not_on_gpus
def test_a_launcher_start_ends_within_seconds(lock: Path, tmp_path: Path) -> None:
    lock.touch()
    done = launch(f"run={tmp_path / 'run'}", environment={"TORCH_EXTENSIONS_DIR": str(tmp_path)}, deadline=120)
    assert done.status != 0
    assert len(done.refusals()) == 1, done.output
    assert str(lock) in done.refusals()[0]
    assert not (tmp_path / "run").exists()
