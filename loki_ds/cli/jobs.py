"""What trains, or takes up what was trained: a job by its launcher, rates, and the dial."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from loki_ds.distributed.launcher import launcher_for
from loki_ds.refusal import Refusal


def run(arguments: argparse.Namespace) -> int:
    """A recipe's whole job on this node, by DeepSpeed's launcher, whose line is shown; on devices
    that CUDA_VISIBLE_DEVICES names, by torchrun.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    check_files(load_recipe(arguments.recipe, arguments.overrides))  # a slip is said before anything starts
    line = _job(arguments, ["--until", arguments.until])
    print(shlex.join(line), flush=True)
    os.execv(Path(sys.executable).parent / line[0], line)


def _job(arguments: argparse.Namespace, also: list[str]) -> list[str]:
    """The launcher's line of a recipe's job."""
    if arguments.gpus is not None and arguments.gpus < 0:
        raise Refusal(f"--gpus is {arguments.gpus}, allowed is 1 or more, and 0 for a processor")
    if arguments.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"

    import torch

    gpus = torch.cuda.device_count() if arguments.gpus is None else arguments.gpus
    job = ["--module", "loki_ds.implant", "--recipe", arguments.recipe, *arguments.overrides, *also]
    return [*launcher_for(max(gpus, 1)), *job]


def rates(arguments: argparse.Namespace) -> int:
    """Short trainings of a recipe at several learning rates, and the best of them: it learns nearly
    what any does, by the loss on held-out rows, and drifts least from the base.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_files(recipe)
    if arguments.steps < 1:
        raise Refusal(f"--steps is {arguments.steps}, allowed is 1 or more")

    from loki_ds.stages.rates import advice, try_rates

    def line(also: list[str]) -> list[str]:
        program, *rest = _job(arguments, also)
        return [str(Path(sys.executable).parent / program), *rest]

    tried, chosen = try_rates(recipe, arguments.rates, arguments.steps, line)
    for trial in tried:
        mark = "  chosen" if trial is chosen else ""
        print(f"{trial.rate:>8}: held-out loss {trial.heldout:.4f}, drift {trial.drift:.4f} nats a token{mark}")
    if further := advice(tried, chosen):
        print(further)
    print(f"training.learning_rate={chosen.rate}")
    return 0


def tune(arguments: argparse.Namespace) -> int:
    """Another budget or other scales of a trained run: its change at each of them, and its model,
    adapter, certificate and report at the one that is chosen. Nothing trains again.
    """
    from loki_ds.recipe.file import load_recipe

    recipe = load_recipe(arguments.run / "recipe.yaml", [f"run={json.dumps(str(arguments.run))}", *arguments.overrides])
    if recipe.tune is None:
        raise Refusal(f"{arguments.run}: its recipe has no section 'tune'; give one, as tune.budget.skill=0.95")

    from loki_ds.report.compare import read_report
    from loki_ds.stages.check import check as check_run
    from loki_ds.stages.retain import retain as retain_run
    from loki_ds.stages.run import Run
    from loki_ds.stages.tune import tune as tune_run

    run = Run(recipe)
    if not run.folder.has("implant"):
        raise Refusal(f"{arguments.run}: nothing is trained there yet; run the recipe first")
    checked = check_run(run)
    tune_run(run, checked)
    retain_run(run, checked)
    written = read_report(arguments.run)
    print(f"scale: {written['origin']['scale']}")
    print(written["headline"])
    print(f"As a page: {run.folder.report / 'report.html'}")
    return 0
