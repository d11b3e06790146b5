"""The study of `promise.md`, cell by cell; it goes on where it was.

    python eval/studies/promise.py [--cells 3]

Needs `eval/real/fetch.py build/real`. Writes a file for each rate search and each arm in
`eval/reports/promise/`, with every document's scores in `answers/` there, by which
`eval/recompute.py` finds the figures anew; and from all cells eval/reports/promise.md.
"""

import argparse
import json
import lzma
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from main_job import python

from loki_ds.disk.files import sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import REFUSAL
from reporting import REPORTS, ROOT, paragraph, table, write
from rows import rows
from rows import write as write_rows

STUDY = yaml.safe_load((Path(__file__).parent / "promise.yaml").read_text())
CELLS = REPORTS / "promise"
RUNS = Path("runs/promise")
DATA = Path("build/real")
COMMON = {
    "model.path": DATA / "model",
    "data.train": DATA / "train_calls.jsonl",
    "data.heldout": DATA / "tuning_calls.jsonl",
    "training.max_steps": 60,
}
RATE_STEPS = 12
LIKELIHOODS = ("real_mmlu", "real_definitions", "real_hypernyms", "real_capitals", "real_elements")
CODE = "real_code"
PROVEN = ("down", "gate_up", "all", "chosen")  # places with the byte proof
Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="rate searches and arms to run, then stop; all when not given")
    arguments = parser.parse_args()
    report()
    leave_out_refusals()
    left = arguments.cells if arguments.cells is not None else math.inf
    for place, treatment, seed in STUDY["arms"]:
        for made in (lambda: find_rate(place), lambda: run_arm(place, treatment, seed)):  # noqa: B023 (called at once)
            left -= made()
            if left <= 0:
                return
            report()


def leave_out_refusals() -> None:
    """The rows in which a function is called."""
    for name in ("train", "tuning"):
        called = [row for row in rows(DATA / f"{name}.jsonl") if row["conversations"][-1]["value"] != REFUSAL]
        write_rows(DATA / f"{name}_calls.jsonl", called)


def find_rate(place: str) -> bool:
    """A place's rate, unless it is known; whether anything was run."""
    place = STUDY["places"][place].get("rate_of", place)
    cell, run = CELLS / f"rate-{place}.json", RUNS / f"rate-{place}"
    if cell.exists():
        return False
    described = STUDY["places"][place]
    python(
        *("-m", "loki_ds.cli.commands", "rates", described["recipe"], *overrides(described["set"], run)),
        *("--gpus", "2", "--steps", str(RATE_STEPS), "--rates", *map(str, described["rates"])),
        log=run.with_suffix(".log"),
    )
    keep_cell(cell, json.loads((ROOT / run / "rates.json").read_text()))
    return True


def run_arm(place: str, treatment: str, seed: int) -> bool:
    """One run of the main job, and what its report says, unless it is known; whether it was run."""
    name = name_of(place, treatment, seed)
    cell, run = CELLS / f"{name}.json", RUNS / name
    if cell.exists():
        return False
    described = STUDY["places"][place]
    found = json.loads((CELLS / f"rate-{described.get('rate_of', place)}.json").read_text())
    settings = {
        **described["set"],
        **STUDY["treatments"][treatment],
        "training.learning_rate": float(found["chosen"]),
        "training.seed": seed,
        "selection.seed": seed,
    }
    job = ["-m", "loki_ds.cli.commands", "run", described["recipe"], *overrides(settings, run), "--gpus", "2"]
    python(*job, log=run.with_suffix(".log"))
    written = json.loads((ROOT / run / "report/report.json").read_text())
    keep_answers(name, ROOT / run, written["base_digest"])
    kept = ("losses_only", "losses_only_ci", "tasks", "likelihoods", "new_task", "decisions", "verification", "costs")
    keep_cell(
        cell, {"place": place, "treatment": treatment, "seed": seed, "rate": found["chosen"]} | of(written, *kept)
    )
    return True


def name_of(place: str, treatment: str, seed: int) -> str:
    return f"{place}-{treatment.replace(' ', '_')}-{seed}"


def of(values: Cell, *keys: str) -> Cell:
    return {key: values[key] for key in keys}


def overrides(settings: Cell, run: Path) -> list[str]:
    return [f"{key}={value}" for key, value in {**COMMON, **settings, "run": run}.items()]


def keep_cell(file: Path, cell: Cell) -> None:
    """A finished cell, with the commit that it was run at."""
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(cell | {"commit": told.stdout.strip()}, indent=1) + "\n")


def keep_answers(name: str, run: Path, base_digest: str) -> None:
    """Every document's scores on base and model, packed."""
    arms = {}
    for file in (run / "retention/answers").glob("*.json"):
        result = json.loads(file.read_text())
        arm = "base" if result["key"]["model"].split()[0] == base_digest.split()[0] else "implanted"
        arms[arm] = result["tasks"]
    tasks = {
        task: {
            "metrics": of_base["metrics"],
            **{arm: [sample["scores"] for sample in arms[arm][task]["samples"]] for arm in ("base", "implanted")},
        }
        for task, of_base in arms["base"].items()
    }
    file = CELLS / "answers" / f"{name}.json.xz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(json.dumps(tasks).encode(), preset=9))
    sums = [f"{sha256(packed)}  {packed.name}\n" for packed in sorted(file.parent.glob("*.xz"))]
    (file.parent / "SHA256SUMS").write_text("".join(sums))


def loss_of(cell: Cell) -> float:
    """The mean rise over the six abilities, percent of the base's."""
    gold = {line["task"]: line for line in cell["likelihoods"]}
    rises = [rise(gold[task]["base"], gold[task]["implanted"]) for task in LIKELIHOODS]
    (code,) = (line for line in cell["tasks"] if line["task"] == CODE)
    return sum([*rises, rise(code["base"], code["implanted"])]) / (len(LIKELIHOODS) + 1)


def rise(base: float, implanted: float) -> float:
    """Of a negative log-likelihood, whatever its sign in the report, in percent; a fall is 0."""
    return max(0.0, 100 * (abs(implanted) - abs(base)) / abs(base))


def report() -> None:
    """The table of all arms that are there, and the bar."""
    cells = [json.loads(file.read_text()) for file in sorted(CELLS.glob("*-[0-9].json"))]
    arms: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        arms.setdefault((cell["place"], cell["treatment"]), []).append(cell)
    figures = {arm: figures_of(of_arm) for arm, of_arm in arms.items()}
    order = sorted(figures, key=lambda arm: -figures[arm]["balanced"])
    lines = [[*arm, len(arms[arm]), arms[arm][0]["rate"], *shown(figures[arm])] for arm in order]
    headings = ["place", "treatment", "seeds", "rate", "calls right", "silent", "balanced mean", "loss", "losses alone"]
    searched = [json.loads(file.read_text()) | {"place": file.stem[5:]} for file in sorted(CELLS.glob("rate-*.json"))]
    tried = [
        [one["place"], trial["rate"], f"{trial['heldout']:.4f}", f"{trial['drift']:.4f}", chosen_mark(one, trial)]
        for one in searched
        for trial in one["tried"]
    ]
    missing = [name for name in (name_of(*arm) for arm in STUDY["arms"]) if not (CELLS / f"{name}.json").exists()]
    write(
        "promise",
        "The promise: a new task, and what the model could do before",
        paragraph(
            "`python eval/studies/promise.py`; the design is `eval/studies/promise.md`, registered before its first "
            "run. *Calls right* where one fits, *silent* where none fits, and the mean of both. *Loss*: how much the "
            "negative log-likelihood of the right answers of six abilities rises. *Losses alone*: the report's, of all "
            "nine tasks. Means over seeds."
        ),
        table(headings, lines, 2) if lines else "No arm is run yet.",
        paragraph(bar(figures)),
        paragraph(f"Not run yet: {', '.join(missing)}." if missing else "All arms of the first model are run."),
        *(["## Rates", table(["place", "rate", "held-out loss", "drift", "chosen"], tried)] if tried else []),
    )


def figures_of(cells: list[Cell]) -> dict[str, float]:
    """Means over the seeds of one arm."""
    decisions = [cell["decisions"][0] for cell in cells]
    values = {
        "calls": [decision["acts_scores"][1] for decision in decisions],
        "silent": [decision["refrains_scores"][1] for decision in decisions],
        "balanced": [decision["implanted"] for decision in decisions],
        "loss": [loss_of(cell) for cell in cells],
        "losses": [cell["losses_only"] for cell in cells],
    }
    return {name: sum(of_seeds) / len(of_seeds) for name, of_seeds in values.items()}


def shown(figures: dict[str, float]) -> list[str]:
    return [
        *(f"{figures[name]:.3f}" for name in ("calls", "silent", "balanced")),
        *(f"{figures[name]:.2f}%" for name in ("loss", "losses")),
    ]


def bar(figures: dict[tuple[str, str], dict[str, float]]) -> str:
    """The registered bar, in one sentence."""
    lora = figures.get(("lora", "plain"))
    if lora is None:
        return "The bar cannot be looked at: plain LoRA is not run yet."
    passing = [
        f"{place} {treatment}"
        for (place, treatment), arm in figures.items()
        if place in PROVEN
        and arm["loss"] <= 1
        and arm["balanced"] >= lora["balanced"] + 0.25
        and arm["calls"] >= lora["calls"] - 0.03
    ]
    return f"The bar is met by {', '.join(passing)}." if passing else "The bar is not met by any arm that is run."


def chosen_mark(search: Cell, trial: Cell) -> str:
    return "yes" if trial["rate"] == search["chosen"] else ""


if __name__ == "__main__":
    main()
