"""A new recipe is one that `check` reads, with what it was told and a comment on every line."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe.file import load_recipe
from loki_ds.recipe.new import Wanted, recipe_text, suites


def written(folder: Path, **changes: str | int) -> str:
    wanted = Wanted(model="org/chat", data="chats.jsonl", keep="quick", gpus=8)._replace(**changes)
    return recipe_text(wanted, folder / "mine.yaml")


@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("keep", [name for name in suites() if name != "paper"])
def test_it_is_a_recipe(keep: str, gpus: int, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(written(tmp_path, keep=keep, gpus=gpus))
    recipe = load_recipe(tmp_path / "mine.yaml", [])
    assert (recipe.model.path, recipe.data.train[0].path) == ("org/chat", "chats.jsonl")
    assert recipe.model.dtype == ("bfloat16" if gpus else "float32")
    assert Path(recipe.deepspeed or "").name == ("zero3.json" if gpus > 1 else "zero2.json")
    assert (recipe.implant.mode, recipe.implant.fade) == ("full", 0.88)


def test_its_dtype_and_its_loss_are_those_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    text = written(tmp_path, model=str(ROOT / "recipes/tiny/model"), data=str(tmp_path / "pairs.jsonl"))
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.yaml", [])
    assert recipe.model.dtype == "float32"  # the tiny model's own
    assert recipe.training["assistant_only_loss"] is False


@pytest.mark.parametrize(("rows", "epochs", "rate"), [(60, 10, 5e-5), (10, 20, 5e-5), (3_000, 2, 1e-5)])
def test_few_rows_are_seen_more_often_at_a_higher_rate(rows: int, epochs: int, rate: float, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n' * rows)
    (tmp_path / "mine.yaml").write_text(written(tmp_path, data=str(tmp_path / "chats.jsonl"), gpus=1))
    training = load_recipe(tmp_path / "mine.yaml", []).training
    assert (training["num_train_epochs"], float(training["learning_rate"])) == (epochs, rate)


def test_rows_are_no_longer_than_the_model_is_made_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(written(tmp_path, model=str(ROOT / "recipes/tiny/model")))
    assert load_recipe(tmp_path / "mine.yaml", []).training["max_length"] == 256


def test_names_that_yaml_would_read_otherwise_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(written(tmp_path, model="500", data="a: b #1.jsonl"))
    recipe = load_recipe(tmp_path / "mine.yaml", [])
    assert (recipe.model.path, recipe.data.train[0].path) == ("500", "a: b #1.jsonl")


def test_every_line_says_what_it_is_for(tmp_path: Path) -> None:
    lines = [line for line in written(tmp_path).splitlines() if ": " in line and not line.lstrip().startswith("#")]
    without = [line for line in lines if " # " not in line]
    assert {line.split(":")[0].strip() for line in without} == {
        "num_train_epochs", "per_device_train_batch_size", "save_total_limit"
    }  # fmt: skip
