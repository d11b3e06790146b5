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
from pathlib import Path
from typing import Any

from rule import choose

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "eval" / "reports"
ENOUGH = 0.9
RATES = {
    "loki": ["7e-4", "1e-3", "2e-3"],
    "random": ["7e-4", "1e-3", "2e-3"],
    "full": ["5e-5", "1e-4", "2e-4"],
    "quiet": ["2e-3", "4e-3", "8e-3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave the recipes as they are")
    arguments = parser.parse_args()
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / "learning_rates.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for recipe in arguments.recipes:
        found[recipe] = {"tried": [measure(recipe, rate) for rate in RATES[recipe]]}
        found[recipe]["chosen"] = choose(found[recipe]["tried"], ENOUGH)["rate"]
        path.write_text(json.dumps(found, indent=1) + "\n")
        if arguments.write:
            write_rate(ROOT / f"recipes/tiny/{recipe}.yaml", found[recipe]["chosen"])
    (REPORTS / "learning_rates.md").write_text(as_markdown(found))


def measure(recipe: str, rate: str) -> dict[str, Any]:
    """Skill and forgetting of one run of the main job."""
    run = f"runs/learning-rates/{recipe}-{rate}"
    command = ["deepspeed", "--num_gpus", "2", "launch/implant.py", "--recipe", f"recipes/tiny/{recipe}.yaml"]
    subprocess.run([*command, f"training.learning_rate={rate}", f"run={run}"], cwd=ROOT, check=True)
    report = json.loads((ROOT / run / "report/report.json").read_text())
    return {"rate": rate, "skill": report["new_task"][0]["implanted"], "forgetting": report["forgetting"]}


def write_rate(recipe: Path, rate: str) -> None:
    recipe.write_text(re.sub(r"(?m)^(  learning_rate: ).*$", rf"\g<1>{rate}", recipe.read_text()))


def as_markdown(found: dict[str, Any]) -> str:
    lines = [
        "# Learning rates of the tiny recipes",
        "",
        f"`make learning-rates`. One rule for all methods: of the rates that reach {ENOUGH} held-out skill, the one "
        "that forgets least. "
        "One seed, so differences of a point or two are noise.",
        "",
        "| recipe | learning rate | new task, held out | forgetting | chosen |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for recipe, of_recipe in found.items():
        enough = any(run["skill"] >= ENOUGH for run in of_recipe["tried"])
        for run in of_recipe["tried"]:
            chosen = (
                "" if run["rate"] != of_recipe["chosen"] else "yes" if enough else f"most skill (none reached {ENOUGH})"
            )
            lines.append(f"| {recipe} | {run['rate']} | {run['skill']:.3f} | {run['forgetting']:.2f}% | {chosen} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
