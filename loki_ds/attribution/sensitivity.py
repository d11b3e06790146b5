"""Sensitivity: how strongly the model's predictions react to what each node writes, over all tokens
(beyond the paper).

Plain back-propagation to what every FFN writes, layer by layer, each gathered once up and once
down; no parameter needs a gradient. With `F` the summed log-probability of what is predicted at
every position, a node's second moment is `E[(dF/dz_j)^2]` over tokens: to second order, what noise
on the node's output costs. Small on the protected set: little is lost. Large on the new task: much
to gain.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.batches import IDLE, turns
from loki_ds.attribution.sweep import HEAD_ROWS
from loki_ds.attribution.token_pass import padded
from loki_ds.model.anatomy import (
    calls_of_layers,
    decoder_layers,
    down_shapes,
    logits_above,
    parts_around_layers,
)
from loki_ds.model.sites import Writer, at_writers
from loki_ds.ranks import sum_over_ranks
from loki_ds.zero.model import Gatherer, device_of

EXAMPLES = 512  # of the new task that are looked at, the first ones


class Text(NamedTuple):
    """One token sequence; `learnt` is 1 for each token whose prediction counts (never the first),
    or None: the model's own predictions.
    """

    tokens: list[int]
    learnt: list[int] | None = None


def output_gradient_moments(
    model: Module, texts: Sequence[Text], planned: Sequence[list[int]], gatherer: Gatherer
) -> Tensor:
    """`E[(dF/dz_j)^2]` of every node over all tokens of the texts, `[layers, d_model]` float64 on
    the CPU, the same on all ranks.

    planned: batches of indices into `texts`, shared out among the ranks.
    """
    shapes = down_shapes(model)
    sums = torch.zeros(len(shapes), shapes[0][0], dtype=torch.float64)
    tokens = torch.zeros(1, dtype=torch.float64)
    for batch in turns(planned):
        for i, gradient in output_gradients(model, gatherer, [texts[i] for i in batch] or [Text(IDLE[0])]):
            sums[i] += gradient.double().square().sum((0, 1)).cpu() if batch else 0
        tokens += sum(len(texts[i].tokens) for i in batch)
    return sum_over_ranks(sums) / sum_over_ranks(tokens)


def output_gradients(model: Module, gatherer: Gatherer, texts: list[Text]) -> Iterator[tuple[int, Tensor]]:
    """`dF/dz` at what every layer's FFN writes, `[B, T, d_model]` (0 at padding), from the top
    layer down; of several branches one after the other, `[branches B, T, d_model]`.
    """
    layers = decoder_layers(model)
    ids = padded([text.tokens for text in texts]).to(device_of(model))
    with torch.no_grad(), gatherer.whole(*parts_around_layers(model)):
        run = calls_of_layers(model, layers, ids)
    inputs = [run.hidden_states[0]]
    with torch.no_grad(), closing(gatherer.walk(layers)) as walk:
        for layer, arguments in zip(walk, run.arguments, strict=True):
            inputs.append(layer(inputs[-1], **arguments))
    gradient = _gradient_at_top(model, layers, gatherer, texts, ids, inputs.pop())
    with closing(gatherer.walk(layers[::-1])) as walk:
        for i, layer in zip(reversed(range(len(layers))), walk, strict=True):
            below = inputs.pop().detach().requires_grad_()
            written: list[Tensor] = []
            with at_writers(layer, partial(_noted, written)):
                out = layer(below, **run.arguments[i])
            gradient, *at_outputs = torch.autograd.grad(out, (below, *written), gradient)
            yield i, torch.cat(at_outputs)


def _noted(written: list[Tensor], writer: Writer, output: Tensor) -> Tensor:
    """Of writers that are added up, the gradient at the first is that at the sum."""
    if not writer.adds:
        written.append(output)
    return output


def _gradient_at_top(
    model: Module, layers: list[Module], gatherer: Gatherer, texts: list[Text], ids: Tensor, hidden: Tensor
) -> Tensor:
    """`dF` with respect to the last layer's output `[B, T, d_model]`."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    counts = padded([_counted(text) for text in texts]).to(ids.device).flatten()
    wanted = ids.roll(-1, 1).flatten() if texts[0].learnt is not None else None
    gradients: list[Tensor] = []
    with gatherer.whole(*parts_around_layers(model), head):
        for rows in torch.arange(len(counts), device=ids.device).split(HEAD_ROWS):
            point = hidden.flatten(0, 1)[rows].detach().requires_grad_()
            logits = logits_above(model, layers, point)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            token = logits.argmax(-1) if wanted is None else wanted[rows]
            predicted = torch.log_softmax(logits, -1).gather(1, token[:, None])[:, 0]
            gradients += torch.autograd.grad((predicted * counts[rows]).sum(), point)
    return torch.cat(gradients).view_as(hidden)


def _counted(text: Text) -> list[int]:
    """For each position, whether what is predicted *there* counts."""
    return [1] * len(text.tokens) if text.learnt is None else [*text.learnt[1:], 0]
