"""The project's own commands, as every study calls them."""

import os
import subprocess
import sys
from pathlib import Path

from loki_ds.distributed.device import on_cpu

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT

ON_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def environment() -> dict[str, str]:
    """Of a process of the project: without a GPU it has one thread."""
    return {**os.environ, **(ON_ONE_THREAD if on_cpu() else {})}


def python(*arguments: str, log: Path | None = None) -> None:
    """One process of the project; its output goes to a log, which is shown if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
