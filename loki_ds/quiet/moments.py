"""Second moments `C = E[x x^T]` of the inputs of every `W_down`, over all tokens of the protected
prompts.

One pass of the tokens up the layers, each gathered once a batch; sums in float64, added over the
ranks, so the result is the same from any number of them (to float64 rounding). Exact where `[d_ff,
d_ff]` a layer fits the memory given; else a sketch `C Omega` of as many random directions as fit,
which is as linear in the tokens as `C` itself.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loki_ds.attribution.batches import IDLE, turns
from loki_ds.attribution.sweep import Sweep
from loki_ds.quiet.subspace import SecondMoment, exact, nystrom
from loki_ds.ranks import barrier, from_all_ranks, rank, sum_over_ranks, world_size
from loki_ds.refusal import Refusal
from loki_ds.run_folder import remove, written_whole

log = logging.getLogger(__name__)

NARROWEST = 32  # directions of a sketch that is worth having
SAVES = 10  # of the sums, over one collection
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
            "each rank, "
            f"{NARROWEST} directions of them {narrow:.2f}; {there:.2f} GiB are there"
        )
    return width


@dataclass
class _Sums:
    """What one rank has seen: per layer `sum x x^T` `[d_ff, d_ff]` or its product with the test
    matrix `[d_ff, s]`, and `sum |x|^2`.
    """

    products: list[Tensor]
    squares: Tensor  # [layers]
    tokens: Tensor  # [1]

    def tensors(self) -> dict[str, Tensor]:
        return {
            **{f"layers.{i}": product for i, product in enumerate(self.products)},
            "squares": self.squares,
            "tokens": self.tokens,
        }


def collect_moments(
    sweep: Sweep,
    prompts: Sequence[Sequence[int]],
    planned: Sequence[list[int]],
    width: int | None,
    partial: Path | None = None,
) -> list[SecondMoment]:
    """The second moment of every layer's inputs; all ranks get all layers.

    Args:
        planned: batches of indices into `prompts`, shared out among the ranks.
        width: directions of a sketch, or None for exact matrices (`sketch_width`).
        partial: a folder for the sums so far, from which a killed collection on as many ranks goes
            on.
    """
    sizes = sweep.input_sizes()
    tests = None if width is None else [random_directions(i, size, width) for i, size in enumerate(sizes)]
    sums = _Sums(
        products=[torch.zeros(size, width or size, dtype=torch.float64) for size in sizes],
        squares=torch.zeros(len(sizes), dtype=torch.float64),
        tokens=torch.zeros(1, dtype=torch.float64),
    )
    done = _go_on(partial, sums)

    def observe(layer: int, inputs: Tensor, times: int) -> None:
        if tests is None:
            # Products in bfloat16 would lose most of the small directions.
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            product = inputs.T @ inputs
        else:
            inputs = inputs.double()
            product = inputs.T @ (inputs @ tests[layer].to(inputs.device))
        sums.products[layer] += times * product.double().cpu()
        sums.squares[layer] += times * inputs.double().square().sum().cpu()
        sums.tokens += times * len(inputs) if layer == 0 else 0

    count = -(-len(planned) // world_size())
    for turn, batch in enumerate(turns(planned)):
        if turn < done:
            continue
        sweep.observe_inputs([prompts[i] for i in batch] or IDLE, observe if batch else lambda *_: None)
        if partial is not None and (turn + 1) % max(1, count // SAVES) == 0:
            _save(partial, sums, turn + 1)
    tokens = sum_over_ranks(sums.tokens)
    log.info(
        "quiet: inputs of %d tokens on %d layers, %s",
        int(tokens),
        len(sizes),
        f"{width} directions of each" if width else "exact",
    )
    products = [sum_over_ranks(product) / tokens for product in sums.products]
    traces = (sum_over_ranks(sums.squares) / tokens).tolist()
    if tests is None:
        return [exact(product) for product in products]
    return [nystrom(*found) for found in zip(products, tests, traces, strict=True)]


def random_directions(layer: int, size: int, width: int) -> Tensor:
    """The same random directions on every rank, orthonormal, `[d_ff, s]` float64."""
    drawn = torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED + layer))
    return torch.linalg.qr(drawn)[0]


def _save(partial: Path, sums: _Sums, turn: int) -> None:
    """This rank's sums after a turn; the earlier ones go only when every rank has written these."""
    with written_whole(_partial_file(partial, turn)) as aside:
        save_file(sums.tensors(), aside)
    barrier()
    for file in partial.glob(f"*-rank{rank()}of{world_size()}.safetensors"):
        if file != _partial_file(partial, turn):
            remove(file)


def _go_on(partial: Path | None, sums: _Sums) -> int:
    """Read the newest sums that every rank has; returns the turns they hold, 0 at a fresh start."""
    if partial is None:
        return 0
    mine = {int(file.name.split("-")[0]) for file in partial.glob(f"*-rank{rank()}of{world_size()}.safetensors")}
    turn = max(set.intersection(*from_all_ranks(mine)), default=0)
    if turn:
        stored = load_file(_partial_file(partial, turn))
        for name, tensor in sums.tensors().items():
            tensor.copy_(stored[name])
        log.info("quiet: going on after %d turns", turn)
    return turn


def _partial_file(partial: Path, turn: int) -> Path:
    return partial / f"{turn:06d}-rank{rank()}of{world_size()}.safetensors"


def save_moments(moments: list[SecondMoment], path: Path) -> None:
    tensors = {
        f"layers.{i}.{part}": getattr(moment, part)
        for i, moment in enumerate(moments)
        for part in ("values", "vectors")
    }
    tensors["traces"] = torch.tensor([moment.trace for moment in moments], dtype=torch.float64)
    with written_whole(path) as aside:
        save_file(tensors, aside)


def load_moments(path: Path) -> list[SecondMoment]:
    found = load_file(path)
    return [
        SecondMoment(found[f"layers.{i}.values"], found[f"layers.{i}.vectors"], trace)
        for i, trace in enumerate(found["traces"].tolist())
    ]
