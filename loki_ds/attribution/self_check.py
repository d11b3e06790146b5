"""Is the sweep right for this model?

Known families are held to the definition by the tests; any other one is held to it here.

The check builds a tiny copy of the model's own class and configuration with random weights in
float64, and compares the sweep with the definition on it. A family that cannot be copied or does
not agree is refused, never attributed wrongly in silence.
"""

import copy
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.layer_call import KeysValues
from loki_ds.attribution.recurrent import State
from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed.device import current_device
from loki_ds.distributed.zero.sharding import unsharded
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.stored_rows import LAYER_COUNTS
from loki_ds.refusal import Refusal, short

log = logging.getLogger(__name__)

# Held to the definition by tests/attribution/test_sweep.py.
PROVEN = frozenset("llama qwen2 qwen3 mistral gemma2 gemma3_text olmo2 phi3 granite smollm3".split())
TOLERANCE = 1e-5  # of the largest score: some families compute norms or attention in float32 whatever the model's dtype
TINY = {
    **{"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 64, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "n_positions": 64, "n_embd": 32, "n_head": 4, "ffn_dim": 48, "n_inner": 48},
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    "word_embed_proj_dim": 32,
    # of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts", "decoder_sparse_step"), 1),
    # of recurrent layers
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64},
    **{"mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_expand": 2, "mamba_dt_rank": 4, "ssm_state_size": 8},
    **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}
AT_MOST = {"first_k_dense_replace": 1, "moe_layer_start_index": 1}
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
PROMPTS = [[5, 9, 2, 7, 1, 3, 8, 6, 4], [11, 12], [3]]


def check_family(model: PreTrainedModel) -> None:
    """Do nothing for a model the sweep is known to be right for.

    Raises:
        Refusal: the model's family is not known and the check could not be made or failed.
    """
    config = model.config.get_text_config()
    if shared := getattr(config, "num_kv_shared_layers", 0):
        raise Refusal(
            f"{type(model).__name__}: its last {shared} layers use the keys and values of earlier ones, so "
            "loki-ds cannot go through the layers one by one"
        )
    if config.model_type not in PROVEN:
        log.info(
            "check: %s is not a known family; comparing the sweep with the definition on a tiny copy",
            config.model_type,
        )
        off = difference(type(model).__name__, _builder(model), config)
        log.info("check: the tiny %s agrees to %.1e", config.model_type, off)


def _builder(model: PreTrainedModel) -> Callable[[Any], PreTrainedModel]:
    """What makes a model of a text configuration: the model's own class; of a wrapper of text and
    pictures its text part's, or where there is none the wrapper with one layer for pictures.
    """
    whole = model.config
    text = whole.get_text_config()
    if text is whole:
        return type(model)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.from_config

    def wrapped(tiny: Any) -> PreTrainedModel:
        small = copy.deepcopy(whole)
        small.text_config = tiny
        for name in ("depth", "num_hidden_layers"):
            if hasattr(small.vision_config, name):
                setattr(small.vision_config, name, 1)
        marks = [name for name in small.to_dict() if re.search("(token_id|token_index)$", name)]
        for token, name in enumerate(marks, start=TINY["vocab_size"] // 2):
            setattr(small, name, token)
        return type(model)(small)

    return wrapped


def difference(name: str, build: Callable[[Any], Any], config: Any) -> float:
    """Largest difference of sweep and definition on a tiny model, relative to the largest score."""
    try:
        with torch.random.fork_rng(devices=[]), unsharded():
            torch.manual_seed(0)
            # On the device: where kernels for GPUs are installed, hybrids compute by them alone.
            model = build(tiny_config(config)).double().eval().requires_grad_(False).to(current_device())
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)  # so that the layers matter
        _check_layers(name, model)
        expected = attribute_by_definition(model, PROMPTS, steps=2)
        swept = Sweep(model, steps=2).run(PROMPTS).scores
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, AttributeError) and isinstance(error.obj, KeysValues | State):
            raise Refusal(
                f"{name}: its layers ask their cache for {error.name}, which attribution does not keep for them"
            ) from None
        raise Refusal(
            f"{name}: an unknown family, and attribution could not be checked on a tiny copy of it: {short(error, 200)}"
        ) from None
    off = ((swept - expected).abs().max() / expected.abs().max()).item()
    if not off < TOLERANCE:
        raise Refusal(
            f"{name}: an unknown family, and attribution by the sweep differs from the definition by {off:.1e} on a "
            "tiny copy"
        )
    return off


def _check_layers(name: str, model: PreTrainedModel) -> None:
    """Refuse layers that hand on more than hidden states, which nothing stands in for."""
    handed: list[Any] = []
    layers = decoder_layers(model)
    with layers[0].register_forward_hook(lambda _, __, output: handed.append(output)):
        model(torch.tensor([PROMPTS[0]], device=model.device), use_cache=False)
    if isinstance(handed[0], tuple):
        raise Refusal(
            f"{name}: its decoder layers hand on {len(handed[0])} values in a tuple, attribution knows layers that "
            "hand on their hidden states alone"
        )


def tiny_config(config: Any) -> Any:
    """A copy with all sizes small, all other choices kept, and at most four layers of all kinds."""
    stated = config.to_dict()
    by_layer = stated.get("per_layer_config") or {}
    sizes = {**_tiny_sizes(stated), **_tiny_layers(stated, by_layer)}
    if by_layer:
        tiny = type(config).from_dict({**stated, **sizes})
    else:
        tiny = copy.deepcopy(config)
        for name, size in sizes.items():
            with suppress(AttributeError):  # what a class works out of other settings
                setattr(tiny, name, size)
    tiny._experts_implementation = "eager"  # no grouped product takes float64
    return tiny


def _tiny_sizes(stated: dict[str, Any]) -> dict[str, int]:
    """The tiny copy's sizes, of those that the configuration states."""
    tiny = {name: size for name, size in TINY.items() if stated.get(name) is not None}
    tiny |= {name: min(stated[name], most) for name, most in AT_MOST.items() if stated.get(name) is not None}
    if (groups := stated.get("num_key_value_heads")) is not None:
        tiny["num_key_value_heads"] = 4 if groups == stated.get("num_attention_heads") else 2
    if stated.get("sliding_window") is not None:
        tiny["sliding_window"] = 5
    return tiny | {name: 0 for name in SPECIAL_TOKENS if stated.get(name) is not None}


def _tiny_layers(stated: dict[str, Any], by_number: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """At most four layers, all kinds of them. by_number: what single layers have."""
    counted = next(name for name in LAYER_COUNTS if name in stated)
    total = stated[counted]
    count, layers = min(total, 4), {counted: min(total, 4)}
    # What is said of each layer, in lists of their length.
    said = {
        name: values
        for name, values in stated.items()
        if isinstance(values, list) and len(values) == total and name != counted
    }
    first: dict[tuple, int] = {}
    for i in range(total):
        first.setdefault(tuple(str(values[i]) for values in said.values()), i)
    chosen = ([*first.values(), *range(total)] if len(first) > 1 else list(range(total)))[:count]
    if by_number and "layer_types" in said:
        chosen[-1] = total - 1
    layers |= {name: [values[i] for i in chosen] for name, values in said.items()}
    if by_number:
        kinds = stated["layer_types"]
        of_kind = {kinds[int(number)]: settings for number, settings in by_number.items()}
        layers["per_layer_config"] = {
            i: {name: 2 * TINY[name] if name in TINY else value for name, value in of_kind[kind].items()}
            for i, kind in enumerate(layers["layer_types"])
            if kind in of_kind
        }
    return layers
