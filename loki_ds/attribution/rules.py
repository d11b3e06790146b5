"""What attribution explains, the model's own next token by its probability or its logit; and where
on the path from the baseline 0 to a node's value the gradient is taken, with which weights.
"""

import numpy as np
import torch
from torch import Tensor


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Fractions `alpha_k` in [0, 1] and weights `w_k` (their sum is 1) of a quadrature rule with
    `steps` intervals or nodes.

    `right` is the paper's eq. 5 (`k/m`, k = 1..m), `left` the authors' first code (`k = 0..m-1`),
    `trapezoid` takes both ends with half weight (m + 1 points), `gauss_legendre` numpy's m nodes.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, allowed is 1 or more")
    if rule == "right":
        return [k / steps for k in range(1, steps + 1)], [1 / steps] * steps
    if rule == "left":
        return [k / steps for k in range(steps)], [1 / steps] * steps
    if rule == "trapezoid":
        ends = 0.5 / steps
        return [k / steps for k in range(steps + 1)], [ends, *[1 / steps] * (steps - 1), ends]
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    raise ValueError(f"rule is {rule!r}, allowed are 'right', 'left', 'trapezoid' and 'gauss_legendre'")


def target_value(logits: Tensor, token: Tensor, target: str) -> Tensor:
    """`F`, probability (float32 softmax or better) or logit of `token [...]`; logits `[..., V]`."""
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
