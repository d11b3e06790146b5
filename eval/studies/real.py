"""SmolLM2-135M-Instruct taught BFCL's calls: every method at its own best rate, several seeds.

    python eval/real/fetch.py build/real         # the model and the data, once
    python eval/studies/real.py                  # both: make real-study

`real.yaml` holds the methods and the rule. Each cell is one run of the main job on one process, two
at a time; what is finished is not done again. Puts the rates into the recipes, and writes
eval/reports/real.json and .md.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from real_report import write_report
from rule import next_rate, smallest_of_the_best
from smollm2 import halving, main_job, tuning_loss

from loki_ds.recipe_file import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, keep

STUDY = yaml.safe_load((Path(__file__).parent / "real.yaml").read_text())
METHODS = STUDY["methods"]
RUNS = Path("runs/real")
KEPT = (
    "base_digest settings outcome forgetting forgetting_ci losses_only losses_only_ci tasks likelihoods new_task"
).split()
POSITIONS = RUNS / "attribution/positions.json"


def main() -> None:
    main_job("calls-q30", RUNS / "attribution", "--until", "select")
    with ThreadPoolExecutor(2) as pool:
        rates = find_rates(pool)
        seeds = {method: own.get("seeds", STUDY["seeds"]) for method, own in METHODS.items()}
        cells = sorted(((method, seed) for method in METHODS for seed in seeds[method]), key=lambda cell: cell[1])
        found = list(pool.map(lambda cell: evaluated(cell[0], cell[1], rates), cells))
    keep("real", {"rates": rates, "runs": found})
    reports = {method: [cell["report"] for cell in found if cell["method"] == method] for method, _ in cells}
    write_report(STUDY, rates, reports, RUNS / "attribution")


def find_rates(pool: ThreadPoolExecutor) -> dict[str, Any]:
    """By method: the rates tried with their losses on the tuning chats, and the one chosen."""
    found: dict[str, Any] = {method: [] for method, own in METHODS.items() if "rates" in own}
    waiting = [(method, float(rate)) for method in found for rate in METHODS[method]["rates"]]
    for _ in ("as listed", "once wider"):
        for method, tried in pool.map(lambda one: (one[0], tuned(*one)), waiting):
            found[method].append(tried)
        waiting = [(method, wider) for method, tried in found.items() if (wider := next_rate(tried)) is not None]
    rates = {
        method: {"tried": tried, "chosen": smallest_of_the_best(tried, STUDY["within"])["rate"]}
        for method, tried in found.items()
    }
    for method, own in METHODS.items():
        rates[method] = rates.get(method) or {"chosen": rates[own["rate_of"]]["chosen"]}
        write_rate(own["recipe"], rates[method]["chosen"])
    return rates


def tuned(method: str, rate: float) -> dict[str, float]:
    """The loss of a short run on the tuning chats."""
    recipe, steps = METHODS[method]["recipe"], STUDY["steps"]
    run = RUNS / "rates" / f"{recipe}-{rate:g}"
    return {
        "rate": rate,
        "loss": tuning_loss(recipe, run, steps, *selected(method), f"training.learning_rate={rate:g}"),
    }


def evaluated(method: str, seed: int, rates: dict[str, Any]) -> dict[str, Any]:
    """A whole run, and its report."""
    own, rate = METHODS[method], rates[method]["chosen"]
    settings = [f"training.learning_rate={rate:g}", f"training.seed={seed}", f"selection.seed={seed}"]
    if own.get("pulled"):
        steps = load_recipe(ROOT / f"recipes/smollm2/{own['recipe']}.yaml").training["max_steps"]
        settings.append(f"implant.pull={halving(rate, steps):.3g}")
    if own.get("rehearsed"):
        settings.append("implant.rehearse={}")
    kind = next((f"-{kind}" for kind in ("pulled", "rehearsed") if own.get(kind)), "")
    run = RUNS / f"{own['recipe']}{kind}-seed={seed}"
    main_job(own["recipe"], run, *selected(method), *settings)
    report = json.loads((ROOT / run / "report/report.json").read_text())
    return {"method": method, "seed": seed, "report": {key: report[key] for key in KEPT}}


def selected(method: str) -> list[str]:
    """LoKI's rows are those of the one attribution."""
    return [f"selection.positions={POSITIONS}"] if METHODS[method].get("attributes") else []


def write_rate(recipe: str, rate: float) -> None:
    path = ROOT / f"recipes/smollm2/{recipe}.yaml"
    path.write_text(re.sub(r"(?m)^(  learning_rate: ).*$", rf"\g<1>{rate:g}", path.read_text()))


if __name__ == "__main__":
    main()
