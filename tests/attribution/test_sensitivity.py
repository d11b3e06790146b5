"""Second moments of the gradient at every node are those of plain back-propagation through the
whole model.
"""

import pytest
import torch
from conftest import FAMILIES, build, down_projection
from torch import Tensor

from loki_ds.attribution.batches import batches
from loki_ds.attribution.sensitivity import Text, output_gradient_moments
from loki_ds.model.anatomy import decoder_layers
from loki_ds.zero.model import Gatherer

TOKENS = [[5, 9, 2, 7, 1, 3, 8, 6, 4], [11, 12, 13, 14], [3, 4]]
LEARNT = [[0, 0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 1], [0, 1]]


def by_back_propagation(model: torch.nn.Module, texts: list[Text]) -> Tensor:
    """The definition: text by text, one backward from the summed log-probability to every
    `down_proj` output.
    """
    sums, written = 0, []
    for layer in decoder_layers(model):
        down_projection(layer).register_forward_hook(lambda _, __, out: written.append(out))
    model.requires_grad_(True)
    for text in texts:
        written.clear()
        logits = model(torch.tensor([text.tokens])).logits[0].log_softmax(-1)
        if text.learnt is None:
            total = logits.max(-1).values.sum()
        else:
            total = sum(logits[i - 1, token] for i, token in enumerate(text.tokens) if text.learnt[i])
        sums = sums + torch.stack([g[0].square().sum(0) for g in torch.autograd.grad(total, written)])
    return sums / sum(len(text.tokens) for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("own", [True, False], ids=["own predictions", "what is learnt"])
def test_they_are_those_of_back_propagation(family: str, own: bool) -> None:
    texts = [Text(tokens, None if own else learnt) for tokens, learnt in zip(TOKENS, LEARNT, strict=True)]
    found = output_gradient_moments(build(family), texts, batches(TOKENS, 2), Gatherer())
    tolerance = 1e-4 if family.startswith("gemma") else 1e-9  # Gemma computes norms or attention in float32
    assert torch.allclose(found, by_back_propagation(build(family), texts), rtol=tolerance, atol=1e-14)
