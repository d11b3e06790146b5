"""The table of modes is complete: the recipe knows each, and each that trains is made ready."""

from typing import get_args

from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.modes import MODES


def test_every_mode_of_the_recipe_is_in_the_table() -> None:
    assert set(get_args(ImplantSection.model_fields["mode"].annotation)) == set(MODES)


def test_every_mode_that_trains_is_made_ready_in_one_way() -> None:
    """As `implanting.training.prepare` tells them apart."""
    for mode in (mode for mode in MODES.values() if mode.trains):
        ways = (
            mode.masks,
            mode.leaves == "deltas",
            mode.trains_everything and not mode.masks,
            mode.leaves == "adapter",
        )
        assert sum(ways) == 1


def test_what_the_modes_read_are_keys_of_the_section() -> None:
    assert {key for mode in MODES.values() for key in mode.reads} <= set(ImplantSection.model_fields)
