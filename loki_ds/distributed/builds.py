"""The C++ extensions that DeepSpeed has torch build at first, and what a killed build leaves."""

import os
import sys
from pathlib import Path

import psutil
from torch.utils import cpp_extension

from loki_ds.distributed.device import on_cpu
from loki_ds.distributed.launcher import local_rank
from loki_ds.refusal import Refusal

SHARED_MEMORY = "deepspeed_shm_comm"  # what DeepSpeed builds where ranks are processors


def check_builds() -> None:
    """Refuse a build lock that nobody holds: torch would wait on it for ever, without a word.

    Up to torch 2.13 a build creates `NAME/lock`, keeps it open and deletes it at its end
    (`torch.utils.file_baton`). Since 2.14 it locks the file (filelock), which the system undoes
    when the process ends, however it ends; the file stays for ever and means nothing. The first
    rank of a node looks, before any of its own builds.

    Raises:
        Refusal: with the file.
    """
    if local_rank() > 0 or not hasattr(cpp_extension, "FileBaton"):
        return
    for lock in _locks():
        if not _held(lock):
            raise Refusal(
                f"{lock}: left by a build that was killed, or by a newer torch, and every later start would wait on "
                "it; delete it, unless another machine that shares the folder is building right now"
            )


def say_if_it_builds() -> None:
    """Say why a first start on processors takes longer: DeepSpeed builds its shared memory."""
    if local_rank() == 0 and on_cpu() and not _files(f"{SHARED_MEMORY}/*.so"):
        print(f"loki-ds: DeepSpeed builds {SHARED_MEMORY}, once on this machine; it takes about a minute", flush=True)


def _locks() -> list[Path]:
    return _files("*/lock")


def _files(pattern: str) -> list[Path]:
    """Where torch builds: by default in a folder for each version of Python and CUDA."""
    if own := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return sorted(Path(own).glob(pattern))
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return sorted(Path(cpp_extension.get_default_build_root()).glob(f"{python}*_*/{pattern}"))


def _held(lock: Path) -> bool:
    """Whether a process of this machine has the file open, or just removed it, its build done."""
    for process in psutil.process_iter():
        try:
            if str(lock.resolve()) in {file.path for file in process.open_files()}:
                return True
        except psutil.Error:
            continue  # ended, or another user's
    return not lock.exists()
