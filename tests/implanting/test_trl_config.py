"""What the trainer is told beyond the recipe's own keys."""

from pathlib import Path

import pytest

from loki_ds.implanting.trl_config import TrainingShape, training_arguments
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("loki", ["implant.mode=mask"], 0.0),
        ("loki", ["implant.mode=rows", "training.weight_decay=0"], 0.0),
        ("loki", ["training.router_aux_loss_coef=0.01"], 0.01),
        ("full", [], None),  # the architecture's own
        ("lora", [], None),
    ],
)
def test_frozen_routers_are_not_balanced_unless_it_is_asked_for(
    recipe: str, overrides: list[str], expected: float | None, tmp_path: Path
) -> None:
    found = training_arguments(load_recipe(f"recipes/tiny/{recipe}.yaml", overrides), tmp_path, None)
    assert found.router_aux_loss_coef == expected


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.optim=adamw_bnb_8bit"], "training.optim is adamw_bnb_8bit: .*bitsandbytes"),
        (["training.assistant_only_loss=maybe"], "training.assistant_only_loss is 'maybe', allowed is"),
        (["training.optim=lomo"], "training.optim is lomo: .*lomo"),
        (["training.truncation_mode=middle"], "truncation_mode is 'middle', allowed is keep_end or keep_start"),
        (["training.max_steps=-5"], "training.max_steps is -5, allowed is more than 0, or -1"),
        (["implant.early_stopping=3"], "implant.early_stopping needs training.load_best_model_at_end"),
        (
            ["training.metric_for_best_model=eval_accuracy"],
            "is 'eval_accuracy', allowed is loss or",
        ),
    ],
)
def test_what_the_trainer_would_say_late_is_said_at_once(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        training_arguments(load_recipe("recipes/tiny/full.yaml", overrides), tmp_path, None)


def test_a_part_of_an_epoch_has_its_last_step() -> None:
    training = {"num_train_epochs": 0.3, "per_device_train_batch_size": 4}
    assert TrainingShape.of(training, "float32").steps(training, examples=40, ranks=1) == 3
    assert TrainingShape.of(training, "float32").steps(training, examples=4, ranks=1) == 1  # as transformers has it


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "sgd", "adamw_torch_fused", "rmsprop"])
def test_optimizers_that_are_there_are_taken(optimizer: str, tmp_path: Path) -> None:
    recipe = load_recipe("recipes/tiny/full.yaml", [f"training.optim={optimizer}"])
    assert training_arguments(recipe, tmp_path, None).optim == optimizer
