"""The table of modes is complete: the recipe knows each, and each that trains is made ready
somewhere.
"""

from typing import get_args

from loki_ds.implanting.training import PREPARE
from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.modes import MODES


def test_every_mode_of_the_recipe_is_in_the_table() -> None:
    assert set(get_args(ImplantSection.model_fields["mode"].annotation)) == set(MODES)


def test_every_mode_that_trains_is_made_ready() -> None:
    assert set(PREPARE) == {name for name, mode in MODES.items() if mode.trains}


def test_what_the_modes_read_are_keys_of_the_section() -> None:
    assert {key for mode in MODES.values() for key in mode.reads} <= set(ImplantSection.model_fields)
