"""Recipes are strict: each mistake gets one sentence with the file, the key, what was found and
what is allowed.
"""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe_file import load_recipe
from loki_ds.refusal import Refusal

RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))


def test_every_recipe_was_found() -> None:
    assert len(RECIPES) >= 18


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid_and_opens_with_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run == f"runs/{path.parent.name}/{path.stem}"
    assert f"launch/implant.py --recipe {path.relative_to(ROOT)}" in path.read_text()


def test_the_commands_in_the_texts_are_the_recipes() -> None:
    texts = "".join((ROOT / name).read_text() for name in ("README.md", "recipes/README.md"))
    named = {ROOT / path for path in re.findall(r"recipes/[\w.]+/[\w.-]+\.yaml", texts)}
    assert set(RECIPES) <= named
    assert [path for path in named if not path.is_file()] == []


def test_the_tiny_rates_are_those_the_rule_chose() -> None:
    found = json.loads((ROOT / "eval/reports/learning_rates.json").read_text())
    for name, of_recipe in found.items():
        recipe = load_recipe(ROOT / f"recipes/tiny/{name}.yaml")
        assert recipe.training["learning_rate"] == float(of_recipe["chosen"]), name
        assert len({run["rate"] for run in of_recipe["tried"]}) >= 3


def test_overrides_are_part_of_the_run_folders_name() -> None:
    recipe = load_recipe(ROOT / "recipes/tiny/loki.yaml", ["selection.quota=20", "training.learning_rate=1e-4"])
    assert recipe.selection.quota == 20
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.run == "runs/tiny/loki+selection.quota=20+training.learning_rate=1e-4"


def test_the_run_folder_can_be_named() -> None:
    assert load_recipe(ROOT / "recipes/tiny/loki.yaml", ["run=/tmp/here"]).run == "/tmp/here"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("selection.quotta=20", "selection.quotta is not a key of a recipe; did you mean 'quota'?"),
        ("selektion.quota=20", "selektion is not a key of a recipe; did you mean 'selection'?"),
        ("protected.subject=[facts]", "protected.subject is not a key of a recipe; did you mean 'subjects'?"),
        ("selection.quota=0", "selection.quota is 0, allowed is greater than 0"),
        ("selection.quota=100", "selection.quota is 100, allowed is less than 100"),
        ("selection.quota=ten", "selection.quota is 'ten', allowed is a valid number"),
        ("selection.strategy=lowest", "selection.strategy is 'lowest', allowed is 'layer_balanced'"),
        ("attribution.steps=1.5", "attribution.steps is 1.5, allowed is a valid integer"),
        ("model.dtype=fp8", "model.dtype is 'fp8', allowed is 'float32', 'bfloat16' or 'float16'"),
        ("training.learning_rat=1", "training.learning_rat is not a key .* did you mean 'learning_rate'?"),
        ("training.output_dir=x", "training.output_dir is not a key"),
        ("protected=null", "needs a protected set"),
        ("implant={mode: full, quiet: {}}", "implant.quiet needs implant.mode mask, rows or lora, it is full"),
        ("protected.tasks=[mmlu]", "protected needs one source"),
        ("attribution.stop.overlap=2", "attribution.stop.overlap is 2, allowed is less than or equal to 1"),
        ("attribution.batch_size=many", "attribution.batch_size is 'many', allowed is"),
        ("quota", "must be written key=value"),
        ("model.path.x=1", "path is a single value, not a section"),
        ("model.path=[", "is not YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, says: str) -> None:
    with pytest.raises(Refusal, match=says.replace("?", r"\?")):
        load_recipe(ROOT / "recipes/tiny/loki.yaml", [override])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "not a YAML recipe"),
        ("- a\n- b\n", "mapping of sections"),
        ("run: a\nrun: b\n", "the key 'run' is given twice"),
        ("model: !!python/object/apply:os.getcwd []\n", "not a YAML recipe"),
        ("{}", "the key model is missing"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(Refusal, match=says) as refusal:
        load_recipe(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(Refusal, match=r"nowhere\.yaml: the recipe cannot be read"):
        load_recipe("nowhere.yaml")
