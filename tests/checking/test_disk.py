"""What a run will write at least, against hand-made sums (against a real training's checkpoints:
`tests/distributed/test_resume.py`).
"""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, in_mode
from transformers import AutoConfig
from trl import SFTConfig

from loki_ds.checking.base import BaseFound
from loki_ds.checking.disk import Room, check_room, checkpoints_at_once
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.file import load_recipe
from loki_ds.recipe.sections import Recipe
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block, down_names

MODEL = ROOT / "recipes/tiny/model"
CONFIG = AutoConfig.from_pretrained(MODEL)
BLOCKS = [
    Block(name, CONFIG.hidden_size, CONFIG.intermediate_size, name) for name in down_names(CONFIG.num_hidden_layers)
]
BASE = BaseFound(MODEL, CONFIG, 4_000_000, 1_000_000, ["float32"], BLOCKS)
DOWN = 6 * 128 * 384
ROWS = 6 * 12 * 384


def recipe(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/tiny/loki.yaml", ["selection.quota=10", *overrides])


def settings(**changes: object) -> SFTConfig:
    return SFTConfig(output_dir="none", use_cpu=True, bf16=False, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "beside"),
    [
        # ZeRO-3: what is frozen once more; master, two moments and nothing else of what trains
        (["implant.mode=mask"], 4 * (1_000_000 - DOWN) + 12 * DOWN),
        ([*in_mode("rows")], 4 * 1_000_000 + 12 * ROWS),
        ([*in_mode("lora"), "implant.lora.rank=4"], 4 * 1_000_000 + 12 * 6 * 4 * (12 + 384)),
        (["implant.mode=full"], 12 * 1_000_000),
        (["implant.mode=full", "deepspeed=launch/zero2.json"], 4 * 1_000_000 + 12 * 1_000_000),
        (["implant.mode=full", "deepspeed=null"], 8 * 1_000_000),
        (["implant.mode=full", "model.dtype=bfloat16", "deepspeed=null"], 4 * 1_000_000),
    ],
)
def test_a_checkpoint_holds_the_model_and_what_the_optimizer_keeps(overrides: list[str], beside: int) -> None:
    asked = recipe(*overrides)
    model = (2 if asked.model.dtype == "bfloat16" else 4) * 1_000_000
    assert Room(asked, BASE, settings()).checkpoint() == model + beside
    assert Room(asked, BASE, settings(save_only_model=True)).checkpoint() == model


def test_another_optimizer_keeps_less() -> None:
    asked = recipe("implant.mode=full", "deepspeed=null")
    assert Room(asked, BASE, settings(optim="sgd")).checkpoint() == 4_000_000
    assert Room(asked, BASE, settings(optim="lion_32bit")).checkpoint() == 8_000_000


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_strategy": "steps", "save_steps": 100}, 10),
        ({"save_strategy": "steps", "save_steps": 0.3}, 4),
        ({"save_strategy": "steps", "save_steps": 100, "save_total_limit": 3}, 4),
        ({"save_strategy": "steps", "save_steps": 600, "save_total_limit": 3}, 2),
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, 3),
    ],
)
def test_checkpoints_lie_there_until_the_next_is_written(changes: dict, kept: int) -> None:
    assert checkpoints_at_once(settings(**changes), steps=1000) == kept


def test_what_is_there_already_is_not_wanted_again(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path), recipe("implant.mode=full", "deepspeed=null")
    saving = settings(save_strategy="steps", save_steps=5, save_total_limit=1)
    fresh = Room(asked, BASE, saving).wanted(folder, 10)
    assert fresh == 4_000_000 + 2 * 12_000_000
    assert Room(asked, BASE, saving).wanted(folder, 0) == 4_000_000
    (folder.checkpoints / "checkpoint-5").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-5/optimizer.pt").write_bytes(b"0" * 1_000_000)
    assert Room(asked, BASE, saving).wanted(folder, 10) == fresh - 1_000_000
    folder.model.mkdir()
    assert Room(asked, BASE, saving).wanted(folder, 10) == 0


@pytest.mark.parametrize(("mode", "models"), [("rows", 2), ("full", 3)])
def test_a_dial_writes_another_model(mode: str, models: int) -> None:
    asked = recipe(f"implant.mode={mode}", "tune.budget.skill=0.9")
    assert Room(asked, BASE, settings(save_strategy="no")).wanted(RunFolder("none"), 10) == models * 4_000_000


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert "takes at least" in check_room(tmp_path, free // 2)
    with pytest.raises(Refusal, match=r"GiB are free there, the run takes at least .*; make room, use run=FOLDER, or"):
        check_room(tmp_path, 2 * free)
