"""Layers without attention: exact against the definition, for every length the mixers know apart,
and no state leaks from one prompt, row or sweep into another.
"""

import pytest
import torch
import transformers
from conftest import HYBRIDS, SMALL
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loki_ds.attribution.batches import attribute
from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.sweep import Sweep

TOLERANCE = 1e-5  # of the largest score: the delta rule computes in float32 whatever the dtype
BEGINNING = [i % 60 + 1 for i in range(40)]
PROMPTS = {
    "of mixed lengths": [[5, 9, 2, 7, 1], [3], [i % 50 + 1 for i in range(19)], [4, 5], [7, 8, 9, 1, 2]],
    "that begin alike": [[*BEGINNING, *rest] for rest in ([5], [6, 7, 8], [9, 10], [1, 2, 3, 4, 5, 6])],
    "as long as the convolution and its chunks": [[i % 50 + 1 for i in range(n)] for n in (3, 4, 5, 64, 65, 66)],
    "of one token": [[3], [4]],
}


def hybrid(name: str) -> PreTrainedModel:
    config_class, own = HYBRIDS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**SMALL, **own})
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", HYBRIDS)
def test_the_sweep_is_the_definition(name: str, prompts: str) -> None:
    model = hybrid(name)
    expected = attribute_by_definition(model, PROMPTS[prompts], steps=2)
    sweep = Sweep(model, steps=2)
    assert off(sweep.run(PROMPTS[prompts]).scores, expected) < TOLERANCE
    assert off(sweep.run(PROMPTS[prompts][::-1]).scores.flip(0), expected) < TOLERANCE


def test_scores_do_not_depend_on_the_batch_and_the_family_proves_itself() -> None:
    model = hybrid("qwen3.5")
    together = attribute(model, PROMPTS["of mixed lengths"], steps=2, batch_size=5)
    alone = attribute(model, PROMPTS["of mixed lengths"], steps=2, batch_size=1)
    assert off(together, alone) < TOLERANCE
