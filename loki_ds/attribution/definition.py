"""KVA by its definition (paper eq. 5): the whole model once per prompt, layer and step.

Short and slow; the sweep is held to it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.rules import quadrature, target_value
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.ffn import Writer, at_writers


def attribute_by_definition(
    model: Module,
    prompts: Sequence[Sequence[int]],
    *,
    steps: int = 7,
    rule: str = "right",
    target: str = "probability",
    multiply_by_value: bool = True,
) -> Tensor:
    """Same contract as `loki_ds.attribute`: `[prompts, layers, d_model]`, on the CPU."""
    layers, points = decoder_layers(model), quadrature(rule, steps)
    device = next(model.parameters()).device
    scores = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=device)
        scores += [attribute_layer(model, ids, layer, points, target, multiply_by_value) for layer in layers]
    return torch.stack(scores).view(len(prompts), len(layers), -1).cpu()


def attribute_layer(
    model: Module,
    ids: Tensor,
    layer: Module,
    points: tuple[list[float], list[float]],
    target: str,
    multiply_by_value: bool,
) -> Tensor:
    """One layer's scores `[d_model]` for one prompt, ids `[1, T]`; `points` are the path's
    fractions and weights (`rules.quadrature`). Of branches that meet later, a node's score is the
    sum of its coordinates'.
    """
    with torch.no_grad(), written_last(layer) as seen:
        token = model(input_ids=ids).logits[0, -1].argmax()
    value = torch.stack(seen)
    total = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
    for alpha, weight in zip(*points, strict=True):
        point = (alpha * value).requires_grad_()
        with written_last(layer, point):
            logits = model(input_ids=ids).logits[0, -1]
        (gradient,) = torch.autograd.grad(target_value(logits, token, target), point)
        total += weight * gradient
    return (total * value if multiply_by_value else total).sum(0)


@contextmanager
def written_last(layer: Module, replacement: Tensor | None = None) -> Iterator[list[Tensor]]:
    """See what each branch of the layer's FFN writes at the last token, `[d_model]`, or replace it
    by `[branches, d_model]`, while open.
    """
    seen: list[Tensor] = []

    def at_last_token(writer: Writer, output: Tensor) -> Tensor | None:
        last = output[0, -1].detach().clone()
        seen[writer.branch :] = [seen[writer.branch] + last if writer.adds else last]
        if replacement is None:
            return None
        there = torch.zeros_like(last) if writer.adds else replacement[writer.branch]
        return torch.cat([output[:, :-1], there.view(1, 1, -1)], dim=1)

    with at_writers(layer, at_last_token):
        yield seen
