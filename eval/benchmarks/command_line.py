"""How soon `loki-ds` answers what needs no model: seconds of a whole process beside an empty one's.

    python eval/benchmarks/command_line.py      # seconds; eval/reports/command_line.*

Medians of ten, the commands in turn.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, keep, listed, paragraph, table, where, write

TIMES = 10
LOKI_DS = [sys.executable, "-m", "loki_ds.cli.commands"]
COMMANDS = {
    "`python -c pass`": [sys.executable, "-c", "pass"],
    "`loki-ds --version`": [*LOKI_DS, "--version"],
    "`loki-ds --help`": [*LOKI_DS, "--help"],
    "a misspelt command": [*LOKI_DS, "pln"],
    "a misspelt key": [*LOKI_DS, "plan", "recipes/tiny/loki.yaml", "selection.quotta=1"],
    "a misspelt key of TRL's": [*LOKI_DS, "plan", "recipes/tiny/loki.yaml", "training.learning_rat=1"],
    "`import loki_ds`": [sys.executable, "-c", "import loki_ds"],
}


def main() -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(TIMES):
        for name, command in COMMANDS.items():
            taken[name].append(timed(command))
    medians = {name: [statistics.median(one) for one in zip(*times, strict=True)] for name, times in taken.items()}
    keep("command_line", {"where": where(), "seconds": medians})
    rows = [(name, f"{wall:.3f}", f"{processor:.3f}") for name, (wall, processor) in medians.items()]
    about = (
        f"`python eval/benchmarks/command_line.py`: {listed(where())}. Medians of {TIMES} whole processes, in seconds."
    )
    write("command_line", "The command line", paragraph(about), table(["", "wall clock", "processor"], rows))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of wall clock and of processor time."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, processor


if __name__ == "__main__":
    main()
