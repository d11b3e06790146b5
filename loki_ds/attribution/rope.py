"""Which prompts may be computed together where rotary tables depend on how long the batch is.

`longrope` (Phi-3 and later) has one table up to the length that the model was pre-trained with and
another beyond; `dynamic` (NTK) stretches its table with every length beyond. In a mixed batch the
longest prompt would decide for all of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedConfig

LengthClass = Callable[[int], tuple[int, ...]]


def any_length(length: int) -> tuple[int, ...]:
    """What decides the tables of a model that has the same for every length: nothing."""
    return ()


def length_class(config: PreTrainedConfig) -> LengthClass:
    """Prompts of equal class see the same tables, alone or together."""
    text = config.get_text_config()
    ropes = list(_ropes(getattr(text, "rope_parameters", None)))
    ends = [(False, rope["original_max_position_embeddings"]) for rope in ropes if rope["rope_type"] == "longrope"]
    ends += [(True, text.max_position_embeddings) for rope in ropes if "dynamic" in rope["rope_type"]]

    def of(length: int) -> tuple[int, ...]:
        return tuple((length if stretches else end + 1) if length > end else 0 for stretches, end in ends)

    return of if ends else any_length


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """One for all layers, or one for each kind of layer."""
    if isinstance(parameters, dict):
        if "rope_type" in parameters:
            yield parameters
        else:
            for rope in parameters.values():
                yield from _ropes(rope)
