"""Find each tiny recipe's learning rate by one rule for all: of the rates that reach 0.9 held-out
skill, the one that forgets least.

    make learning-rates
    python eval/studies/learning_rates.py [--recipes loki ...] [--no-write]

Runs the main job for every recipe and rate (finished runs are not redone), writes
eval/reports/learning_rates.json and .md, and puts the chosen rates into the recipes. A method that
reaches the skill at no rate gets the rate with the most skill, and the table says so.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from rule import choose

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, ROOT, keep, paragraph, table, write

ENOUGH = 0.9
RATES = {
    "loki": ["7e-4", "1e-3", "2e-3"],
    "random": ["7e-4", "1e-3", "2e-3"],
    "full": ["5e-5", "1e-4", "2e-4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave the recipes as they are")
    arguments = parser.parse_args()
    path = REPORTS / "learning_rates.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for recipe in arguments.recipes:
        found[recipe] = {"tried": [measure(recipe, rate) for rate in RATES[recipe]]}
        found[recipe]["chosen"] = choose(found[recipe]["tried"], ENOUGH)["rate"]
        keep("learning_rates", found)
        if arguments.write:
            write_rate(ROOT / f"recipes/tiny/{recipe}.yaml", found[recipe]["chosen"])
    write_report(found)


def measure(recipe: str, rate: str) -> dict[str, Any]:
    """Skill and forgetting of one run of the main job."""
    run = f"runs/learning-rates/{recipe}-{rate}"
    command = ["deepspeed", "--num_gpus", "2", "launch/implant.py", "--recipe", f"recipes/tiny/{recipe}.yaml"]
    subprocess.run([*command, f"training.learning_rate={rate}", f"run={run}"], cwd=ROOT, check=True)
    report = json.loads((ROOT / run / "report/report.json").read_text())
    return {"rate": rate, "skill": report["new_task"][0]["implanted"], "forgetting": report["forgetting"]}


def write_rate(recipe: Path, rate: str) -> None:
    recipe.write_text(re.sub(r"(?m)^(  learning_rate: ).*$", rf"\g<1>{rate}", recipe.read_text()))


def write_report(found: dict[str, Any]) -> None:
    rows = []
    for recipe, of_recipe in found.items():
        enough = any(run["skill"] >= ENOUGH for run in of_recipe["tried"])
        for run in of_recipe["tried"]:
            is_chosen = run["rate"] == of_recipe["chosen"]
            chosen = "" if not is_chosen else "yes" if enough else f"most skill (none reached {ENOUGH})"
            rows.append([recipe, run["rate"], f"{run['skill']:.3f}", f"{run['forgetting']:.2f}%", chosen])
    about = (
        f"`make learning-rates`. One rule for all methods: of the rates that reach {ENOUGH} held-out skill, the one "
        "that forgets least. One seed, so differences of a point or two are noise."
    )
    headings = ["recipe", "learning rate", "new task, held out", "forgetting", "chosen"]
    write("learning_rates", "Learning rates of the tiny recipes", paragraph(about), table(headings, rows))


if __name__ == "__main__":
    main()
