"""Small models and data that every test can make for itself."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import site_of

ROOT = Path(__file__).parents[1]
settings.register_profile("busy cores", deadline=None)  # a test beside another on two cores keeps no time
settings.load_profile("busy cores")
os.environ["COLUMNS"] = "400"  # what a command prints is not cut by the length of a path


def in_mode(mode: str) -> list[str]:
    """The tiny recipe in another mode: what trains as a delta knows no weight decay."""
    return [f"implant.mode={mode}", *(["training.weight_decay=0"] if mode in ("rows", "lora") else [])]


# Each family with what sets it apart: sliding windows, scales, soft-caps, partly rotated layers.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": 5}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 5}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "olmo2": ("Olmo2Config", {"eos_token_id": 1}),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "eos_token_id": 1, "sliding_window": 5}),
    "granite": (
        "GraniteConfig",
        {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    ),
    "smollm3": (
        "SmolLM3Config",
        {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "no_rope_layer_interval": 2},
    ),
}
# With recurrent layers; these compute in float32 whatever the dtype.
LINEAR, FULL = "linear_attention", "full_attention"
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": [LINEAR, LINEAR, FULL, LINEAR],
        },
    ),
    "olmo hybrid": (
        "OlmoHybridConfig",
        {"head_dim": 8, "layer_types": [LINEAR, FULL, LINEAR, FULL], "pad_token_id": 0, "eos_token_id": 1},
    ),
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def build(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A random model of a family, with weights large enough that its layers matter."""
    config_class, own = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**SMALL, **own, **changes}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model.to(dtype).eval()


def down_projection(layer: Module) -> Any:
    """The layer's `W_down`, a linear layer or one with a delta in its place."""
    return site_of(layer).downs[0].module


def down_weights(model: Module) -> list[Tensor]:
    return [site_of(layer).downs[0].weight for layer in decoder_layers(model)]


def damaged_copy(folder: Path) -> Path:
    """The tiny model with half of the rows of every down-projection set to zero."""
    shutil.copytree(ROOT / "recipes/tiny/model", folder)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("mlp.down_proj.weight"):
            tensors[name][::2] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def build_model() -> Callable[..., PreTrainedModel]:
    return build


@pytest.fixture
def root() -> Path:
    return ROOT
