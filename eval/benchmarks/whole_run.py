"""Where the time of a whole run goes, from the typed command to the report.

    python eval/benchmarks/whole_run.py          # eval/reports/whole_run.*, on idle cores

The main job on one and on two ranks under ZeRO-3, as a user types it, on the tiny world and on
SmolLM2-135M (where `eval/real/fetch.py build/real` was run; a fifth of its recipe's steps). Its own
log lines and processes are watched from outside.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from main_job import ON_ONE_THREAD
from reporting import ROOT, keep, listed, paragraph, table, where, write

REAL = ROOT / "build/real/model"
ABILITIES = "[{tasks: [real_mmlu, real_capitals, real_code], limit: 20}]"
CASES: dict[str, tuple[str, list[str]]] = {
    "tiny": ("recipes/tiny/loki.yaml", []),
    "SmolLM2-135M": (
        "recipes/smollm2/calls-q30.yaml",
        [f"model.path={REAL}", "training.max_steps=6", "protected.per_subject=1", f"retention.abilities={ABILITIES}"],
    ),
}
MARKS = {  # what rank 0 says first of a part: the part that ended before it
    "loading ": "check: base, data, tasks",
    "attribute: ": "load the model",
    "select: ": "attribute",
    "implant: ": "select",
    "verify: ": "implant",
    "retain: evaluating": "export and verify",
    "retain: ": "retain",
}


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for name, (recipe, changes) in CASES.items():
        if name == "tiny" or REAL.exists():
            for ranks in (1, 2):
                found[f"{name}, {ranks}"] = watched(recipe, changes, ranks)
    parts = list(dict.fromkeys(part for taken in found.values() for part in taken))
    rows = [[part, *(f"{taken[part]:.1f}" if part in taken else "-" for taken in found.values())] for part in parts]
    rows.append(["whole", *(f"{sum(taken.values()):.1f}" for taken in found.values())])
    about = (
        f"`python eval/benchmarks/whole_run.py`: {listed(where('torch', 'transformers', 'deepspeed'))}. Seconds of "
        "each part, by the number of ranks; one thread a rank."
    )
    keep("whole_run", {"where": where(), "seconds": found})
    write("whole_run", "Where the time of a run goes", paragraph(about), table(["part", *found], rows))
    print(table(["part", *found], rows))


def watched(recipe: str, changes: list[str], ranks: int) -> dict[str, float]:
    """Seconds of every part, in order."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", "29677"]
        command = [*launcher, "launch/implant.py", "--recipe", recipe, *changes, f"run={run}"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **ON_ONE_THREAD, "PATH": path}
        started = time.time()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        ends = [("launcher: two starts", first_rank(process.pid)), *seen(process)]
        if process.wait():
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        ends.insert(1, ("imports, recipe, process group", (run / ".lock").stat().st_mtime))
        ends.append(("report and end", time.time()))
        taken: dict[str, float] = {}
        for (part, end), before in zip(ends, [started, *(end for _, end in ends)], strict=False):
            taken[part] = taken.get(part, 0.0) + end - before
        return split_training(taken, run)


def first_rank(launcher: int) -> float:
    """When the first process of the job itself began."""
    while True:
        for child in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.Error):  # it is over
                line = child.cmdline()
                if any(part.endswith("launch/implant.py") for part in line) and "deepspeed.launcher.launch" not in line:
                    return child.create_time()
        time.sleep(0.01)


def seen(process: subprocess.Popen) -> list[tuple[str, float]]:
    """The parts that the log shows to be over, and when."""
    ends: list[tuple[str, float]] = []
    assert process.stdout is not None
    for line in process.stdout:
        said = re.search(r"loki-ds: (.*)", line)
        part = next((ended for mark, ended in MARKS.items() if said and said[1].startswith(mark)), None)
        if part and part not in dict(ends):
            ends.append((part, time.time()))
    return ends


def split_training(taken: dict[str, float], run: Path) -> dict[str, float]:
    """Of `implant`, the steps alone, by the trainer's own clock."""
    log: list[dict[str, Any]] = json.loads((run / "training_log.json").read_text())
    steps = next(line["train_runtime"] for line in log if "train_runtime" in line)
    parts: dict[str, float] = {}
    for part, seconds in taken.items():
        if part == "implant":
            parts |= {"implant: engine, answers, gathering": seconds - steps, "implant: steps": steps}
        else:
            parts[part] = seconds
    return parts


if __name__ == "__main__":
    main()
