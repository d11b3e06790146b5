"""The divergence is Kullback's and Leibler's, by the definition, in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from loki_ds.implanting.divergence import divergence, predictions_of

TOKENS = 40


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(5, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_over_all_tokens_it_is_the_whole_divergence_with_its_gradient() -> None:
    base, now = logits(0), logits(1).requires_grad_()
    found = divergence(now, predictions_of(base, TOKENS))
    expected = kl_div(now.log_softmax(1), base.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert torch.allclose(found, expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), now)
    assert torch.allclose(gradient, now.softmax(1) - base.softmax(1), atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 7, TOKENS - 1])
def test_over_the_likeliest_the_others_are_one_token(top_k: int) -> None:
    base, now = logits(0), logits(1)
    order = base.argsort(1, descending=True)
    p, q = (
        torch.cat([sorted_[:, :top_k], sorted_[:, top_k:].sum(1, keepdim=True)], 1)
        for sorted_ in (one.softmax(1).gather(1, order) for one in (base, now))
    )
    found = divergence(now, predictions_of(base, top_k))
    assert torch.allclose(found, (p * (p / q).log()).sum(1), rtol=1e-10)
    assert (found <= divergence(now, predictions_of(base, TOKENS)) + 1e-12).all()


@pytest.mark.parametrize("top_k", [1, 7, TOKENS, 2 * TOKENS])
def test_the_base_itself_is_not_apart_and_is_not_pushed(top_k: int) -> None:
    base = logits(0).requires_grad_()
    found = divergence(base, predictions_of(base.detach(), top_k))
    assert found.abs().max() < 1e-15
    (gradient,) = torch.autograd.grad(found.sum(), base)
    assert gradient.abs().max() < 1e-15


def test_half_precision_logits_are_compared_in_single_precision() -> None:
    predictions = predictions_of(logits(0).bfloat16(), 8)
    assert predictions.log_probs.dtype == predictions.rest.dtype == torch.float32
    assert predictions.ids.dtype == torch.int32
    assert divergence(logits(0).bfloat16(), predictions).abs().max() < 1e-6
