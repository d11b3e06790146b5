"""What both studies on SmolLM2-135M-Instruct do with a recipe of `recipes/smollm2`."""

import json
import math
from pathlib import Path

from main_job import ROOT, python


def main_job(recipe: str, run: Path, *arguments: str) -> None:
    """One run on one process, unless it is there; batches of one process are those of two ranks."""
    own = ["model.path=build/real/model", "deepspeed=null", "training.per_device_train_batch_size=4", f"run={run}"]
    log = ROOT / f"{run}.log"
    python("launch/implant.py", "--recipe", f"recipes/smollm2/{recipe}.yaml", *own, *arguments, log=log)


def tuning_loss(recipe: str, run: Path, steps: int, *settings: str) -> float:
    """The loss of a short run on the tuning chats."""
    looks = ["data.heldout=build/real/tuning.jsonl", "training.eval_strategy=steps", f"training.eval_steps={steps}"]
    main_job(recipe, run, *settings, f"training.max_steps={steps}", *looks, "--until", "implant")
    log = json.loads((ROOT / run / "training_log.json").read_text())
    (loss,) = (line["eval_loss"] for line in log if "eval_loss" in line)
    return float(loss)


def halving(rate: float, steps: int) -> float:
    """The pull by which a change that nothing holds is half of itself after the training."""
    return math.log(2) / (rate * steps / 2)
