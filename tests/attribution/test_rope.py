"""Scores do not depend on the batch, also where rotary tables depend on its longest prompt."""

from typing import Any

import pytest
import torch
from conftest import build
from torch import Tensor

from loki_ds.attribution.batches import attribute, batches
from loki_ds.attribution.definition import attribute_by_definition
from loki_ds.attribution.rope import any_length, length_class

PROMPTS = [[i % 60 + 1 for i in range(start, start + length)] for start, length in ((3, 25), (9, 12), (5, 20), (1, 14))]
HEAD = 8
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Phi-3.5's and Phi-4-mini's kind: another table beyond the length of pre-training
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * (HEAD // 2),
                "long_factor": [4.0] * (HEAD // 2),
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "dynamic": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama3": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 1e4,
            },
        },
    ),
}


@pytest.mark.parametrize("rope", ROPES)
def test_every_prompt_gets_the_scores_it_has_alone(rope: str) -> None:
    family, settings = ROPES[rope]
    model = build(family, **settings)
    together: Tensor = attribute(model, PROMPTS, steps=3)
    alone = torch.cat([attribute_by_definition(build(family, **settings), [prompt], steps=3) for prompt in PROMPTS])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-12)
    again: Tensor = attribute(model, PROMPTS[::-1], steps=3)  # tables that grew do not stay
    assert torch.allclose(again.flip(0), alone, rtol=1e-9, atol=1e-12)


def test_who_goes_with_whom() -> None:
    by_rope = {rope: length_class(build(family, **settings).config) for rope, (family, settings) in ROPES.items()}
    assert batches(PROMPTS, 8, by_rope["longrope"]) == [[0, 2], [3, 1]]  # beyond 16 tokens, and within
    assert batches(PROMPTS, 8, by_rope["dynamic"]) == [[3, 1], [0], [2]]  # every length beyond for itself
    assert by_rope["llama3"] is any_length
    assert batches(PROMPTS, 8, any_length) == [[0, 2, 3, 1]]
