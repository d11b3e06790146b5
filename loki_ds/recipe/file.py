"""Recipe files: YAML's safe subset, overrides on top, and one sentence for whatever is wrong.

Knows YAML and how pydantic words its errors. What the keys mean is `recipe`'s.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError

from loki_ds.recipe.retired import drop_retired
from loki_ds.recipe.sections import DATA_FILES, ModelSection, Recipe, RetentionSection, TaskGroup
from loki_ds.recipe.shipped import find_recipe, resolve_file
from loki_ds.recipe.strict import Section
from loki_ds.recipe.training_keys import changes_a_result, training_keys
from loki_ds.recipe.yaml import parsed, read_yaml
from loki_ds.refusal import Refusal, did_you_mean, short

# What a run folder's copy of its recipe says beside it; such a copy can be run again.
NOTES = ("versions", "world_size")
SUITES = "eval/suites"
Whole = TypeVar("Whole", bound=Section)


class Suite(Section):
    """A file of task groups that recipes name."""

    groups: Annotated[list[TaskGroup], Field(min_length=1)]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe on top of those that it names under `base`, with dotted `key=value` overrides.

    `base` is a file or several, relative to the file that names them: merged from left to right,
    section by section, the recipe's own keys last. Without a `run` key the run folder is
    `runs/FAMILY/RECIPE`, and any override that changes a result is part of its name: runs with
    another quota never meet these results. A run folder's own `recipe.yaml` is a recipe, too.

    Raises:
        Refusal: a file is missing, is not YAML, or a key or value is not allowed; it names the file
            that the key came from.
    """
    path, overrides = find_recipe(path), overrides or []
    merged = _Merged()
    merged.add_file(path, ())
    for note in NOTES:
        merged.values.pop(note, None)
    for override in overrides:
        merged.override(override)
    merged.values.setdefault("run", str(Path("runs", path.parent.name, path.stem + _suffix(overrides))))
    return _validated(merged, path, Recipe)


class Pair(Section):
    """Two checkpoints: the base, and what both are asked."""

    model: ModelSection
    retention: RetentionSection


def load_pair(base: str, overrides: list[str]) -> Pair:
    """The sections `model` and `retention` for a base; the quick suite where none is named.

    Raises:
        Refusal: a key or value is not allowed.
    """
    merged = _Merged()
    for override in (f"model.path={json.dumps(base)}", "retention.abilities=quick", *overrides):
        merged.override(override)
    return _validated(merged, "loki-ds retain", Pair)


def _validated(merged: "_Merged", origin: Path | str, kind: type[Whole]) -> Whole:
    """What was merged, as a recipe or a pair. origin: of values that nothing given wrote."""

    def origin_of(key: str) -> Path | str:
        return merged.origin_of(key) or origin

    drop_retired(merged.values, origin_of)
    _name_suite(merged.values)
    try:
        return kind.model_validate(merged.values)
    except ValidationError as error:
        raise Refusal(_sentence(origin_of, error, kind)) from None


def _suffix(overrides: list[str]) -> str:
    """What overrides add to the run folder's name."""
    return "".join(f"+{o}" for o in overrides if changes_a_result(o.partition("=")[0])).replace("/", "_")


class _Merged:
    """Recipe files on top of one another, and for each dotted key the file or override it came
    from.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[str, Path | str] = {}

    def add_file(self, path: Path, above: tuple[Path, ...]) -> None:
        """A file on top of what is there, its bases first. above: the files that asked for it."""
        here = path.resolve()
        if here in above:
            raise Refusal(f"{path}: the key base leads back to this file")
        raw = read_yaml(path)
        bases = raw.pop("base", [])
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str):
                raise Refusal(f"{path}: base is {short(repr(base))}, allowed is a recipe file or a list of them")
            self.add_file(Path(resolve_file(str(path.parent / base))), (*above, here))
        self._merge(self.values, raw, path, "")

    def override(self, text: str) -> None:
        """One `key=value` on top of what is there."""
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise Refusal(f"override {text!r}: must be written key=value, for example selection.quota=20")
        try:
            given = parsed(value)
        except (yaml.YAMLError, RecursionError):
            raise Refusal(f"override {short(text)!r}: the value {short(value)!r} is not YAML") from None
        *parents, last = dotted.split(".")
        section: Any = self.values
        for parent in parents:
            section = _within(section, parent)
            if not isinstance(section, dict | list):
                raise Refusal(f"override {text!r}: {parent} is a single value, not a section")
        if isinstance(section, list) and not (last.isdecimal() and int(last) < len(section)):
            raise Refusal(f"override {text!r}: {parents[-1]} is a list of {len(section)}, {last} is none of its places")
        section[int(last) if isinstance(section, list) else last] = given
        below = [key for key in self._origins if key.startswith(f"{dotted}.")]
        for key in below:  # what files say there is gone
            del self._origins[key]
        self._origins[dotted] = f"override {short(text)!r}"

    def origin_of(self, key: str) -> Path | str | None:
        """Where a dotted key, or the nearest part of it that was written somewhere, comes from."""
        while key and key not in self._origins:
            key = key.rpartition(".")[0]
        return self._origins.get(key)

    def _merge(self, into: dict[str, Any], raw: dict[str, Any], path: Path, prefix: str) -> None:
        for name, value in raw.items():
            key = f"{prefix}{name}"
            self._origins[key] = path
            if isinstance(value, dict) and isinstance(into.get(name), dict):
                self._merge(into[name], value, path, f"{key}.")
            else:
                into[name] = value
                self._note(value, path, key)

    def _note(self, value: Any, path: Path, key: str) -> None:
        """All keys within a value that came whole from one file."""
        self._origins[key] = path
        if isinstance(value, dict):
            for name, part in value.items():
                self._note(part, path, f"{key}.{name}")


def _within(section: Any, name: str) -> Any:
    """A section's part, made where it is missing or null, or a list's place; None if impossible."""
    if isinstance(section, dict):
        if section.get(name) is None:
            section[name] = {}
        return section[name]
    return section[int(name)] if name.isdecimal() and int(name) < len(section) else None


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
    path = Path(resolve_file(name if name.endswith((".yaml", ".yml")) else f"{SUITES}/{name}.yaml"))
    if not path.exists():
        known = [file.stem for file in Path(resolve_file(SUITES)).glob("*.yaml")]
        raise Refusal(
            f"retention.abilities: no suite {name!r} ({path} is not there){did_you_mean(name, known)}; "
            f"a task of lm-eval's is given by retention.abilities={{tasks: [{name}]}}"
        )
    try:
        return Suite.model_validate(read_yaml(path)).groups
    except ValidationError as error:
        raise Refusal(_sentence(lambda _: path, error, Suite)) from None


def _sentence(origin: Callable[[str], Path | str], error: ValidationError, root: type[Section]) -> str:
    """One thing wrong in what holds a `root`, as one sentence: the first one, or of alternatives
    the one that got furthest.

    origin: the file, or the override, that a dotted key comes from.
    """
    errors = error.errors()
    deepest = max(len(e["loc"]) for e in errors if e["loc"][:2] == errors[0]["loc"][:2]) if errors[0]["loc"] else 0
    first = min((e for e in errors if len(e["loc"]) >= deepest), key=lambda e: e["type"] != "extra_forbidden")
    key, section = _key_and_section(first["loc"], root)
    if first["type"] == "extra_forbidden":
        wrong = str(first["loc"][-1])
        key = ".".join(part for part in (key, wrong) if part)
        near = did_you_mean(wrong, section.model_fields)
        elsewhere = [dotted for dotted in _keys(root) if dotted.endswith(f".{wrong}")]
        if not elsewhere and "training" in root.model_fields and wrong in training_keys():
            elsewhere = [f"training.{wrong}"]
        if elsewhere:
            near = f"; did you mean {' or '.join(map(repr, elsewhere))}?"
        return f"{origin(key)}: {key} is not a key of {_of_what(root)}{near}"
    if first["type"] == "missing":
        return f"{origin(key)}: the key {key} is missing"
    if first["type"] == "value_error":
        said = short(first["ctx"]["error"], 300)
        named = said.split()[0]
        if named.partition(".")[0] in root.model_fields:
            return f"{origin(named)}: {said}"
        return f"{origin(key)}: {f'{key}: ' if key else ''}{said}"
    same = [e["msg"].removeprefix("Input should be ") for e in errors if _key_and_section(e["loc"], root)[0] == key]
    allowed = " or ".join(dict.fromkeys(same))
    return f"{origin(key)}: {key} is {short(repr(first['input']))}, allowed is {allowed}"


def _of_what(root: type[Section]) -> str:
    return "`loki-ds retain`, which takes retention.* and model.*" if root is Pair else f"a {root.__name__.lower()}"


def check_files(recipe: Recipe) -> None:
    """Refuse files and folders that are not there, before any library is loaded to read them."""
    for source in recipe.data.sources:
        if Path(source.path).suffix in DATA_FILES and not Path(source.path).exists():
            raise Refusal(f"{source.path}: the data file is not there")
    rehearsed = {f"implant.rehearse.prompts: {name}": texts for name, texts in recipe.rehearsed.items()}
    for key, texts in {"protected.prompts": recipe.protected, **rehearsed}.items():
        if texts and texts.prompts and not Path(texts.prompts).exists():
            raise Refusal(f"{key}: {texts.prompts} is not there")
    for key, section in {"protected": recipe.protected, "retention": recipe.retention}.items():
        for folder in section.include_path if section else ():
            if not Path(folder).is_dir():
                raise Refusal(f"{key}.include_path is {folder}, which is no folder of tasks")
    if recipe.model.path[:1] in ("/", ".") and not Path(recipe.model.path).exists():
        raise Refusal(f"model.path {recipe.model.path}: no such folder")
    if recipe.deepspeed is not None and not Path(recipe.deepspeed).is_file():
        raise Refusal(f"{recipe.deepspeed}: the DeepSpeed configuration is not there")


def all_keys() -> list[str]:
    """All dotted keys of a recipe, those of `training` that TRL has among them."""
    return [*_keys(Recipe), *(f"training.{key}" for key in sorted(training_keys()))]


def _keys(section: type[Section], above: str = "") -> Iterator[str]:
    """All dotted keys of a section and of those in it."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        if inner := _section_of(field.annotation):
            yield from _keys(inner, f"{above}{name}.")


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
    return next((section for part in get_args(annotation) if (section := _section_of(part))), None)
