"""`loki_ds.Fade` and `rehearse` in a script of somebody's own, on two ranks: what a recipe's fade
gives, and what one process gives.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from distributed.conftest import distance, output_of, start, write_configurations
from distributed.someones_trainer import rehearsed


@pytest.mark.parametrize("way", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_the_same_weights_as_a_recipes(way: str, tmp_path: Path) -> None:
    write_configurations(tmp_path)
    configuration = [] if way == "ddp" else [str(tmp_path / f"{way}.json")]
    job = start("tests/distributed/someones_trainer.py", str(tmp_path), *configuration)
    output = output_of(job, 240)
    assert job.returncode == 0, output
    rehearsed(tmp_path / "alone.safetensors", [], 4)
    recipes, stock = (load_file(tmp_path / f"{name}.safetensors") for name in ("recipe", "fade"))
    alone, together = (load_file(tmp_path / f"{name}.safetensors") for name in ("alone", "rehearsed"))
    base = load_file(ROOT / "recipes/tiny/model/model.safetensors")
    assert distance(alone, together) < 1e-4 * distance(alone, base)
    assert recipes.keys() == stock.keys()
    assert all(torch.equal(stock[name], tensor) for name, tensor in recipes.items())
    assert not all(torch.equal(stock[name], tensor) for name, tensor in base.items() if name in stock)
