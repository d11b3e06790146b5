"""Which checkpoint is gone on from, and what is said of one that cannot be."""

import json
from pathlib import Path

import pytest

from loki_ds.implanting.checkpoints import Checkpoint, newest_checkpoint
from loki_ds.implanting.trl_config import training_arguments
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):  # a kill came while 12 was written
        mark = {"ranks": 2, "examples": 16, "inputs": {"step": step}}
        (tmp_path / f"checkpoint-{step}/whole.json").write_text(json.dumps(mark))
    assert newest_checkpoint(tmp_path) == Checkpoint(tmp_path / "checkpoint-10", 2, 16, {"step": 10})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ranks": 2, "examples": 16}'])
def test_a_mark_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2/whole.json").write_text(text)
    with pytest.raises(Refusal, match="not the mark of a checkpoint; delete"):
        newest_checkpoint(tmp_path)


def test_a_step_keeps_its_examples_or_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, ranks=2, examples=12, inputs={})
    assert [checkpoint.micro_steps(at_once) for at_once in (1, 4, 12)] == [12, 3, 1]
    with pytest.raises(Refusal, match="each of its steps has 12 examples, and 1 ranks, which take 8 at once"):
        checkpoint.micro_steps(8)


def test_other_ranks_accumulate_what_makes_the_same_step(tmp_path: Path) -> None:
    recipe = load_recipe("recipes/tiny/loki.yaml", ["training.per_device_train_batch_size=4"])
    found = training_arguments(recipe, tmp_path, Checkpoint(tmp_path, ranks=8, examples=32, inputs={}))
    assert found.gradient_accumulation_steps == 8


def test_with_a_best_checkpoint_only_as_many_ranks_go_on(tmp_path: Path) -> None:
    best = ["training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.save_strategy=steps"]
    recipe = load_recipe("recipes/tiny/loki.yaml", best)
    with pytest.raises(Refusal, match="only 8 can resume, for the best one may be of that time"):
        training_arguments(recipe, tmp_path, Checkpoint(tmp_path, ranks=8, examples=32, inputs={}))
