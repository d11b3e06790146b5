"""LoKI on DeepSpeed: teach a language model a new task while what it already knew stays."""

from loki_ds.attribution import attribute, attribute_by_definition

__all__ = ["attribute", "attribute_by_definition"]
