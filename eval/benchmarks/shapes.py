"""Shapes of models that benchmarks build with random weights."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3_5TextConfig, Qwen3MoeConfig

from loki_ds.model.base_checks import without_data
from loki_ds.model.row_blocks import blocks_of, row_blocks
from loki_ds.selection.blocks import Block

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
QWEN2_05B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def blocks_in(config: PreTrainedConfig) -> list[Block]:
    """The rows of each layer's down-projections."""
    return blocks_of(row_blocks(without_data(Path(), config, trust_remote_code=False)))


QWEN2_15B: dict[str, Any] = {
    **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
    **{"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
}
SHAPES: dict[str, PreTrainedConfig] = {
    "8 layers, d_model 512": LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
    ),
    "moe-16-layers": Qwen3MoeConfig(  # 16 experts in each, 4 of them for a token
        vocab_size=8192,
        hidden_size=512,
        moe_intermediate_size=256,
        num_experts=16,
        num_experts_per_tok=4,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "hybrid-16-layers": Qwen3_5TextConfig(  # linear attention in 12
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    ),
    "tiny": LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ),
    "tiny-experts": Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "qwen2.5-0.5b": Qwen2Config(**QWEN2_05B),
    "qwen2.5-1.5b": Qwen2Config(**QWEN2_15B),
    "llama-3.1-8b": LlamaConfig(**LLAMA_8B),
    "llama-3.1-8b-half": LlamaConfig(**{**LLAMA_8B, "num_hidden_layers": 16}),
}
