"""The registered study on SmolLM2-135M-Instruct: `real.md` says what is asked, `real_study.yaml`
how.

    python eval/real/fetch.py build/real         # the model and the data, once
    python eval/studies/real_study.py            # both: make registered-study
    python eval/studies/real_study.py --hours 2  # begins no further cell after two hours

Every figure is kept as it comes, in eval/reports/real_study.json, and what is there is not done
again: stop it at any time, on a CPU it is days of two cores. As many runs at a time as there are
cores, or as the GPU's memory holds. Writes eval/reports/real_study.md and .png from what is there.
"""

import argparse
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from main_job import python
from real_study_report import is_done, write_report
from rule import next_rate, smallest_of_the_best
from selections import relative
from smollm2 import halving, main_job, tuning_loss
from torch import Tensor
from transformers import AutoConfig

from loki_ds.attribution.kept import KeptScores, kept_sensitivity
from loki_ds.device import on_cpu
from loki_ds.positions import Positions
from loki_ds.selection import select, select_by_sensitivity, select_random

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

from reporting import REPORTS, ROOT, keep
from rows import rows, write

STUDY = yaml.safe_load((Path(__file__).parent / "real_study.yaml").read_text())
REAL, RUNS = ROOT / "build/real", ROOT / "runs/real_study"
SENSITIVITY = RUNS / "sensitivity/attribution/sensitivity.safetensors"
QUOTA = STUDY["selections"]["lowest"]["quota"]  # of the rows that train, random ones too
ONE_RUN = 10 * 2**30  # bytes of a GPU's memory that a run takes
ATTRIBUTIONS: dict[str, list[str]] = {
    "kva": [],
    "zero_shot": ["protected.prompts=build/real/zero_shot.jsonl"],
    "one_a_subject": ["protected.per_subject=1"],
    "k_from_0": ["protected.per_subject=1", "attribution.rule=left"],
}
GAIN = ["protected.per_subject=1", "selection.strategy=layer_gain", "data.train=build/real/some_train.jsonl"]


class Kept:
    """What is known so far, by stage and name; each figure is written as it comes."""

    def __init__(self) -> None:
        file = REPORTS / "real_study.json"
        self.found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        self.lock = threading.Lock()

    def add(self, stage: str, **found: Any) -> None:
        with self.lock:
            self.found.setdefault(stage, {}).update(found)
            keep("real_study", self.found)

    def has(self, stage: str, name: str) -> bool:
        return name in self.found.get(stage, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=at_a_time(), help="runs at a time")
    parser.add_argument("--hours", type=float, default=math.inf, help="after so many no further cell begins")
    arguments = parser.parse_args()
    ends, kept = time.monotonic() + 3600 * arguments.hours, Kept()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if not kept.has("A", "stability"):
            attribute(pool)
            select_all()
            kept.add("A", selected=selected(), stability=stability(), recurring=recurring())
        first, *others = STUDY["suppression"]["quotas"]
        suppress(first, kept, pool, arguments.jobs)
        list(pool.map(lambda cell: run_cell(kept, cell, ends), cells()))
        if is_done(STUDY, kept.found) and not kept.has("base", "last"):
            kept.add("base", last=asked("base-last", {"base": {}}, [STUDY["likelihoods"], STUDY["scores"]])["base"])
        for quota in others:
            suppress(quota, kept, pool, arguments.jobs)
    write_report(STUDY, kept.found)


def at_a_time() -> int:
    return os.cpu_count() or 1 if on_cpu() else max(1, torch.cuda.mem_get_info()[0] // ONE_RUN)


# --- attributions and selections ------------------------------------------------------------------


def attribute(pool: ThreadPoolExecutor) -> None:
    """All attributions that stage A compares; those that are there stay."""
    if not (REAL / "zero_shot.jsonl").exists():
        write(REAL / "zero_shot.jsonl", [without_shots(row) for row in rows(REAL / "protected.jsonl")])
    if not (REAL / "some_train.jsonl").exists():
        write(REAL / "some_train.jsonl", rows(REAL / "train.jsonl")[::15])  # 50 of 740
    wanted = {RUNS / name: settings for name, settings in {**ATTRIBUTIONS, "sensitivity": GAIN}.items()}
    left = [(run, settings) for run, settings in wanted.items() if not (run / "costs.json").exists()]
    list(pool.map(lambda one: main_job("calls-q30", one[0], *one[1], "--until", "attribute"), left))


def without_shots(row: dict[str, str]) -> dict[str, str]:
    """What it is about, and the question itself."""
    about, *_, question = row["prompt"].split("\n\n")
    return {**row, "prompt": f"{about}\n\n{question}"}


@cache
def kept_scores(name: str = "kva") -> Tensor:
    return KeptScores(RUNS / name / "attribution").scores()


def select_all() -> None:
    for name, selection in STUDY["selections"].items():
        if "attribution" in selection:
            for quota in (selection["quota"], *STUDY["suppression"]["quotas"]):
                chosen(name, quota).save(kept_rows(name, quota))


def kept_rows(name: str, quota: float) -> Path:
    """The file of a selection's rows, beside the report: the study goes on anywhere with the same
    rows, and attributes nothing again.
    """
    folder = REPORTS / "real_study"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}-{quota:g}.json"


def chosen(name: str, quota: float) -> Positions:
    selection = STUDY["selections"][name]
    if selection["attribution"] == "sensitivity":
        return select_by_sensitivity(*kept_sensitivity(SENSITIVITY), quota, selection["strategy"])
    return select(kept_scores(), quota, selection["strategy"])


def drawn(quota: float, seed: int) -> Positions:
    config = AutoConfig.from_pretrained(REAL / "model")
    return select_random(config.num_hidden_layers, config.hidden_size, quota, seed)


def drawn_rows(quota: float, seed: int) -> Path:
    """The file of rows by chance."""
    folder = RUNS / "positions"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"random-{quota:g}-{seed}.json"
    drawn(quota, seed).save(file)
    return file


# --- stage A --------------------------------------------------------------------------------------


def selected() -> dict[str, dict[str, float]]:
    """Sensitivity and mean absolute score of every selection's rows, over those of all rows."""
    protected, new_task = kept_sensitivity(SENSITIVITY)
    by = {
        "sensitivity, protected": protected,
        "sensitivity, new task": new_task,
        "mean abs. KVA": kept_scores().double().abs().mean(0),
    }
    own = {name: one["quota"] for name, one in STUDY["selections"].items() if "attribution" in one}
    named = {name: Positions.load(kept_rows(name, quota)) for name, quota in own.items()}
    named["random 0"] = drawn(QUOTA, seed=0)
    return {name: {what: relative(rows, moments) for what, moments in by.items()} for name, rows in named.items()}


def stability() -> dict[str, float]:
    """Share of the rows that two ways of selecting have in common, quota 30."""
    scores = {name: kept_scores(name) for name in ATTRIBUTIONS}
    lowest, one = select(scores["kva"], 30), select(scores["one_a_subject"], 30)
    smallest = select(scores["kva"], 30, "layer_smallest")
    halves = {
        f"two halves of the prompts, {name}": select(scores["kva"][::2], 30, strategy).overlap(
            select(scores["kva"][1::2], 30, strategy)
        )
        for name, strategy in (("lowest", "layer_balanced"), ("smallest", "layer_smallest"))
    }
    return {
        **halves,
        "with and without shots": lowest.overlap(select(scores["zero_shot"], 30)),
        "k = 1..7 and k = 0..6 (57 prompts)": one.overlap(select(scores["k_from_0"], 30)),
        "281 prompts and 57": lowest.overlap(one),
        "scores in float32 and in float16": lowest.overlap(select(scores["kva"].half().float(), 30)),
        "signed and absolute scores": lowest.overlap(smallest),
        "the last token's score and all tokens' sensitivity": lowest.overlap(
            select_by_sensitivity(*kept_sensitivity(SENSITIVITY), 30, "layer_sensitivity")
        ),
        "lowest and highest": lowest.overlap(select(scores["kva"], 30, "layer_highest")),
    }


def recurring() -> dict[str, Any]:
    """In how many layers the dimensions that are selected most often are, at quota 10."""
    scores, found = kept_scores(), {}
    for name in ("lowest", "highest", "smallest"):
        at_ten = chosen(name, 10)
        layers = torch.zeros(scores.shape[2], dtype=torch.long)
        for chosen_rows in at_ten.rows:
            layers[chosen_rows] += 1
        most = layers.topk(5)
        found[name] = dict(zip(map(str, most.indices.tolist()), most.values.tolist(), strict=True))
    of_layers = [set(layer) for layer in chosen("lowest", 30).rows]
    pairs = [len(a & b) / len(a) for i, a in enumerate(of_layers) for b in of_layers[:i]]
    return {"quota 10": found, "layers": scores.shape[1], "two layers' lowest in common": sum(pairs) / len(pairs)}


def suppress(quota: float, kept: Kept, pool: ThreadPoolExecutor, jobs: int) -> None:
    """Every selection's rows set to zero, asked for likelihoods alone."""
    own, variants = STUDY["suppression"], dict[str, Any](base={})
    named = {name: kept_rows(name, quota) for name in own["selections"]}
    by_chance = {f"random {seed}": drawn_rows(quota, seed) for seed in range(own["draws"])}
    for name, file in {**named, **by_chance}.items():
        variants[f"{name}, {quota}%"] = {"zeroed": str(file)}
    left = {name: one for name, one in variants.items() if not kept.has("suppressed", name)}
    shares = [dict(list(left.items())[i::jobs]) for i in range(jobs)]

    def share(number: int) -> None:
        section = {**STUDY["likelihoods"], "new_task": None}
        found = asked(f"suppressed-{quota}-{number}", shares[number], [section])
        kept.add("suppressed", **found)

    list(pool.map(share, [number for number in range(jobs) if shares[number]]))


def asked(name: str, variants: dict[str, Any], sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `one_base` finds, in a process of its own."""
    folder = RUNS / "asked"
    folder.mkdir(parents=True, exist_ok=True)
    work, found = folder / f"{name}.work.json", folder / f"{name}.json"
    work.write_text(json.dumps({"base": str(REAL / "model"), "variants": variants, "asks": sections}))
    python("eval/studies/one_base.py", str(work), str(found), log=folder / f"{name}.log")
    return json.loads(found.read_text())


# --- stage B --------------------------------------------------------------------------------------


def cells() -> Iterator[tuple[str, int, int]]:
    """Arm, data seed, draw, in the registered order."""
    for batch in STUDY["cells"]:
        for arm in batch["arms"]:
            for draw in range(STUDY["draws"] if arm == "random" else 1):
                yield arm, batch["seed"], draw


def run_cell(kept: Kept, cell: tuple[str, int, int], ends: float) -> None:
    """One training, and what its places are; unless it is known."""
    arm, seed, draw = cell
    name = f"{arm}, {seed}" + (f", {draw}" if arm == "random" else "")
    if kept.has("cells", name) or time.monotonic() > ends:
        return
    own, run, started = STUDY["arms"][arm], RUNS / "cells" / name.replace(", ", "-").replace(" ", "_"), time.monotonic()
    rate = rate_of(kept, own["class"])
    main_job(own["recipe"], run, *settings_of(own, seed, draw, rate), "--until", "implant")
    variants: dict[str, Any] = {
        str(scale): {"trained": str(run / "model"), "scale": scale, "asked": [0] if scale < 1 else [0, 1]}
        for scale in STUDY["places"]
    }
    if not kept.has("base", "first"):
        variants |= {"base": {}, "base again": {}}
    found = asked(run.name, variants, [STUDY["likelihoods"], STUDY["scores"]])
    if "base" in found:
        kept.add("base", first=found.pop("base"), again=found.pop("base again"))
    verified = json.loads((run / "verify.json").read_text())
    kept.add(
        "cells",
        **{
            name: {
                "arm": arm,
                "seed": seed,
                "rate": rate,
                "change": verified["change"],
                "identical_outside_rows": verified["identical_outside_rows"],
                "places": found,
                "seconds": round(time.monotonic() - started),
            }
        },
    )
    shutil.rmtree(run)  # gigabytes in all
    with kept.lock:  # its picture is drawn by one at a time
        write_report(STUDY, kept.found)


def settings_of(own: dict[str, Any], seed: int, draw: int, rate: float) -> list[str]:
    """The arm's own keys of the recipe."""
    settings = [f"training.seed={seed}", f"training.learning_rate={rate:g}", f"training.max_steps={STUDY['steps']}"]
    if "rows" in own:
        settings.append(f"selection.positions={rows_of(own['rows'], seed, draw)}")
    if own.get("pulled"):
        settings.append(f"implant.pull={halving(rate, STUDY['steps']):.3g}")
    given = own.get("set", {})
    if not any(key.startswith(("protected", "implant.rehearse")) for key in given):
        settings.append("protected=null")  # nothing of it is needed
    return [*settings, *(f"{key}={value}" for key, value in given.items())]


def rows_of(name: str, seed: int, draw: int) -> Path:
    """The file of the rows that train: a selection's, or by chance."""
    if name == "random":
        return drawn_rows(QUOTA, 100 * seed + draw)
    selection = STUDY["selections"][name]
    return kept_rows(name, selection["quota"]) if "attribution" in selection else drawn_rows(selection["quota"], seed=0)


SEARCHES = {of_class: threading.Lock() for of_class in STUDY["rates"]}


def rate_of(kept: Kept, of_class: str) -> float:
    """As registered, or found by the loss on the tuning chats, on seed 0 and one draw; where the
    best is at an end of the list, one rate more is tried there.
    """
    rates = STUDY["rates"][of_class]
    if not isinstance(rates, list):
        return float(rates)
    with SEARCHES[of_class]:  # arms of one class wait, those of others go on
        if not kept.has("rates", of_class):
            tried = [tuned(kept, of_class, float(rate)) for rate in rates]
            if (wider := next_rate(tried)) is not None:
                tried.append(tuned(kept, of_class, wider))
            best = smallest_of_the_best(tried, STUDY["within"])["rate"]
            kept.add("rates", **{of_class: {"tried": tried, "chosen": best}})
        return kept.found["rates"][of_class]["chosen"]


def tuned(kept: Kept, of_class: str, rate: float) -> dict[str, float]:
    """A rate, and its loss on the tuning chats."""
    name = f"{of_class}, {rate:g}"
    if not kept.has("tuned", name):
        own = next(one for one in STUDY["arms"].values() if one["class"] == of_class)
        run = RUNS / "rates" / name.replace(", ", "-").replace(" ", "_")
        loss = tuning_loss(own["recipe"], run, STUDY["steps"], *settings_of(own, 0, 0, rate))
        kept.add("tuned", **{name: loss})
        shutil.rmtree(run)
    return {"rate": rate, "loss": kept.found["tuned"][name]}


if __name__ == "__main__":
    main()
