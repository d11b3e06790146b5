"""Files that travel with the package: recipes, DeepSpeed's settings, suites and tasks.

They are named as they lie in the project (`launch/zero3.json`), or recipes by their short names
(`qwen3/toolace-q10`). A file beside you wins over one of these, so a copy can be changed.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator

from loki_ds.refusal import Refusal, did_you_mean

PACKAGED = Path(__file__).parents[1] / "shipped_files"
# From the project's folder (`pip install --editable .`) they are the project's own.
ROOT = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2]
RECIPES = "recipes"
SCHEMA = "recipes/recipe.schema.json"  # what editors check recipes by
SHIPPED = (RECIPES, "launch", "eval/suites", "eval/tasks")  # as in setup.py


def resolve_file(name: str) -> str:
    """The file beside you, or else the one in the package; a name of neither stays as it is."""
    if Path(name).exists() or not any(name == top or name.startswith(f"{top}/") for top in SHIPPED):
        return name
    return str(ROOT / name) if (ROOT / name).exists() else name


def written_out(name: str) -> str:
    """A path with `~` written out as in a shell; a variable would name a folder and is refused."""
    if "$" in name:
        raise ValueError(f"{name!r} has a variable, which only a shell fills in; write the path out")
    return os.path.expanduser(name)


Folder = Annotated[str, AfterValidator(written_out)]  # of a recipe's keys
FileName = Annotated[str, AfterValidator(written_out), AfterValidator(resolve_file)]


def find_recipe(name: str | Path) -> Path:
    """A recipe's file, by its path or its short name.

    Raises:
        Refusal: there is none; names one that is near.
    """
    for wanted in (str(name), f"{RECIPES}/{name}.yaml"):
        path = Path(resolve_file(wanted))
        if path.is_file():
            return path
    beside = [*recipe_names(), *map(str, Path(name).parent.glob("*.yaml"))]
    raise Refusal(f"{name}: no such recipe{did_you_mean(str(name), beside) or '; loki-ds recipes lists them'}")


def recipe_names() -> list[str]:
    """The short names of those that travel with the package."""
    return sorted(f"{file.parent.name}/{file.stem}" for file in (ROOT / RECIPES).glob("*/*.yaml"))


def listed() -> list[str]:
    """The names of all recipes, each with the sentence that says what it does."""
    return [f"{name:40} {_first_sentence(find_recipe(name))}" for name in recipe_names()]


def _first_sentence(recipe: Path) -> str:
    """What a recipe's comment says first, up to a full stop or an empty line."""
    said: list[str] = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        if "$schema" not in line:
            said.append(line[2:])
        if line.endswith("."):
            break
    return " ".join(said)


def copy_recipe(name: str) -> list[Path]:
    """Copy a recipe, and the recipes it is made of, to where they lie in the project, with the
    schema that editors check them by.

    Raises:
        Refusal: there is none of that name, or a file is in the way.
    """
    files = list(_with_bases(ROOT / RECIPES / f"{_known(name)}.yaml"))
    copies = [file.relative_to(ROOT) for file in files]
    for file, copy in zip(files, copies, strict=True):
        if copy.exists() and copy.read_bytes() != file.read_bytes():  # another recipe stands on the same
            raise Refusal(f"{copy}: there already; it wins over the one that travels with the package")
    for file, copy in zip(files, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.copyfile(ROOT / SCHEMA, SCHEMA)
    return copies


def _known(name: str) -> str:
    if name not in recipe_names():
        raise Refusal(f"{name}: no recipe of that name{did_you_mean(name, recipe_names())}")
    return name


def _with_bases(file: Path) -> Iterator[Path]:
    yield file
    bases = yaml.safe_load(file.read_text(encoding="utf-8")).get("base", [])
    for base in bases if isinstance(bases, list) else [bases]:
        yield from _with_bases((file.parent / base).resolve())
