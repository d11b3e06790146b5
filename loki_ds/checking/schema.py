"""The JSON Schema of a recipe file, by which an editor completes and checks it as it is written."""

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter
from trl import SFTConfig

from loki_ds.implanting.trl_checks import declared_types
from loki_ds.recipe.sections import Recipe, TaskGroup

DRAFT = "https://json-schema.org/draft/2020-12/schema"
BASE = "Recipes that this one stands on, relative to it; merged from left to right, its own keys last."


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file: like a recipe, but any key may come from a `base`, and what a
    recipe spells out may be a name (a suite, a source's path).
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for section in (schema, *definitions.values()):
        section.pop("required", None)
    text: dict[str, Any] = {"type": "string"}
    source = {"anyOf": [text, {"$ref": "#/$defs/SourceSection"}]}
    _widen(definitions["DataSection"], "train", [*source["anyOf"], {"type": "array", "items": source}])
    _widen(definitions["DataSection"], "heldout", [*source["anyOf"], {"type": "null"}])
    for name in ("ProtectedSection", "RetentionSection"):
        _widen(definitions[name], "include_path", [text, {"type": "array", "items": text}, {"type": "null"}])
    group = {"$ref": f"#/$defs/{TaskGroup.__name__}"}
    _widen(definitions["RetentionSection"], "abilities", [text, group, {"type": "array", "items": group}])
    training = schema["properties"]["training"]
    training |= {"properties": _training(), "additionalProperties": False}
    base = {"anyOf": [text, {"type": "array", "items": text}], "description": BASE}
    return {
        "$schema": DRAFT,
        **schema,
        "title": "A recipe of loki-ds",
        "properties": {"base": base, **schema["properties"]},
    }


def _widen(section: dict[str, Any], key: str, allowed: list[dict[str, Any]]) -> None:
    """Let a key be any of these."""
    described = section["properties"][key]
    section["properties"][key] = {"anyOf": allowed, "description": described["description"]}


def _training() -> dict[str, Any]:
    """TRL's own fields, each with the first sentence of what TRL says of it."""
    said = {field.name: " ".join(field.metadata.get("help", "").split()) for field in fields(SFTConfig)}
    return {
        key: {**_plain(declared), "description": said[key].partition(". ")[0]}
        for key, declared in sorted(declared_types().items())
    }


def _plain(declared: Any) -> dict[str, Any]:
    """The schema of a field's type; names alone where they are enumerated, `no` also as in YAML."""
    schema = TypeAdapter(declared).json_schema()
    names = [name for definition in schema.get("$defs", {}).values() for name in definition.get("enum", [])]
    if names:
        return {"enum": [*names, *([False] if "no" in names else [])]}
    return {key: value for key, value in schema.items() if key in ("type", "anyOf", "items")}
