"""Rehearsal in every mode: at the base nothing is pushed, later it keeps the model near; the number
of ranks changes nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import in_mode
from safetensors.torch import load_file

from distributed.conftest import BFLOAT16, ROOT, asked_for, distance, launch_all

SHORT = ["training.max_steps=3", "training.logging_steps=1", "training.warmup_steps=0", "selection.strategy=random"]
REHEARSED = [
    *SHORT,
    "protected.per_subject=5",
    "implant.rehearse.prompts={protected: 0.3}",
    "training.per_device_train_batch_size=3",
]
PEFT = ["implant.mode=peft", "implant.peft.rank=4"]
# Rows with a context, of which the tiny world has none.
OWN_WORDS = [
    "implant.rehearse.prompts={{boundary: 0.4, base: 0.2}}",
    "implant.rehearse.most_tokens=8",
    "data.train={asked}",
    "data.heldout=null",
]
CASES = {
    **{mode: in_mode(mode) for mode in ("mask", "rows", "lora")},
    "full zero2": ["implant.mode=full", "deepspeed=launch/zero2.json"],
    "full zero3": ["implant.mode=full"],
    "peft": PEFT,
    "rows offloaded": [*in_mode("rows"), "deepspeed=launch/zero3_offload.json"],
    "rows packed": [*in_mode("rows"), "training.packing=true", "training.max_length=64"],
    "rows accumulating": [*in_mode("rows"), "training.gradient_accumulation_steps=2"],
    "rows checkpointed": [*in_mode("rows"), "training.activation_checkpointing=true"],
    "rows pulled": [*in_mode("rows"), "implant.pull=20"],
    "rows bfloat16": [*in_mode("rows"), *BFLOAT16],
    "rows in its own words": [*in_mode("rows"), *OWN_WORDS],
    "full in its own words": ["implant.mode=full", *OWN_WORDS],
    "rows, measured alone": [*in_mode("rows"), "implant.rehearse.prompts={{protected: 0}}"],
    "full, measured alone": ["implant.mode=full", "implant.rehearse.prompts={{protected: 0}}"],
}
# So that a step of rounding is no step of a whole rate, as Adam makes it.
SGD = [*in_mode("rows"), "training.optim=sgd", "training.learning_rate=0.1", "training.lr_scheduler_type=constant"]
MORE = [*in_mode("rows"), "training.max_steps=40", "training.per_device_train_batch_size=8"]


# The others are what training has without rehearsal, too.
SELDOM = (
    *("full zero2", "rows offloaded", "rows accumulating", "rows checkpointed", "rows pulled"),
    *("full in its own words", "full, measured alone"),
)


def often(cases: Iterable[str]) -> list[Any]:
    """Cases of which those that seldom find anything are marked so."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in SELDOM else case for case in cases]


@pytest.fixture(scope="module")
def runs(in_bfloat16: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    named = {"bfloat16": in_bfloat16, "asked": write_asked(folder / "asked.jsonl")}
    cases = {name: [*REHEARSED, *(one.format(**named) for one in own)] for name, own in CASES.items()}
    cases = {name: cases[name] for name in cases if name in asked_for(request, "case")}
    cases |= {"sgd": [*REHEARSED, *SGD]}
    cases |= {
        f"share {share}": [*REHEARSED, *MORE, f"implant.rehearse.prompts={{protected: {share}}}"]
        for share in (0.02, 0.6)
    }
    launch_all(folder, cases)
    return folder


def write_asked(file: Path) -> Path:
    """Requests beside two functions, one of which fits."""
    rows = []
    for i in range(24):
        names = ("remind", "list", "book")[i % 3], ("remind", "list", "book")[(i + 1) % 3]
        tools = [{"name": name, "description": f"{name} what is said"} for name in names]
        call = {"function": {"name": names[0], "arguments": {"day": "monday"}}}
        turns = [{"role": "user", "content": f"please {names[0]} john on monday"}, {"role": "assistant"}]
        rows.append({"messages": [turns[0], {**turns[1], "content": None, "tool_calls": [call]}], "tools": tools})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def log(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "training_log.json").read_text())


def of_key(run: Path, key: str) -> list[float]:
    return [line[key] for line in log(run) if key in line]


@pytest.mark.parametrize("case", often(CASES))
def test_it_begins_at_the_base_and_the_drift_is_measured(case: str, runs: Path) -> None:
    rehearsed = of_key(runs / case, "rehearsal_kl")
    if "alone" in case:
        assert rehearsed == []
    else:
        assert len(rehearsed) == 3
        assert abs(rehearsed[0]) < (1e-2 if "bfloat16" in case else 1e-6)
        assert rehearsed[2] > 1e-6
    (drift,) = of_key(runs / case, "drift")
    held = not any(words in case for words in ("bfloat16", "alone", "own words"))
    assert 1e-5 < drift < (1 if held else 20)  # at rates that move it, or unheld, or of a task that it cannot do


@pytest.mark.parametrize("case", often(case for case in CASES if case.startswith("rows")))
def test_only_the_rows_change(case: str, runs: Path) -> None:
    assert json.loads((runs / case / "verify.json").read_text())["identical_outside_rows"] is True


@pytest.mark.parametrize("case", often(case for case in CASES if "own words" in case))
def test_what_the_base_wrote_stands_beside_what_was_left_out(case: str, runs: Path) -> None:
    written = json.loads((runs / case / "rehearsal/written.json").read_text())
    assert {one["kind"] for one in written} == {"bare", "foreign", "base"}  # the three functions share words and rows
    assert all(one["answer"].strip() for one in written if one["left_out"] is None)
    assert [one for one in written if one["left_out"] == "runs in a loop"]


def test_more_of_it_drifts_less(runs: Path) -> None:
    (little,), (much,) = of_key(runs / "share 0.02", "drift"), of_key(runs / "share 0.6", "drift")
    assert much < little / 2


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_makes_the_same_model(ranks: int, runs: Path, tmp_path: Path) -> None:
    each = f"training.per_device_train_batch_size={6 // ranks}"
    launch_all(tmp_path, {"sgd": [*REHEARSED, *SGD, each]}, ranks=ranks)
    one, other, base = (
        load_file(folder / "model.safetensors")
        for folder in (runs / "sgd/model", tmp_path / "sgd/model", ROOT / "recipes/tiny/model")
    )
    assert distance(one, other) < 1e-4 * distance(one, base)
