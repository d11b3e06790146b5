"""The sweep gives the definition's numbers: every family, rule and target, mixed lengths, any
batch.
"""

import pytest
import torch
from conftest import FAMILIES, build
from torch import Tensor
from transformers import PreTrainedModel

from loki_ds import attribute, attribute_by_definition
from loki_ds.attribution.layer_call import shared_length
from loki_ds.attribution.sweep import Sweep
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.refusal import Refusal

# Gemma's soft-capped attention takes its softmax in float32 whatever the model's dtype.
TOLERANCE = {"gemma2": 1e-5}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (length,), generator=generator).tolist() for length in lengths]


def difference(scores: Tensor, expected: Tensor) -> float:
    return ((scores - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_definition_on_every_family(family: str) -> None:
    model, mixed = build(family), prompts(9, 1, 2, 12)
    expected = attribute_by_definition(model, mixed, steps=3)
    assert difference(attribute(model, mixed, steps=3, batch_size=3), expected) < TOLERANCE.get(family, 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_beginning_is_computed_once_and_changes_nothing(family: str) -> None:
    model, shots = build(family), prompts(40)[0]
    alike = [shots + end for end in prompts(9, 1, 4)]
    assert shared_length(alike) >= 40
    expected = attribute_by_definition(model, alike, steps=2)
    assert difference(attribute(model, alike, steps=2), expected) < TOLERANCE.get(family, 1e-9)


@pytest.mark.parametrize("rule", ["right", "left", "trapezoid", "gauss_legendre"])
@pytest.mark.parametrize("target", ["probability", "logit"])
@pytest.mark.parametrize("multiply_by_value", [True, False])
def test_equals_the_definition_for_every_rule_and_target(rule: str, target: str, multiply_by_value: bool) -> None:
    model, mixed = build("llama"), prompts(6, 3)
    settings = {"steps": 2, "rule": rule, "target": target, "multiply_by_value": multiply_by_value}
    assert difference(attribute(model, mixed, **settings), attribute_by_definition(model, mixed, **settings)) < 1e-9


def test_scores_do_not_depend_on_the_batch() -> None:
    model, mixed = build("qwen2"), prompts(4, 11, 7, 7, 1)
    assert difference(attribute(model, mixed, batch_size=1), attribute(model, mixed, batch_size=5)) < 1e-12


def test_result_is_float32_for_a_bfloat16_model_and_has_the_stated_shape() -> None:
    scores = attribute(build("qwen3", torch.bfloat16), prompts(5, 3), steps=2)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 4, 32)


def test_completeness_residual_vanishes_with_a_fine_rule() -> None:
    swept = Sweep(build("llama"), steps=32, rule="gauss_legendre").run(prompts(8, 5))
    assert swept.residual.abs().max() < 1e-6 * swept.value.max()


def test_residual_shows_a_coarse_rule() -> None:
    swept = Sweep(build("llama"), steps=1, rule="right").run(prompts(8, 5))
    assert swept.residual.abs().max() > 1e-3 * swept.value.max()


def test_an_unsharded_model_needs_no_gather() -> None:
    gatherer = Gatherer()
    Sweep(build("llama"), gatherer=gatherer).run(prompts(3))
    assert gatherer.count == 0


def test_leaves_the_model_as_it_was() -> None:
    model = build("llama")
    before = model(torch.tensor(prompts(5))).logits
    attribute(model, prompts(5, 2))
    assert torch.equal(model(torch.tensor(prompts(5))).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_that_would_ignore_the_mask_is_refused() -> None:
    model = build("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(
        Refusal, match="attention 'flash_attention_2' takes no 4-D mask; load the model with eager or sdpa"
    ):
        attribute(model, prompts(3))


@pytest.mark.parametrize(("key", "value"), [("rule", "midpoint"), ("target", "loss"), ("steps", 0)])
def test_unknown_settings_are_named(key: str, value: object) -> None:
    model: PreTrainedModel = build("llama")
    with pytest.raises(ValueError, match=f"{key} is"):
        attribute(model, prompts(3), **{key: value})
