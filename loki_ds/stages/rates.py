"""A learning rate found by both sides: what short trainings at several rates learn, by their loss
on held-out rows, and how far they drift from the base on texts that are not learned.

The rule: of the rates whose held-out loss is at most 5% above the smallest, the one that drifts
least. Each training is a job of its own, in a folder of its own, so nothing here trains.
"""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loki_ds.disk.files import write_json
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.sections import Recipe
from loki_ds.refusal import Refusal

CLOSE = 0.05  # of the smallest held-out loss, above which a rate has not learned enough


class Tried(NamedTuple):
    """A short training. heldout: loss on the held-out rows, nats a learned token; drift: divergence
    from the base, nats a token.
    """

    rate: str
    heldout: float
    drift: float


def check_rates(rates: list[str]) -> None:
    """Refuse rates that are none."""
    for rate in rates:
        try:
            positive = float(rate) > 0
        except ValueError:
            positive = False
        if not positive:
            raise Refusal(f"--rates holds {rate!r}, allowed are numbers above 0")


def try_rates(
    recipe: Recipe, rates: list[str], steps: int, start: Callable[[list[str]], list[str]]
) -> tuple[list[Tried], Tried]:
    """Train at every rate for so many steps; all of them, and the chosen one, in `rates.json`.

    start: the command line of a job with these overrides; what is tried already does not train
    again.

    Raises:
        Refusal: the recipe could not tell two rates apart; or a training failed, and its own
            message is above.
    """
    check_rates(rates)
    if recipe.data.heldout is None:
        raise Refusal("data.heldout is missing; rates are compared by the loss on rows that nothing learns")
    if recipe.protected is None and recipe.implant.rehearse is None:
        raise Refusal("the section 'protected' is missing; rates are compared by the drift on its texts, too")
    folder = RunFolder(recipe.run)
    rows = []
    if recipe.changes_rows:  # once, in the run's own folder, which will want them as well
        _run(start(["--until", "select"]))
        rows = [f"selection.positions={json.dumps(str(folder.positions))}"]
    tried = []
    for rate in rates:
        trial = RunFolder(folder.root / "rates" / f"{float(rate):g}x{steps}")
        _run(start(["--until", "implant", *rows, *_of_trial(rate, steps, trial.root, recipe.implant.rehearse is None)]))
        tried.append(_measured(rate, trial.training_log))
    chosen = choose(tried)
    write_json(
        folder.root / "rates.json", {"steps": steps, "tried": [t._asdict() for t in tried], "chosen": chosen.rate}
    )
    return tried, chosen


def choose(tried: list[Tried]) -> Tried:
    """Of the rates that learned enough, the one that drifts least."""
    smallest = min(trial.heldout for trial in tried)
    return min((t for t in tried if t.heldout <= smallest * (1 + CLOSE)), key=lambda trial: trial.drift)


def advice(tried: list[Tried], chosen: Tried) -> str:
    """Where to look next, if the chosen rate lies at an end of those that were tried."""
    rates = sorted(float(trial.rate) for trial in tried)
    if len(rates) == 1 or rates[0] < float(chosen.rate) < rates[-1]:
        return ""
    end, further = ("largest", "higher") if float(chosen.rate) == rates[-1] else ("smallest", "lower")
    return f"it is the {end} that was tried; {further} ones may be better"


def _of_trial(rate: str, steps: int, root: Path, measure: bool) -> list[str]:
    """The overrides that make a short training of a run. measure: its drift on protected texts."""
    drift = ["implant.rehearse.prompts={protected: 0}"] if measure else []
    return [
        f"training.learning_rate={float(rate)!r}",
        f"training.max_steps={steps}",
        "training.eval_strategy=steps",
        f"training.eval_steps={steps}",
        "training.load_best_model_at_end=false",
        "training.save_strategy=no",
        "implant.early_stopping=null",
        "tune=null",
        f"run={json.dumps(str(root))}",
        *drift,
    ]


def _run(line: list[str]) -> None:
    if subprocess.run(line, check=False).returncode:
        raise Refusal(f"{shlex.join(line)}: ended with an error; its own message is above")


def _measured(rate: str, log: Path) -> Tried:
    said: dict[str, float] = {}
    for entry in json.loads(log.read_text(encoding="utf-8")):
        said |= entry
    return Tried(rate, said["eval_loss"], said["drift"])
