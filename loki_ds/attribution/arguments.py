"""What transformers hands to a decoder layer, by name."""

from typing import Any

from loki_ds.refusal import Refusal

CACHE = ("cache", "past_key_values", "layer_past")  # by version of transformers and family
# Gemma 4 hands `shared_kv_states` to layers that share nothing, too; those that do are refused
# (`self_check`).
KNOWN = {"attention_mask", "position_ids", "position_embeddings", "use_cache", "shared_kv_states", *CACHE}


def arguments_of(handed: dict[str, Any]) -> dict[str, Any]:
    """What a layer is to be handed again.

    Raises:
        Refusal: a tensor among them of which nobody here knows what it means.
    """
    handed = {name: value for name, value in handed.items() if name != "cache_position"}
    for name, value in handed.items():
        if name not in KNOWN and value is not None and not isinstance(value, bool | str | int | float):
            raise Refusal(f"decoder layers of this model take {name!r}, which attribution does not know how to pass on")
    return handed


def cache_in(handed: dict[str, Any]) -> str:
    """The name of the cache among them."""
    return next(name for name in CACHE if name in handed)
