"""Paths of a recipe are written out as a shell would, or refused."""

from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal

TINY = ROOT / "recipes/tiny/loki.yaml"


@pytest.mark.parametrize("key", ["run", "model.path", "data.train", "deepspeed", "retention.include_path"])
def test_a_home_is_written_out(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(TINY, [f"{key}=~/there"]).model_dump()
    value = recipe
    for part in key.split("."):
        value = value[part]
    assert str(tmp_path / "there") in str(value)


@pytest.mark.parametrize("key", ["run", "model.path", "selection.positions"])
def test_a_variable_is_refused(key: str) -> None:
    """It would become a folder of its name."""
    with pytest.raises(Refusal, match=r"'\$SCRATCH/x' has a variable, which only a shell fills in"):
        load_recipe(TINY, [f"{key}=$SCRATCH/x"])
