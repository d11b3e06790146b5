"""KVA by its definition (paper eq. 5): the whole model once per prompt, layer and step.

Short and slow; the sweep is held to it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.rules import quadrature
from loki_ds.attribution.target import target_value
from loki_ds.model.anatomy import decoder_layers, down_projection


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
    fractions and weights (`rules.quadrature`).
    """
    with torch.no_grad(), down_projection_output(layer) as seen:
        token = model(input_ids=ids).logits[0, -1].argmax()
    value = seen[0]
    total = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
    for alpha, weight in zip(*points, strict=True):
        point = (alpha * value).requires_grad_()
        with down_projection_output(layer, point):
            logits = model(input_ids=ids).logits[0, -1]
        (gradient,) = torch.autograd.grad(target_value(logits, token, target), point)
        total += weight * gradient
    return total * value if multiply_by_value else total


@contextmanager
def down_projection_output(layer: Module, replacement: Tensor | None = None) -> Iterator[list[Tensor]]:
    """See, or replace, the last token's `down_proj` output `[d_model]` while open."""
    seen: list[Tensor] = []

    def at_last_token(_: Module, __: Any, output: Tensor) -> Tensor:
        seen.append(output[0, -1].detach().clone())
        if replacement is None:
            return output
        return torch.cat([output[:, :-1], replacement.view(1, 1, -1)], dim=1)

    handle = down_projection(layer).register_forward_hook(at_last_token)
    try:
        yield seen
    finally:
        handle.remove()
