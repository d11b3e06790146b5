"""What every `W_down` receives on prompts: their tokens taken up the layers, one gather each."""

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.token_pass import embed
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.model.anatomy import check_attention, decoder_layers
from loki_ds.model.ffn import dense_down, received


def input_sizes(model: Module) -> list[int]:
    """`d_ff` of every layer."""
    return [dense_down(layer).width for layer in decoder_layers(model)]


@torch.no_grad()
def observe_inputs(
    model: Module,
    gatherer: Gatherer,
    prompts: Sequence[Sequence[int]],
    observe: Callable[[int, Tensor, int], None],
) -> None:
    """Show what every `W_down` receives on a batch of prompts.

    observe: called with the layer's number, inputs `[tokens, d_ff]` (no padding among them) and how
    many prompts they stand for.
    """
    check_attention(model)
    layers = decoder_layers(model)
    tokens, calls = embed(model, layers, gatherer, prompts)
    with closing(gatherer.walk(layers)) as walk:
        for i, (layer, call) in enumerate(zip(walk, calls, strict=True)):
            with received(layer) as seen:
                tokens.go_up(layer, call)
                tokens.last = call.rows(layer, tokens.last)
            call.forget()
            observe(i, seen[-1].flatten(0, 1), 1)
            if tokens.rest.shape[1]:
                observe(i, call.real(seen[1 if tokens.shared.shape[1] else 0 : -1]), 1)
            if tokens.shared.shape[1]:
                observe(i, seen[0][0], len(prompts))
