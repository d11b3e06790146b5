"""A mixture of experts is one wide FFN: its scores are the definition's, whoever is routed
where.
"""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from mixtures import MIXTURES, OTHERS, mixture
from torch import Tensor

from loki_ds.attribution.batches import attribute
from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.sensitivity import Text, output_gradient_moments
from loki_ds.attribution.sweep import Sweep
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.sites import at_writers
from loki_ds.zero.model import Gatherer

BEGINNING = [i % 60 + 1 for i in range(40)]
PROMPTS = [[5, 9, 2, 7, 1, 3, 8, 6, 4], [3], [11, 12], [*BEGINNING, 5], [*BEGINNING, 6, 7]]
IN_FLOAT32 = {"deepseek v3", "glm 4"}  # these route in float32 whatever the dtype


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_the_sweep_is_the_definition(name: str) -> None:
    model, tolerance = mixture(name), 1e-5 if name in IN_FLOAT32 else 1e-9
    expected = attribute_by_definition(model, PROMPTS, steps=2)
    assert off(Sweep(model, steps=2).run(PROMPTS).scores, expected) < tolerance
    assert off(Sweep(model, steps=2).run(PROMPTS[3:]).scores, expected[3:]) < tolerance
    assert off(attribute(model, PROMPTS, steps=2, batch_size=1), expected) < tolerance


def test_what_is_written_is_all_that_the_layer_adds() -> None:
    """Granite's experts and what all tokens share, added up and scaled, are what its layer adds."""
    model, written = mixture("granite"), []
    layer = decoder_layers(model)[0]
    added = []
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, x: added.append(x[0]))
    layer.register_forward_hook(lambda _, __, out: added.append(out))
    with at_writers(layer, lambda _, output: written.append(output)):
        model(torch.tensor(PROMPTS[:1]))
    before, after = added
    assert len(written) == 2
    assert torch.allclose(before + sum(written) * model.config.residual_multiplier, after)


def nudged(nudge: Tensor, writer: int, output: Tensor) -> Tensor | None:
    return None if writer else output + nudge


@pytest.mark.parametrize("name", ["mixtral", "granite", "gpt-2"])
def test_sensitivities_are_those_of_back_propagation(name: str) -> None:
    model, tokens = mixture(name), [5, 9, 2, 7, 1]
    found = output_gradient_moments(model, [Text(tokens)], [[0]], Gatherer())
    stack = ExitStack()
    nudges = [torch.zeros(1, len(tokens), 32, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    for layer, nudge in zip(decoder_layers(model), nudges, strict=True):
        stack.enter_context(at_writers(layer, partial(nudged, nudge)))
    with stack:
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    gradients = torch.autograd.grad(logits.max(-1).values.sum(), nudges)
    assert off(found, torch.stack([one[0].square().sum(0) for one in gradients]) / len(tokens)) < 1e-6
