"""What the trainer is told beyond the recipe's own keys."""

from pathlib import Path

import pytest

from loki_ds.implanting.trl_config import training_arguments
from loki_ds.recipe.file import load_recipe


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
