"""A family the tests do not know is proven on a tiny copy of its own configuration, or refused."""

import pytest
import torch
from conftest import SMALL, build
from torch import Tensor
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, LlamaForCausalLM, OlmoConfig, Qwen3Config

from loki_ds import attribute, attribute_by_definition
from loki_ds.attribution.self_check import PROVEN, check_family, tiny_config
from loki_ds.refusal import Refusal


class NeighbourConfig(LlamaConfig):
    model_type = "neighbour"


class NeighbourForCausalLM(LlamaForCausalLM):
    """Its layers mix each token with the one before it outside attention: rows at one position
    would see one another.
    """

    config_class = NeighbourConfig

    def __init__(self, config: NeighbourConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.register_forward_hook(lambda _, __, output: output + output.roll(1, dims=1))

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)


class ThreeHeadedForCausalLM(LlamaForCausalLM):
    config_class = NeighbourConfig

    def __init__(self, config: NeighbourConfig) -> None:
        if config.num_attention_heads != 3:
            raise ValueError("must have three heads")
        super().__init__(config)


def test_an_unknown_family_that_agrees_is_taken() -> None:
    model = AutoModelForCausalLM.from_config(OlmoConfig(**SMALL, eos_token_id=1)).double().eval()
    assert model.config.model_type not in PROVEN
    scores: Tensor = attribute(model, [[5, 3, 1], [2]], steps=2)
    assert torch.allclose(scores, attribute_by_definition(model, [[5, 3, 1], [2]], steps=2), rtol=1e-6, atol=1e-12)


def test_an_unknown_family_that_disagrees_is_refused() -> None:
    with pytest.raises(Refusal, match=r"NeighbourForCausalLM: an unknown family, and attribution by the sweep differs"):
        attribute(NeighbourForCausalLM(NeighbourConfig(**SMALL)), [[1, 2]])


def test_a_family_that_cannot_be_copied_is_refused() -> None:
    sizes = {**SMALL, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 24}
    with pytest.raises(Refusal, match="attribution could not be checked on a tiny copy of it: must have three heads"):
        check_family(ThreeHeadedForCausalLM(NeighbourConfig(**sizes)))


def test_known_families_are_not_checked_again() -> None:
    model = build("llama")
    model.forward = None  # type: ignore[assignment]
    check_family(model)


def test_the_copy_is_small_and_keeps_the_choices() -> None:
    config = Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, attention_bias=True, layer_types=["full_attention"] * 36
    )
    tiny = tiny_config(config)
    assert (tiny.hidden_size, tiny.num_hidden_layers, len(tiny.layer_types), tiny.attention_bias) == (32, 4, 4, True)
    assert config.hidden_size == 4096
    assert tiny_config(GlmConfig(num_key_value_heads=2)).num_key_value_heads == 2
