"""Knowledge Vector Attribution: how much each row of each down-projection carries of what the model already knows.

`rules` says where on the path the gradient is taken, `definition` is the method word for word, `sweep` the same numbers in one
pass up and one down the layers, `anatomy` finds the parts of a model that both need, `kept` stores scores prompt by prompt.
"""

from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.sweep import attribute

__all__ = ["attribute", "attribute_by_definition"]
