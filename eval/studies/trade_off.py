"""Skill against forgetting on the tiny world: every method at several settings, then again with
other seeds at the one it chose.

    python eval/studies/trade_off.py eval/studies/methods.yaml       # make study
    python eval/studies/trade_off.py eval/studies/dial.yaml          # make dial-study

A study is a YAML file of methods. Each cell is one run of the main job on one process, as many at a
time as there are cores; finished cells are not redone. One rule for all: of the settings that reach
`enough` held-out skill, the one that forgets least; where none does, the one with most skill.
Writes eval/reports/STUDY.json, .md and .png.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from main_job import python
from rule import choose

from loki_ds.report.pictures import Point, trade_off

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import REPORTS, keep, paragraph, spread, table, write

Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    arguments = parser.parse_args()
    study, name = yaml.safe_load(arguments.study.read_text()), arguments.study.stem
    runs = Path("runs", "study", name)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        attribute(study, runs, pool)
        found: dict[str, list[Cell]] = {}
        for second in (False, True):  # what is implanted after another implant has to wait for it
            methods = {key: method for key, method in study["methods"].items() if ("after" in method) == second}
            found |= sweep(methods, study, runs, found, pool)
            keep(name, found)
    write_report(study, name, found)
    drawn = {key: cells for key, cells in found.items() if not study["methods"][key].get("apart")}
    points: dict[str, list[Point]] = {
        key: [{"skill": cell["skill"], "lost": cell["forgetting"]} for cell in _first_seed(cells, study)]
        for key, cells in drawn.items()
    }
    trade_off(points, "forgetting", REPORTS / f"{name}.png", study["enough"])


def attribute(study: dict[str, Any], runs: Path, pool: ThreadPoolExecutor) -> None:
    """The attributions that methods select from, and the positions of every selection."""
    wanted = [
        [
            "--recipe",
            _recipe(one),
            "--until",
            "attribute",
            f"run={runs / 'attributions' / key}",
            *_overrides(one.get("set", {})),
        ]
        for key, one in study.get("attributions", {}).items()
    ]
    list(pool.map(lambda arguments: python("launch/implant.py", *arguments), wanted))
    for selection in {
        _positions(runs, m["select"]): m["select"] for m in study["methods"].values() if "select" in m
    }.values():
        source, out = runs / "attributions" / selection["from"], _positions(runs, selection)
        settings = ["--quota", str(selection["quota"]), "--strategy", selection["strategy"]]
        python("-m", "loki_ds.cli.commands", "select", str(source), *settings, "--out", str(out))


def sweep(
    methods: dict[str, Any], study: dict[str, Any], runs: Path, before: dict[str, list[Cell]], pool: ThreadPoolExecutor
) -> dict[str, list[Cell]]:
    """All settings of every method with the first seed, then the chosen setting with the method's
    other seeds.
    """
    first, *others = study["seeds"]
    waiting = [
        _cell(key, method, value, first, study, runs, before)
        for key, method in methods.items()
        for value in _values(method)
    ]
    found: dict[str, list[Cell]] = {key: [] for key in methods}
    _run_all(waiting, found, pool)
    repeated = [
        _cell(key, method, chosen_of(found[key], study)["value"], seed, study, runs, before)
        for key, method in methods.items()
        if method.get("repeat", True)
        for seed in others
    ]
    _run_all(repeated, found, pool)
    return found


def _run_all(waiting: list[Callable[[], Cell]], found: dict[str, list[Cell]], pool: ThreadPoolExecutor) -> None:
    for cell in pool.map(lambda run: run(), waiting):
        found[cell["method"]].append(cell)


def _cell(
    key: str,
    method: dict[str, Any],
    value: Any,
    seed: int,
    study: dict[str, Any],
    runs: Path,
    before: dict[str, list[Cell]],
) -> Callable[[], Cell]:
    """One run, when it is called for, and what its report says."""
    varied = _varied(method)
    folder = runs / key.replace(" ", "-").replace("/", "_") / f"{varied.split('.')[-1]}={value}-seed={seed}"
    settings = {
        **study.get("set", {}),
        **method.get("set", {}),
        varied: value,
        "training.seed": seed,
        "selection.seed": seed,
    }
    if "select" in method:
        settings["selection.positions"] = str(_positions(runs, method["select"]))
    if "after" in method:
        earlier = next(
            c
            for c in before[method["after"]]
            if c["seed"] == seed and c["value"] == chosen_of(before[method["after"]], study)["value"]
        )
        settings |= {
            "model.path": f"{earlier['run']}/model",
            "selection.exclude": f"[{earlier['run']}/implant.safetensors]",
        }

    def run() -> Cell:
        report, started = folder / "report" / "report.json", time.monotonic()
        if not report.exists():
            python(
                "launch/implant.py",
                "--recipe",
                _recipe(method),
                *_overrides(settings),
                f"run={folder}",
                log=folder.with_suffix(".log"),
            )
            (folder / "seconds").write_text(str(round(time.monotonic() - started)))
        return {
            "method": key,
            "value": value,
            "seed": seed,
            "run": str(folder),
            **_measured(json.loads(report.read_text()), folder),
        }

    return run


def _measured(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    scores = {task["task"]: [task["base"], task["implanted"]] for task in (*report["tasks"], *report["new_task"])}
    seconds = int((folder / "seconds").read_text())
    return {
        "skill": report["new_task"][0]["implanted"],
        "forgetting": report["forgetting"],
        "losses": report["losses_only"],
        "change": report["verification"]["change"],
        "scores": scores,
        "seconds": seconds,
    }


def chosen_of(cells: Iterable[Cell], study: dict[str, Any]) -> Cell:
    """The rule, on the first seed's cells."""
    return choose(_first_seed(cells, study), study["enough"])


def _first_seed(cells: Iterable[Cell], study: dict[str, Any]) -> list[Cell]:
    return [cell for cell in cells if cell["seed"] == study["seeds"][0]]


def write_report(study: dict[str, Any], name: str, found: dict[str, list[Cell]]) -> None:
    total, count = sum(cell["seconds"] for cells in found.values() for cell in cells), sum(map(len, found.values()))
    groups = study.get("groups", {})
    columns = ["new task", "forgetting", *(f"forgetting, {group}" for group in groups)]
    about = (
        f"`python eval/studies/trade_off.py eval/studies/{name}.yaml` ({count} runs, {total / 60:.0f} core minutes). "
        f"{study['about']}"
    )
    rule = (
        f"Chosen: of the settings that reach {study['enough']} held-out skill, the one that forgets least. Mean over "
        "seeds (range). What the figures say: `findings.md`."
    )
    every = [
        [key, f"{_setting(study['methods'][key])} {cell['value']}", *_figures([cell], groups)]
        for key, cells in found.items()
        for cell in _first_seed(cells, study)
    ]
    write(
        name,
        study["title"],
        paragraph(about),
        paragraph(rule),
        f"![skill against forgetting]({name}.png)",
        table(
            ["method", "setting", "seeds", *columns],
            [_chosen_row(key, study, cells) for key, cells in found.items()],
            2,
        ),
        "## Every setting, first seed",
        table(["method", "setting", *columns], every, words=2),
    )


def _varied(method: dict[str, Any]) -> str:
    (varied,) = method["vary"]
    return varied


def _chosen_row(key: str, study: dict[str, Any], cells: list[Cell]) -> list[object]:
    """A method at the setting it chose, over its seeds."""
    chosen = chosen_of(cells, study)
    same = [cell for cell in cells if cell["value"] == chosen["value"]]
    enough = "" if chosen["skill"] >= study["enough"] else " (not enough skill at any)"
    setting = f"{_setting(study['methods'][key])} {chosen['value']}{enough}"
    return [key, setting, len(same), *_figures(same, study.get("groups", {}))]


def _figures(cells: list[Cell], groups: dict[str, list[str]]) -> list[str]:
    """Skill, forgetting, and forgetting of each group of tasks."""
    by_group = [spread([_forgotten(cell, tasks) for cell in cells], "{:.2f}%") for tasks in groups.values()]
    skill, forgetting = ([cell[key] for cell in cells] for key in ("skill", "forgetting"))
    return [spread(skill, "{:.3f}"), spread(forgetting, "{:.2f}%"), *by_group]


def _forgotten(cell: Cell, tasks: list[str]) -> float:
    """The forgetting score over some of the tasks."""
    return 100 * float(np.mean([1 - cell["scores"][task][1] / cell["scores"][task][0] for task in tasks]))


def _setting(method: dict[str, Any]) -> str:
    varied = _varied(method)
    return {"training.learning_rate": "rate"}.get(varied, varied.split(".")[-1])


def _values(method: dict[str, Any]) -> list[Any]:
    (values,) = method["vary"].values()
    return values


def _recipe(one: dict[str, Any]) -> str:
    return f"recipes/tiny/{one['recipe']}.yaml"


def _positions(runs: Path, selection: dict[str, Any]) -> Path:
    return runs / "positions" / f"{selection['from']}-{selection['strategy']}-{selection['quota']}.json"


def _overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else value}" for key, value in settings.items()] + ["deepspeed=null"]


if __name__ == "__main__":
    main()
