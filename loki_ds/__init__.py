"""LoKI on DeepSpeed: teach a language model a new task while what it already knew stays."""

from loki_ds.attribution import attribute, attribute_by_definition
from loki_ds.export import apply_implant, revert_implant
from loki_ds.positions import Positions
from loki_ds.selection import select

__all__ = ["Positions", "apply_implant", "attribute", "attribute_by_definition", "revert_implant", "select"]
