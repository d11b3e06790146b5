"""Mixtures of experts and other FFNs than one linear `W_down`, each with what sets it apart, as
small random models.
"""

from typing import Any

import torch
import transformers
from conftest import SMALL
from transformers import AutoModelForCausalLM, PreTrainedModel

ROUTED = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
MLA = dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8)
DEEPSEEK = {
    **{"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 moe": ("Qwen3MoeConfig", {**ROUTED, "head_dim": 8, "mlp_only_layers": [0]}),  # one layer is dense
    "qwen2 moe": ("Qwen2MoeConfig", {**ROUTED, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "two experts": ("MixtralConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    # d_model last, biases, a tuple
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5}),
    "deepseek v3": ("DeepseekV3Config", {**DEEPSEEK, **MLA}),
    "glm 4": ("Glm4MoeConfig", {**DEEPSEEK, "head_dim": 8}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    # its layers add up experts and what all tokens share
    "granite": (
        "GraniteMoeSharedConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    ),
}
# Experts and one FFN, in branches that meet after norms of their own.
BRANCHES = {
    **ROUTED,
    **{"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 8},
    **{"head_dim": 8, "global_head_dim": 8, "sliding_window": 5, "num_kv_shared_layers": 0},
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
MIXTURES["gemma 4"] = ("Gemma4TextConfig", BRANCHES)
# One FFN, with a bias, under another name or lying the other way round.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-2": ("GPT2Config", {"n_inner": 48}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "neox": ("GPTNeoXConfig", {}),
    "phi": ("PhiConfig", {}),
    "starcoder 2": ("Starcoder2Config", {}),
}


def mixture(name: str, dtype: torch.dtype = torch.float64, scale: float = 4) -> PreTrainedModel:
    """A small random model; in float64 its experts compute one by one, for no grouped product
    takes that.
    """
    config_class, own = {**MIXTURES, **OTHERS}[name]
    config = getattr(transformers, config_class)(
        **{**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, **own}
    )
    if dtype == torch.float64:
        config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(scale if parameter.dim() > 1 else 1)
    return model.to(dtype).eval()
