"""Knowledge Vector Attribution: how much each row of each down-projection carries of what the model
already knows.

`rules` says where on the path the gradient is taken, `definition` is the method word for word,
`sweep` the same numbers in one pass up and one down the layers, `layer_call` how it calls a layer,
`batches` which prompts go together, `anatomy` finds the parts of a model that all need,
`self_check` proves an unknown family, `kept` stores scores prompt by prompt.
"""

from loki_ds.attribution.batches import attribute
from loki_ds.attribution.definition import attribute_by_definition

__all__ = ["attribute", "attribute_by_definition"]
