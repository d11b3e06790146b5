"""Starting the real launcher on CPU ranks."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT


@dataclass
class Launched:
    """How a launched job ended."""

    status: int
    output: str
    seconds: float

    def refusals(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("loki-ds: ")]


def launch(*arguments: str, recipe: Path = ROOT / "recipes/tiny/loki.yaml", ranks: int = 2, deadline: float = 240) -> Launched:
    """`deepspeed launch/implant.py` on CPU ranks, from the project's root, with a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(port)]
    started = time.monotonic()
    done = subprocess.run(
        [*launcher, "launch/implant.py", "--recipe", str(recipe), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadline,
    )
    return Launched(done.returncode, done.stdout, time.monotonic() - started)
