"""A family the tests do not know is proven on a tiny copy of its own configuration, or refused."""

import pytest
import torch
from conftest import SMALL, build
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BambaConfig,
    DeepseekV32Config,
    FalconConfig,
    Gemma4Config,
    Gemma4TextConfig,
    GlmConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    PreTrainedConfig,
    Qwen3Config,
)

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


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (FalconConfig(**SMALL, alibi=False), "hand on 2 values in a tuple"),
        (BambaConfig(**SMALL, mamba_n_heads=8, mamba_d_head=8, attn_layer_indices=[1, 3]), "hand on 2 values"),
        (DeepseekV32Config(**{**SMALL, "num_key_value_heads": 4}), "ask their cache for update_indexer"),
        (Llama4TextConfig(**SMALL, intermediate_size_mlp=48), "ask their cache for get_seq_length"),
    ],
)
def test_a_family_of_other_layers_is_refused_by_what_they_do(config: PreTrainedConfig, says: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(Refusal, match=f"{type(model).__name__}: its .*{says}"):
        check_family(model)


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


@pytest.mark.parametrize(
    "experts", [{}, {"enable_moe_block": True, "top_k_experts": 2, "num_experts": 8, "moe_intermediate_size": 16}]
)
def test_the_text_part_of_a_wrapper_proves_itself_and_layers_of_unequal_sizes_stay_so(experts: dict) -> None:
    """Gemma 4's 12B and 31B: global layers have larger heads; and its 26B-A4B."""
    layers = ["sliding_attention"] * 5 + ["full_attention"]
    text = {**SMALL, "num_hidden_layers": 6, "head_dim": 8, "global_head_dim": 32, "hidden_size_per_layer_input": 0}
    marks = {
        f"{name}_token_id": place for place, name in enumerate(("image", "video", "audio", "boi", "boa"), start=50)
    }
    config = Gemma4Config(
        text_config={**text, **experts, "layer_types": layers}, vision_config=None, audio_config=None, **marks
    )
    config._experts_implementation = "eager"  # no grouped product takes float64
    tiny = tiny_config(config.get_text_config())
    assert tiny.layer_types == ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert [one.head_dim for one in tiny.per_layer_config] == [8, 16, 8, 16]
    model = AutoModelForImageTextToText.from_config(config).double().eval()
    scores: Tensor = attribute(model, [[5, 3, 1], [2]], steps=2)
    expected = attribute_by_definition(model, [[5, 3, 1], [2]], steps=2)
    assert (scores - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_kv_shared_layers": 2}, "its last 2 layers use the keys and values of earlier ones"),
        ({"hidden_size_per_layer_input": 8}, "decoder layers of this model take 'per_layer_input'"),
    ],
)
def test_what_the_small_gemma_4s_have_is_refused_by_what_it_is(settings: dict, says: str) -> None:
    """E2B and E4B: shared keys and values, inputs of each layer's own."""
    own = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 64}
    layers = ["sliding_attention", "full_attention"] * 2
    config = Gemma4TextConfig(**{**SMALL, **own, **settings}, layer_types=layers)
    with pytest.raises(Refusal, match=says):
        attribute(AutoModelForCausalLM.from_config(config).double().eval(), [[1, 2, 3]])
