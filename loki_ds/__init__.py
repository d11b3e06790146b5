"""LoKI on DeepSpeed: teach a language model a new task while what it already knew stays."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loki_ds.attribution.batches import attribute
    from loki_ds.attribution.definition import attribute_by_definition
    from loki_ds.export.in_memory import apply_implant, revert_implant
    from loki_ds.implanting.fade import Fade
    from loki_ds.implanting.rehearse import rehearse
    from loki_ds.selection.positions import Positions
    from loki_ds.selection.select import select
    from loki_ds.stages.any_two import Retention, retain

# Each name's module, loaded when the name is used (PEP 562): torch and DeepSpeed take seconds.
_PLACES = {
    "Fade": "loki_ds.implanting.fade",
    "Positions": "loki_ds.selection.positions",
    "Retention": "loki_ds.stages.any_two",
    "apply_implant": "loki_ds.export.in_memory",
    "attribute": "loki_ds.attribution.batches",
    "attribute_by_definition": "loki_ds.attribution.definition",
    "rehearse": "loki_ds.implanting.rehearse",
    "retain": "loki_ds.stages.any_two",
    "revert_implant": "loki_ds.export.in_memory",
    "select": "loki_ds.selection.select",
}

__all__ = [
    "Fade",
    "Positions",
    "Retention",
    "apply_implant",
    "attribute",
    "attribute_by_definition",
    "rehearse",
    "retain",
    "revert_implant",
    "select",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("loki-ds")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
