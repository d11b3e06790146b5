"""LoKI on DeepSpeed: teach a language model a new task while what it already knew stays."""

from loki_ds.attribution import attribute, attribute_by_definition
from loki_ds.positions import Positions
from loki_ds.selection import select

__all__ = ["Positions", "attribute", "attribute_by_definition", "select"]
