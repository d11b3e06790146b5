"""Second moments `C = E[x x^T]` of the inputs of every `W_down`, over all tokens of the protected
prompts.

One pass of the tokens up the layers, each gathered once a batch; sums in float64, added over the
ranks, so the result is the same from any number of them (to float64 rounding). Exact where `[d_ff,
d_ff]` a layer fits the memory given; else a sketch `C Omega` of as many random directions as fit,
which is as linear in the tokens as `C` itself.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.batches import IDLE, rank_batches
from loki_ds.attribution.token_pass import embed
from loki_ds.distributed.ranks import sum_over_ranks
from loki_ds.distributed.zero.model import Gatherer
from loki_ds.model.anatomy import check_attention, decoder_layers
from loki_ds.model.ffn import dense_down, received
from loki_ds.quiet.subspace import SecondMoment, exact, nystrom
from loki_ds.refusal import Refusal

log = logging.getLogger(__name__)

NARROWEST = 32  # directions of a sketch that is worth having
SEED = 20  # of the test matrices


def sketch_width(sizes: Sequence[int], budget: int, asked: int | None) -> int | None:
    """Directions of every layer's sketch; None for exact matrices, when those fit into `budget`
    bytes on each rank and none is asked for.

    Raises:
        Refusal: not even a narrow sketch fits.
    """
    if asked is None and sum(8 * size * size for size in sizes) <= budget:
        return None
    width = min(asked or max(sizes), budget // (8 * sum(sizes)), min(sizes))
    if width < min(NARROWEST, asked or NARROWEST):
        whole, narrow, there = (
            n / 2**30 for n in (8 * sum(size * size for size in sizes), 8 * NARROWEST * sum(sizes), budget)
        )
        raise Refusal(
            f"implant.quiet: second moments of {len(sizes)} layers with d_ff {max(sizes)} take {whole:.1f} GiB on "
            f"each rank, {NARROWEST} directions of them {narrow:.2f}; {there:.2f} GiB are there"
        )
    return width


def collect_moments(
    model: Module,
    gatherer: Gatherer,
    prompts: Sequence[Sequence[int]],
    planned: Sequence[list[int]],
    width: int | None,
) -> list[SecondMoment]:
    """The second moment of every layer's inputs; all ranks get all layers.

    Args:
        planned: batches of indices into `prompts`, shared out among the ranks.
        width: directions of a sketch, or None for exact matrices (`sketch_width`).
    """
    sizes = input_sizes(model)
    tests = None if width is None else [random_directions(i, size, width) for i, size in enumerate(sizes)]
    products = [torch.zeros(size, width or size, dtype=torch.float64) for size in sizes]
    squares, tokens = torch.zeros(len(sizes), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def observe(layer: int, inputs: Tensor, times: int) -> None:
        if tests is None:
            # Products in bfloat16 would lose most of the small directions.
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            product = inputs.T @ inputs
        else:
            inputs = inputs.double()
            product = inputs.T @ (inputs @ tests[layer].to(inputs.device))
        products[layer] += times * product.double().cpu()
        squares[layer] += times * inputs.double().square().sum().cpu()
        tokens.add_(times * len(inputs) if layer == 0 else 0)

    for batch in rank_batches(planned):
        observe_inputs(model, gatherer, [prompts[i] for i in batch] or IDLE, observe if batch else lambda *_: None)
    total = sum_over_ranks(tokens)
    log.info(
        "quiet: inputs of %d tokens on %d layers, %s",
        int(total),
        len(sizes),
        f"{width} directions of each" if width else "exact",
    )
    means = [sum_over_ranks(product) / total for product in products]
    if tests is None:
        return [exact(mean) for mean in means]
    traces = (sum_over_ranks(squares) / total).tolist()
    return [nystrom(*sketched) for sketched in zip(means, tests, traces, strict=True)]


def random_directions(layer: int, size: int, width: int) -> Tensor:
    """The same random directions on every rank, orthonormal, `[d_ff, s]` float64."""
    drawn = torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED + layer))
    return torch.linalg.qr(drawn)[0]


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
                tokens.last = call.probes(layer, tokens.last)
            call.forget()
            observe(i, seen[-1].flatten(0, 1), 1)
            if tokens.rest.shape[1]:
                observe(i, call.real(seen[1 if tokens.shared.shape[1] else 0 : -1]), 1)
            if tokens.shared.shape[1]:
                observe(i, seen[0][0], len(prompts))
