"""The schema by which editors check a recipe: it takes ours, and marks what the reader refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

from loki_ds.checking.schema import recipe_schema
from loki_ds.recipe.shipped import SCHEMA
from loki_ds.recipe.yaml import read_yaml

RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
SHIPPED = json.loads((ROOT / SCHEMA).read_text())
TINY = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}, "retention": {"abilities": "quick"}}


def problems(recipe: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SHIPPED).iter_errors(recipe)]


def test_the_shipped_schema_is_this_versions() -> None:
    """`make schema` writes it; what TRL takes is as of the version that it was written with."""
    made, shipped = recipe_schema(), json.loads(json.dumps(SHIPPED))
    assert set(made["properties"]["training"].pop("properties")) & {"learning_rate", "max_length", "eval_strategy"}
    shipped["properties"]["training"].pop("properties")
    assert made == shipped
    jsonschema.Draft202012Validator.check_schema(SHIPPED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_names_the_schema_and_fits_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == ROOT / SCHEMA
    assert problems(read_yaml(path)) == []


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"selection": {"quotta": 10}}, "'quotta' was unexpected"),
        ({"selection": {"quota": 100}}, "100 is greater than or equal to the maximum of 100"),
        ({"implant": {"mode": "row"}}, "'row' is not one of"),
        ({"training": {"learning_rat": 1}}, "'learning_rat' was unexpected"),
        ({"training": {"learning_rate": "fast"}}, "'fast' is not of type 'number'"),
        ({"training": {"output_dir": "x"}}, "'output_dir' was unexpected"),
        ({"modell": {}}, "'modell' was unexpected"),
    ],
)
def test_a_mistake_is_marked(section: dict[str, Any], says: str) -> None:
    assert problems(TINY) == []
    assert any(says in problem for problem in problems({**TINY, **section}))


def test_what_may_be_short_may_be_long() -> None:
    source, group = {"path": "d", "weight": 2}, {"tasks": ["a"], "limit": 5}
    for train in ("d", source, ["d", source]):
        for abilities in ("quick", group, [group]):
            assert problems({**TINY, "data": {"train": train}, "retention": {"abilities": abilities}}) == []


def test_every_key_has_its_line() -> None:
    schema = recipe_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    keys = {
        f"{name}.{key}": described
        for name, section in sections.items()
        for key, described in section["properties"].items()
    }
    assert len(keys) > 80
    assert [key for key, described in keys.items() if len(described.get("description", "").split()) < 3] == []
