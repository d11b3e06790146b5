"""YAML's safe subset for recipes: a key once, numbers as people write them, no boundless text."""

import re
from pathlib import Path
from typing import Any

import yaml

from loki_ds.refusal import Refusal, short

MOST_NODES = 10_000  # of a recipe, with every alias written out


class StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key given twice is refused, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file's mapping of sections.

    Raises:
        Refusal: it cannot be read, or is something else.
    """
    try:
        raw = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path}: the recipe cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(f"{path}: not a YAML recipe: {short(error, 300)}") from None
    if not isinstance(raw, dict):
        raise Refusal(f"{path}: a recipe is a mapping of sections, this is a {type(raw).__name__}")
    return raw


def parsed(text: str) -> Any:
    """YAML's safe subset; a text that grows beyond reason by its aliases is an error."""
    loader = StrictLoader(text)
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
