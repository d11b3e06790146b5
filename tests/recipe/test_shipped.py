"""Files that travel with the package: found by name, a file beside you first."""

from pathlib import Path

import pytest
import yaml

from loki_ds.recipe.file import load_recipe
from loki_ds.recipe.shipped import ROOT, copy_recipe, find_recipe, listed, recipe_names, resolve_file
from loki_ds.refusal import Refusal


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_found_by_its_name_and_its_files_with_it(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.run == f"runs/{name}"
    if recipe.deepspeed is not None:
        assert Path(recipe.deepspeed).exists()
    assert any(line.split()[0] == name and len(line.split()) > 3 for line in listed())


def test_a_file_beside_you_wins(elsewhere: Path) -> None:
    (elsewhere / "launch").mkdir()
    assert resolve_file("launch/zero3.json") == str(ROOT / "launch/zero3.json")
    (elsewhere / "launch/zero3.json").write_text("{}")
    assert resolve_file("launch/zero3.json") == "launch/zero3.json"


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "tests/conftest.py", "data.jsonl", "/no/such"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert resolve_file(name) == name


def test_a_copy_can_be_changed_and_brings_what_it_is_made_of(elsewhere: Path) -> None:
    copies = copy_recipe("llama3/toolace-q30")
    assert Path("recipes/llama3/toolace-q30.yaml") in copies
    assert len(copies) > 1
    own = elsewhere / "recipes/llama3/toolace-q30.yaml"
    changed = {**yaml.safe_load(own.read_text()), "model": {"path": "mine"}}
    own.write_text(yaml.safe_dump(changed))
    assert load_recipe("llama3/toolace-q30").model.path == "mine"
    with pytest.raises(Refusal, match="there already"):
        copy_recipe("llama3/toolace-q30")


def test_an_unknown_name_is_refused_with_one_that_is_near() -> None:
    with pytest.raises(Refusal, match=r"tiny/lokki: no such recipe.*tiny/loki"):
        find_recipe("tiny/lokki")
