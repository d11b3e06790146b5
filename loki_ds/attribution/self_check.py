"""Is the sweep right for this model?

Known families are held to the definition by the tests; any other one is held to it here.

The check builds a tiny copy of the model's own class and configuration with random weights in
float64, and compares the sweep with the definition on it. A family that cannot be copied or does
not agree is refused, never attributed wrongly in silence.
"""

import copy
import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.sweep import Sweep
from loki_ds.refusal import Refusal
from loki_ds.zero.model import unsharded

log = logging.getLogger(__name__)

# Held to the definition by tests/attribution/test_sweep.py.
PROVEN = frozenset("llama qwen2 qwen3 mistral gemma2 gemma3_text olmo2 phi3 granite smollm3".split())
TOLERANCE = 1e-5  # of the largest score: some families compute norms or attention in float32 whatever the model's dtype
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 8,
    "vocab_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
}
PROMPTS = [[5, 9, 2, 7, 1, 3, 8, 6, 4], [11, 12], [3]]


def check_family(model: PreTrainedModel) -> None:
    """Do nothing for a model the sweep is known to be right for.

    Raises:
        Refusal: the model's family is not known and the check could not be made or failed.
    """
    config = model.config.get_text_config()
    if config.model_type not in PROVEN:
        log.info(
            "attribute: %s is not a known family; comparing the sweep with the definition on a tiny copy",
            config.model_type,
        )
        difference = _difference(type(model), config)
        log.info("attribute: the tiny %s agrees to %.1e", config.model_type, difference)


def _difference(model_class: type, config: Any) -> float:
    """Largest difference between sweep and definition, relative to the largest score, on a tiny
    model of the class.
    """
    name = model_class.__name__
    try:
        with torch.random.fork_rng(devices=[]), unsharded():
            torch.manual_seed(0)
            model = model_class(tiny_config(config)).double().eval().requires_grad_(False)
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)  # so that the layers matter
        expected = attribute_by_definition(model, PROMPTS, steps=2)
        found = Sweep(model, steps=2).run(PROMPTS).scores
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        raise Refusal(
            f"{name}: an unknown family, and attribution could not be checked on a tiny copy of it: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference < TOLERANCE:
        raise Refusal(
            f"{name}: an unknown family, and attribution by the sweep differs from the definition by "
            f"{difference:.1e} on a tiny copy"
        )
    return difference


def tiny_config(config: Any) -> Any:
    """A copy of a configuration with every size made small and every other choice kept; at most
    four layers, all kinds of them.
    """
    tiny = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    layers = min(config.num_hidden_layers, 4)
    for name, size in TINY.items():
        if getattr(config, name, None) is not None:
            setattr(tiny, name, size)
    tiny.num_hidden_layers = layers
    if getattr(config, "num_key_value_heads", None) is not None:
        tiny.num_key_value_heads = 4 if config.num_key_value_heads == config.num_attention_heads else 2
    if kinds is not None:
        first = list(dict.fromkeys(kinds))
        tiny.layer_types = (first + list(kinds))[:layers] if len(first) > 1 else list(kinds[:layers])
    if getattr(config, "sliding_window", None) is not None:
        tiny.sliding_window = 5
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, token, None) is not None:
            setattr(tiny, token, 0)
    return tiny
