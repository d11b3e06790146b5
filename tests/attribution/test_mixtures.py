"""A mixture of experts is one wide FFN: its scores are the definition's, whoever is routed
where.
"""

import pytest
import torch
from mixtures import MIXTURES, OTHERS, mixture
from torch import Tensor
from transformers import PreTrainedModel

from loki_ds.attribution.batches import attribute
from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.sweep import Sweep
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import at_writers

BEGINNING = [i % 60 + 1 for i in range(40)]
PROMPTS = [[5, 9, 2, 7, 1, 3, 8, 6, 4], [3], [11, 12], [*BEGINNING, 5], [*BEGINNING, 6, 7]]
IN_FLOAT32 = {"deepseek v3", "glm 4", "gemma 4"}  # these route or norm in float32 whatever the dtype


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_the_sweep_is_the_definition(name: str) -> None:
    model, tolerance = mixture(name), 1e-5 if name in IN_FLOAT32 else 1e-9
    expected = attribute_by_definition(model, PROMPTS, steps=2)
    assert off(Sweep(model, steps=2).run(PROMPTS).scores, expected) < tolerance
    assert off(Sweep(model, steps=2).run(PROMPTS[3:]).scores, expected[3:]) < tolerance
    assert off(attribute(model, PROMPTS, steps=2, batch_size=1), expected) < tolerance


def seen_in_lowest_layer(model: PreTrainedModel, norm: str) -> tuple[Tensor, list[tuple[int, Tensor]], Tensor]:
    """What a norm is handed, each writer's branch and output, and what the layer hands on."""
    layer, ends, written = decoder_layers(model)[0], [], []
    getattr(layer, norm).register_forward_pre_hook(lambda _, x: ends.append(x[0]))
    layer.register_forward_hook(lambda _, __, out: ends.append(out))
    with at_writers(layer, lambda writer, output: written.append((writer.branch, output))):
        model(torch.tensor(PROMPTS[:1]))
    before, after = ends
    return before, written, after


def test_what_is_written_is_all_that_the_layer_adds() -> None:
    """Granite's experts and what all tokens share, added up and scaled, are what its layer adds."""
    model = mixture("granite")
    before, written, after = seen_in_lowest_layer(model, "post_attention_layernorm")
    assert len(written) == 2
    added = sum(output for _, output in written)
    assert torch.allclose(before + added * model.config.residual_multiplier, after)


def test_branches_are_all_that_meets_after_norms_of_their_own() -> None:
    """Gemma 4's FFN and its experts: each by its norm, and the sum by a third."""
    model = mixture("gemma 4")
    layer = decoder_layers(model)[0]
    before, ((of_ffn, ffn), (of_experts, experts)), after = seen_in_lowest_layer(model, "pre_feedforward_layernorm")
    assert (of_ffn, of_experts) == (0, 1)
    met = layer.post_feedforward_layernorm_1(ffn) + layer.post_feedforward_layernorm_2(experts)
    assert torch.allclose((before + layer.post_feedforward_layernorm(met)) * layer.layer_scalar, after)


def test_the_path_begins_where_no_branch_writes() -> None:
    model, prompt = mixture("gemma 4"), PROMPTS[0]
    swept = Sweep(model, steps=1).run([prompt])
    whole = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    token = whole.argmax()
    for i, layer in enumerate(decoder_layers(model)):
        with at_writers(layer, lambda _, output: torch.cat([output[:, :-1], 0 * output[:, -1:]], 1)):
            without = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        assert swept.baseline[0, i] == pytest.approx(without[token].item(), rel=1e-5)
