"""What attribution explains: the model's own next token, by its probability or its logit."""

import torch
from torch import Tensor


def target_value(logits: Tensor, token: Tensor, target: str) -> Tensor:
    """`F`: the probability (softmax in float32 or better) or the logit of `token`; logits `[...,
    V]`, token `[...]`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = logits.gather(-1, token[..., None]).squeeze(-1)
    if target == "logit":
        return picked
    return torch.exp(picked - torch.logsumexp(logits, dim=-1))


@torch.no_grad()
def target_gradient(logits: Tensor, token: Tensor, target: str) -> Tensor:
    """`dF/dlogits [..., V]` of `target_value`, in the logits' dtype; by hand, because autograd
    would pass over the vocabulary five times.

    For the probability `p` of the token it is `p (1_token - softmax)`, for the logit `1_token`.
    """
    if target == "logit":
        return torch.zeros_like(logits).scatter_(-1, token[..., None], 1.0)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    of_token = probabilities.gather(-1, token[..., None])
    return probabilities.mul_(-of_token).scatter_add_(-1, token[..., None], of_token).to(logits.dtype)
