"""Where the time of a whole run goes, from the typed command to the report.

    python eval/benchmarks/whole_run.py          # eval/reports/whole_run.*, on idle cores
    python eval/benchmarks/whole_run.py --before CHECKOUT   # an earlier state, to stand beside it

The main job on one and on two ranks under ZeRO, as a user types it, on the tiny world and on
SmolLM2-135M (where `eval/real/fetch.py build/real` was run; a fifth of its recipe's steps). Its own
log lines and processes are watched from outside. Beside them a bound: the products of a part,
counted by torch from their shapes, at the speed that this machine's products have.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, PreTrainedConfig

from loki_ds.attribution.kept import KeptScores
from loki_ds.attribution.sweep import Sweep
from loki_ds.implanting.arguments import TrainingShape
from loki_ds.implanting.training import Method
from loki_ds.model.base import load_tokenizer
from loki_ds.planning.dry_run import Tally, model_without_data
from loki_ds.planning.estimate import dry_step
from loki_ds.positions import Positions
from loki_ds.protected import load_protected
from loki_ds.recipe import ProtectedSection, Recipe
from loki_ds.recipe_file import load_recipe
from loki_ds.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from main_job import ON_ONE_THREAD
from reporting import REPORTS, ROOT, keep, listed, paragraph, table, where, write

Parts = dict[str, tuple[float, float | None]]  # of each part its seconds, and their bound
REAL = ROOT / "build/real/model"
ABILITIES = "[{tasks: [real_mmlu, real_capitals, real_code], limit: 20}]"
NEW_TASK = "{tasks: [real_calls], limit: 8, apply_chat_template: true}"
CASES: dict[str, tuple[str, list[str]]] = {
    "tiny": ("recipes/tiny/loki.yaml", []),
    "SmolLM2-135M": (
        "recipes/smollm2/calls-q30.yaml",
        [
            *(f"model.path={REAL}", "training.max_steps=6", "protected.per_subject=1"),
            *(f"retention.abilities={ABILITIES}", f"retention.new_task={NEW_TASK}"),
        ],
    ),
}
MARKS = {  # what rank 0 says first of a part: the part that ended before it
    "loading ": "check: base, data, tasks",
    "attribute: ": "load the model, size a batch",
    "select: ": "attribute",
    "implant: ": "select, ask the base",
    "verify: ": "implant",
    "retain: evaluating": "export and verify",
    "retain: ": "retain",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the folder of another state of the project, with build/real")
    before = parser.parse_args().before
    file = REPORTS / "whole_run.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, Parts] = {}
    kept |= {"before" if before else "now": found, "where": where("torch", "transformers", "deepspeed")}
    for name, (recipe, changes) in CASES.items():
        for ranks in (1, 2) if name == "tiny" or REAL.exists() else ():
            found[f"{name}, {ranks}"] = watched(before.resolve() if before else ROOT, recipe, changes, ranks)
            keep("whole_run", kept)
    write_report(kept.get("before", {}), kept.get("now", {}))


def write_report(before: dict[str, Parts], now: dict[str, Parts]) -> None:
    columns: dict[str, Parts] = {}
    for case in dict.fromkeys([*now, *before]):
        columns |= {f"{case}, before": before[case]} if case in before else {}
        columns |= {case: now[case]} if case in now else {}
    whole_first = sorted(columns.values(), key=len, reverse=True)  # a state that was stopped early has no order of all
    parts = list(dict.fromkeys(part for taken in whole_first for part in taken))
    rows = [[part, *(cell(taken[part]) if part in taken else "-" for taken in columns.values())] for part in parts]
    rows.append(["whole", *(f"{sum(seconds for seconds, _ in taken.values()):.1f}" for taken in columns.values())])
    about = (
        f"`python eval/benchmarks/whole_run.py`: {listed(where('torch', 'transformers', 'deepspeed'))}. Seconds of "
        "each part, by the number of ranks; one thread a rank. In brackets the bound, where a part has one: its "
        "products alone, at the speed of the model's largest product on as many ranks. SmolLM2-135M: six steps, 57 "
        "protected prompts, 20 documents of each of three abilities and 8 of each kind of calls."
    )
    write("whole_run", "Where the time of a run goes", paragraph(about), table(["part", *columns], rows))


def cell(taken: tuple[float, float | None]) -> str:
    seconds, bound = taken
    return f"{seconds:.1f}" if bound is None else f"{seconds:.1f} ({bound:.1f})"


def watched(checkout: Path, recipe: str, changes: list[str], ranks: int) -> Parts:
    """Of every part, in order."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", "29677"]
        command = [*launcher, "launch/implant.py", "--recipe", recipe, *changes, f"run={run}"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **ON_ONE_THREAD, "PATH": path, "PYTHONPATH": str(checkout)}
        started = time.time()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        ends = [("launcher: two starts", first_rank(process.pid)), *seen(process)]
        if process.wait():
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        ends.insert(1, ("imports, recipe, process group", (run / ".lock").stat().st_mtime))
        ends.append(("report and end", time.time()))
        taken: dict[str, float] = {}
        for (part, end), before in zip(ends, [started, *(end for _, end in ends)], strict=False):
            taken[part] = taken.get(part, 0.0) + end - before
        bounds = bounds_of(RunFolder(run), ranks) if checkout == ROOT else {}
        return {part: (seconds, bounds.get(part)) for part, seconds in split_training(taken, run).items()}


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


# --- bounds ---------------------------------------------------------------------------------------


def bounds_of(run: RunFolder, ranks: int) -> dict[str, float]:
    """Seconds that attribution and steps take if all but their products took no time."""
    recipe = load_recipe(run.recipe)
    config = AutoConfig.from_pretrained(recipe.model.path)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(ranks, spawn.Barrier(ranks).wait) as pool:  # all at once, as the ranks are
        speed = sum(pool.map(product_speed, [config] * ranks, chunksize=1))
    return {
        "attribute": sweep_flops(recipe, run, config) / speed,
        "implant: steps": ranks * steps_flops(recipe, run, config, ranks) / speed,
    }


def sweep_flops(recipe: Recipe, run: RunFolder, config: PreTrainedConfig) -> int:
    """Of all batches as they were planned."""
    assert recipe.protected is not None
    prompts = protected_tokens(recipe.protected, recipe.model.path)
    planned = [batch for batches in KeptScores(run.attribution).read()["rounds"] for batch in batches]
    with model_without_data(config, torch.float32) as model:
        sweep = Sweep(model.eval().requires_grad_(False), steps=recipe.attribution.steps)
        with Tally([]) as tally:
            for batch in planned:
                sweep.run([prompts[i] for i in batch])
    return tally.flops


def protected_tokens(section: ProtectedSection, model: str) -> list[list[int]]:
    return load_protected(section, load_tokenizer(model, trust_remote_code=False)).tokens


def steps_flops(recipe: Recipe, run: RunFolder, config: PreTrainedConfig, ranks: int) -> float:
    """Of one rank's steps, every sequence of the mean length, none padded."""
    log: list[dict[str, Any]] = json.loads(run.training_log.read_text())
    steps, tokens = log[-1]["step"], max(line.get("num_tokens", 0) for line in log)
    shape = TrainingShape.of(recipe.training, recipe.model.dtype)
    examples = ranks * steps * shape.sequences * shape.accumulation
    shape = replace(shape, tokens=round(tokens / examples))
    step = dry_step(config, recipe.model, Method(recipe.implant, Positions.load(run.positions)), shape)
    return steps * shape.accumulation * step.flops


def product_speed(config: PreTrainedConfig) -> float:
    """FLOP/s of one thread in the product of an FFN."""
    torch.set_num_threads(1)
    x, weight = torch.randn(1024, config.hidden_size), torch.randn(config.intermediate_size, config.hidden_size)
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        x @ weight.T
        seconds.append(time.perf_counter() - started)
    return 2 * x.numel() * config.intermediate_size / statistics.median(seconds)


if __name__ == "__main__":
    main()
