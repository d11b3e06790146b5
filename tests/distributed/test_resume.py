"""A killed training goes on: by as many ranks to the same bytes, by others to the same weights; or
it is refused by what differs.
"""

import json
import shutil
import time
from pathlib import Path

import pytest
from conftest import in_mode
from safetensors.torch import load_file
from transformers import AutoConfig
from trl import SFTConfig

from distributed.conftest import (
    BFLOAT16,
    ROOT,
    asked_for,
    distance,
    kill,
    launch,
    launch_all,
    start,
    write_configurations,
)
from loki_ds.checking.base import look_at_base
from loki_ds.checking.disk import Room
from loki_ds.disk.files import digest_of
from loki_ds.recipe.file import load_recipe

BASE = ROOT / "recipes/tiny/model"
SHORT = ["selection.strategy=random", "training.max_steps=4", "training.logging_steps=1", "training.warmup_steps=0"]
SAVING = ["training.save_strategy=steps", "training.save_steps=2"]
BATCH = [
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=3",
]  # by two ranks 12 examples a step
SAVED = {
    **{
        f"{mode} zero{stage}": [*in_mode(mode), f"deepspeed={{folder}}/zero{stage}.json", "implant.pull=20"]
        for mode, stage in [("mask", 1), ("mask", 3), ("rows", 0), ("rows", 2), ("rows", 3), ("lora", 3)]
    },
    "full zero2": [
        "implant.mode=full",
        "deepspeed={folder}/zero2.json",
        "training.learning_rate=1e-4",
        "implant.fade=0.2",
    ],
    "peft dora": ["implant.mode=peft", "implant.peft.method=dora", "implant.peft.rank=4", "implant.pull=20"],
    "mask offloaded": ["implant.mode=mask", "deepspeed=launch/zero3_offload.json", "implant.pull=20"],
    **{
        f"experts {mode} zero3": [*in_mode(mode), "deepspeed={folder}/zero3.json", "model.path={experts}"]
        for mode in ("rows", "mask")
    },
    "rows bfloat16": [*in_mode("rows"), *BFLOAT16],
    "adafactor": [*in_mode("rows"), "training.optim=adafactor"],
    "all places": [*in_mode("rows"), "selection.where=all", "deepspeed={folder}/zero3.json", "implant.pull=20"],
}
GO_ON = [(1, name) for name in SAVED if name != "adafactor"] + [
    (3, name) for name in ("mask zero3", "rows zero2", "rows zero3", "experts rows zero3")
]


@pytest.mark.parametrize(("mode", "where"), [pytest.param("mask", "down", marks=pytest.mark.slow), ("rows", "gate_up")])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(mode: str, where: str, tmp_path: Path) -> None:
    settings = [
        "training.max_steps=8",
        *SAVING,
        *in_mode(mode),
        f"selection.where={where}",
        "selection.strategy=random",
        "--until",
        "implant",
    ]
    job = start("launch/implant.py", "--recipe", "tests/few/loki.yaml", *settings, f"run={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoints/checkpoint-4/whole.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    kill(job)
    assert not (tmp_path / "killed/model").exists()
    again = launch(*settings, f"run={tmp_path / 'killed'}")
    assert again.status == 0, again.output
    assert "resuming from" in again.output
    whole = launch(*settings, f"run={tmp_path / 'whole'}")
    assert whole.status == 0, whole.output
    assert digest_of(tmp_path / "killed/model/model.safetensors") == digest_of(
        tmp_path / "whole/model/model.safetensors"
    )


@pytest.fixture(scope="module")
def saved(
    in_bfloat16: Path, experts: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, dict[str, list[str]]]:
    """Finished runs of two ranks with their checkpoints, and the settings of each."""
    folder = tmp_path_factory.mktemp("saved")
    write_configurations(folder)
    wanted = {case.partition(",")[0] for case in asked_for(request, "case")}
    places = {"folder": folder, "bfloat16": in_bfloat16, "experts": experts}
    cases = {
        name: [*SHORT, *SAVING, *BATCH, *(part.format(**places) for part in overrides)]
        for name, overrides in SAVED.items()
        if name in wanted
    }
    launch_all(folder, cases)
    return folder, cases


@pytest.fixture(scope="module")
def taken_up(
    saved: tuple[Path, dict[str, list[str]]], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The same runs, gone on with from halfway by other numbers of ranks."""
    folder, (before, cases) = tmp_path_factory.mktemp("taken_up"), saved
    go_on = [each for each in GO_ON if each in asked_for(request, "ranks", "case")]
    for ranks, name in go_on:
        shutil.copytree(
            before / name / "checkpoints/checkpoint-2", folder / str(ranks) / name / "checkpoints/checkpoint-2"
        )
    for ranks in (1, 3):
        launch_all(folder / str(ranks), {name: cases[name] for by, name in go_on if by == ranks}, ranks=ranks)
    return folder


# One for each kind of thing that training leaves, and one with more ranks.
OFTEN = [
    (1, "all places"),
    (1, "mask zero3"),
    (1, "rows zero2"),
    (1, "peft dora"),
    (1, "full zero2"),
    (3, "rows zero3"),
]


@pytest.mark.parametrize(
    ("ranks", "case"),
    [each if each in OFTEN else pytest.param(*each, marks=pytest.mark.slow) for each in GO_ON],
)
def test_other_ranks_go_on_and_end_with_the_same_weights(
    ranks: int, case: str, saved: tuple[Path, dict[str, list[str]]], taken_up: Path
) -> None:
    runs = saved[0] / case, taken_up / str(ranks) / case
    whole, gone_on = (json.loads((run / "training_log.json").read_text()) for run in runs)
    assert [entry["step"] for entry in gone_on] == [entry["step"] for entry in whole]
    start = Path(load_recipe(ROOT / "tests/few/loki.yaml", saved[1][case]).model.path)
    base, one, other = (load_file(folder / "model.safetensors") for folder in (start, *(run / "model" for run in runs)))
    assert distance(one, other) < (0.01 if "bfloat16" in case else 1e-5) * distance(
        one, base
    )  # rounding, against what training moved


@pytest.mark.parametrize(
    "case",
    [
        name if name in {case for _, case in OFTEN} else pytest.param(name, marks=pytest.mark.slow)
        for name in SAVED
        if name != "peft dora"
    ],
)
def test_a_checkpoint_takes_what_the_check_reckons(case: str, saved: tuple[Path, dict[str, list[str]]]) -> None:
    """At least, and not much more."""
    folder, cases = saved
    recipe = load_recipe(ROOT / "tests/few/loki.yaml", cases[case])
    base = Path(recipe.model.path)
    found = look_at_base(recipe.model, recipe.implant, recipe.selection, False, base, AutoConfig.from_pretrained(base))
    arguments = SFTConfig(
        output_dir="none", use_cpu=True, bf16=False, optim=recipe.training.get("optim", "adamw_torch")
    )
    files = [
        file
        for file in (folder / case / "checkpoints/checkpoint-2").rglob("*")
        if file.suffix in (".pt", ".safetensors")
    ]
    assert 0.9 < Room(recipe, found, arguments).checkpoint() / sum(file.stat().st_size for file in files) <= 1


@pytest.mark.parametrize(
    ("case", "ranks", "sentence"),
    [
        pytest.param(
            *("adafactor", 1, "only the state of AdamW can be divided anew; resume with as many as wrote it"),
            marks=pytest.mark.slow,
        ),
        ("rows zero2, another rate", 2, "was made with learning_rate 0.002, now it is 0.1"),
    ],
    ids=["another optimizer", "another rate"],
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(
    case: str, ranks: int, sentence: str, saved: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    before, cases = saved
    name, _, other = case.partition(", ")
    shutil.copytree(before / name / "checkpoints/checkpoint-2", tmp_path / "run/checkpoints/checkpoint-2")
    settings = [*cases[name], *(["training.learning_rate=0.1"] if other else [])]
    done = launch(*settings, "--until", "implant", f"run={tmp_path / 'run'}", ranks=ranks)
    assert done.status != 0
    assert sentence in done.refusals()[0]
    assert not (tmp_path / "run/model").exists()
