"""How far a prediction is from the base's: forward Kullback-Leibler divergence over the base's
likeliest tokens, all others as one.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """What the base predicts at N places.

    ids: its K likeliest tokens, the likeliest first `[N, K]` int32. log_probs: of those, in nats
    `[N, K]`. rest: of all other tokens together `[N]`. Both in float32, or float64 as the logits.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor

    def at(self, places: Tensor, device: torch.device) -> "Predictions":
        """Those at some places `[n]`, there."""
        return Predictions(*(part[places].to(device) for part in self))


def predictions_of(logits: Tensor, top_k: int) -> Predictions:
    """What logits `[N, V]` predict; at most V tokens of each."""
    log_probs = _log_softmax(logits)
    top = log_probs.topk(min(top_k, log_probs.shape[1]), dim=1)
    return Predictions(top.indices.int(), top.values, _rest(log_probs, top.indices))


def divergence(logits: Tensor, predictions: Predictions) -> Tensor:
    """`sum_i p_i (log p_i - log q_i)` of the base's p and the logits' q, in nats `[N]`: i goes over
    the base's likeliest tokens, and the rest as one token.

    With all tokens it is the whole divergence; with fewer a lower bound of it, and 0 with gradient
    0 where the predictions are the same.
    """
    log_q, ids = _log_softmax(logits), predictions.ids.long()
    likeliest = (predictions.log_probs.exp() * (predictions.log_probs - log_q.gather(1, ids))).sum(1)
    if ids.shape[1] == log_q.shape[1]:
        return likeliest
    return likeliest + predictions.rest.exp() * (predictions.rest - _rest(log_q, ids))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of all tokens but these."""
    return log_probs.scatter(1, ids, -torch.inf).logsumexp(1)
