"""Recipe files: YAML's safe subset with overrides on top, and one sentence for whatever is wrong
with it.

Knows YAML and how pydantic words its errors. What the keys mean is `recipe`'s.
"""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from loki_ds.recipe import Recipe, Section, Suite, TaskGroup
from loki_ds.refusal import Refusal, did_you_mean

NOTES = (
    "versions",
    "world_size",
)  # what a run folder's copy of its recipe says beside it; such a copy can be run again
SUITES = Path("eval/suites")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and put dotted `key=value` overrides on top.

    Without a `run` key the run folder is `runs/FAMILY/RECIPE`, and every override is part of its
    name, so that a run with another quota never meets the results of this one. A run folder's own
    `recipe.yaml` is a recipe too.

    Raises:
        Refusal: the file is missing, is not YAML, or a key or value is not allowed.
    """
    path, overrides = Path(path), overrides or []
    raw = _read_yaml(path)
    for note in NOTES:
        raw.pop(note, None)
    for override in overrides:
        _override(raw, override)
    _name_suite(raw)
    changes = "".join(f"+{o}" for o in overrides if not o.startswith("run="))
    raw.setdefault("run", str(Path("runs", path.parent.name, path.stem + changes.replace("/", "_"))))
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise Refusal(_sentence(path, error, Recipe)) from None


def _name_suite(raw: dict[str, Any]) -> None:
    """Put a suite's groups in the place of its name."""
    retention = raw.get("retention")
    if isinstance(retention, dict) and isinstance(retention.get("abilities"), str):
        retention["abilities"] = [group.model_dump() for group in load_suite(retention["abilities"])]


def load_suite(name: str) -> list[TaskGroup]:
    """The groups of a suite, by its name (`eval/suites/NAME.yaml`) or its file.

    Raises:
        Refusal: no such suite, or its file is not one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.exists():
        known = [file.stem for file in SUITES.glob("*.yaml")]
        raise Refusal(f"retention.abilities: no suite {name!r} ({path} is not there){did_you_mean(name, known)}")
    try:
        return Suite.model_validate(_read_yaml(path)).groups
    except ValidationError as error:
        raise Refusal(_sentence(path, error, Suite)) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key given twice is refused, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path}: the recipe cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(f"{path}: not a YAML recipe: {_short(' '.join(str(error).split()), 300)}") from None
    if not isinstance(raw, dict):
        raise Refusal(f"{path}: a recipe is a mapping of sections, this is a {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise Refusal(f"override {override!r}: must be written key=value, for example selection.quota=20")
    *parents, last = dotted.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise Refusal(f"override {override!r}: {parent} is a single value, not a section")
    try:
        section[last] = _parsed(value)
    except (yaml.YAMLError, RecursionError):
        raise Refusal(f"override {_short(override)!r}: the value {_short(value)!r} is not YAML") from None


MOST_NODES = 10_000  # of a recipe, with every alias written out


def _parsed(text: str) -> Any:
    """YAML's safe subset; a text that grows beyond reason when its aliases are written out is an
    error.
    """
    loader = _StrictLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if _size(node, {}) > MOST_NODES:
        raise yaml.YAMLError(f"it holds more than {MOST_NODES} values when its aliases are written out")
    return loader.construct_document(node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there are below and at this one, an aliased one as often as it is named."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # what it counts while it is being counted: an alias of itself is endless
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts))
    return known[id(node)]


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _sentence(path: Path, error: ValidationError, root: type[Section]) -> str:
    """One thing wrong in a file that holds a `root`, as one sentence: the first one, or of
    alternatives the one that got furthest.
    """
    errors = error.errors()
    deepest = max(len(e["loc"]) for e in errors if e["loc"][:2] == errors[0]["loc"][:2]) if errors[0]["loc"] else 0
    first = min((e for e in errors if len(e["loc"]) >= deepest), key=lambda e: e["type"] != "extra_forbidden")
    key, section = _key_and_section(first["loc"], root)
    if first["type"] == "extra_forbidden":
        key = ".".join(part for part in (key, str(first["loc"][-1])) if part)
        return (
            f"{path}: {key} is not a key of a "
            f"{root.__name__.lower()}{did_you_mean(str(first['loc'][-1]), section.model_fields)}"
        )
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing"
    if first["type"] == "value_error":
        return f"{path}: {_short(str(first['ctx']['error']), 300)}"
    same = [e["msg"].removeprefix("Input should be ") for e in errors if _key_and_section(e["loc"], root)[0] == key]
    return f"{path}: {key} is {_short(repr(first['input']))}, allowed is {' or '.join(dict.fromkeys(same))}"


def _key_and_section(loc: tuple[int | str, ...], root: type[Section]) -> tuple[str, type[Section]]:
    """The dotted key of an error, without pydantic's names for the alternatives of a type, and the
    innermost section on its way.
    """
    section, key = root, []
    for part in loc:
        if isinstance(part, int):
            key.append(str(part))
        elif part in section.model_fields:
            key.append(part)
            section = _section_of(section.model_fields[part].annotation) or section
    return ".".join(key), section


def _section_of(annotation: Any) -> type[Section] | None:
    """The section in a type like `list[Section] | str | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
