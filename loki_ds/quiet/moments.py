"""Second moments `C = E[x x^T]` of the inputs of every `W_down`, over all tokens of the protected prompts.

One pass of the tokens up the layers, each gathered once a batch; sums in float64, added over the ranks, so the result is the same
from any number of them (to float64 rounding). Exact: `[d_ff, d_ff]` a layer, refused where that does not fit the memory given.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loki_ds.attribution.batches import IDLE, turns
from loki_ds.attribution.sweep import Sweep
from loki_ds.ranks import sum_over_ranks
from loki_ds.refusal import Refusal
from loki_ds.run_folder import written_whole

log = logging.getLogger(__name__)


def collect_moments(sweep: Sweep, prompts: Sequence[Sequence[int]], planned: Sequence[list[int]], budget: int) -> list[Tensor]:
    """`C` of every layer, `[d_ff, d_ff]` float64 on the CPU; all ranks get all layers.

    Args:
        planned: batches of indices into `prompts`, shared out among the ranks.
        budget: bytes that the matrices may take on each rank.

    Raises:
        Refusal: the matrices are larger than the budget.
    """
    sizes = sweep.input_sizes()
    needed = sum(8 * size * size for size in sizes)
    if needed > budget:
        raise Refusal(
            f"implant.quiet: second moments of {len(sizes)} layers with d_ff {max(sizes)} take {needed / 2**30:.1f} GiB on each rank, "
            f"{budget / 2**30:.1f} GiB are there"
        )
    sums = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    counts = torch.zeros(1, dtype=torch.float64)

    def observe(layer: int, inputs: Tensor, times: int) -> None:
        sums[layer] += times * (inputs.T @ inputs).double().cpu()
        counts[0] += times * len(inputs) if layer == 0 else 0

    for batch in turns(planned):
        sweep.observe_inputs([prompts[i] for i in batch] or IDLE, observe if batch else lambda *_: None)
    tokens = sum_over_ranks(counts)
    log.info("quiet: inputs of %d tokens on %d layers", int(tokens), len(sums))
    return [sum_over_ranks(total) / tokens for total in sums]


def save_moments(moments: list[Tensor], path: Path) -> None:
    with written_whole(path) as aside:
        save_file({f"layers.{i}": moment for i, moment in enumerate(moments)}, aside)


def load_moments(path: Path) -> list[Tensor]:
    tensors = load_file(path)
    return [tensors[f"layers.{i}"] for i in range(len(tensors))]
