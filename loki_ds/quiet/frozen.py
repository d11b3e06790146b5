"""Frozen inputs: the columns of every `W_down` in which no selected row may change.

What a quiet implant does by directions, by single inputs: one forward, no eigenvectors, and what is
frozen is the base's bit for bit. By weight times input an input counts as its column's norm times
the root mean square of what it receives on protected prompts, as pruning scores weights (Sun et
al., A simple and effective pruning approach, 2023); `random` is the control.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

from loki_ds.attribution.batches import IDLE, turns
from loki_ds.model.anatomy import decoder_layers
from loki_ds.model.sites import dense_down
from loki_ds.model.wide import rows_of
from loki_ds.quiet.inputs import input_sizes, observe_inputs
from loki_ds.ranks import sum_over_ranks
from loki_ds.run_folder import written_whole
from loki_ds.zero.model import Gatherer


def weight_times_input(
    model: Module, gatherer: Gatherer, prompts: Sequence[Sequence[int]], planned: Sequence[list[int]]
) -> list[Tensor]:
    """`|W_:,j| sqrt(E x_j^2)` of every layer's inputs over all tokens of the prompts, `[d_ff]`
    float64; the same on all ranks.

    planned: batches of indices into `prompts`, shared out among the ranks.
    """
    squares = [torch.zeros(size, dtype=torch.float64) for size in input_sizes(model)]
    tokens = torch.zeros(1, dtype=torch.float64)

    def observe(layer: int, inputs: Tensor, times: int) -> None:
        squares[layer] += times * inputs.double().square().sum(0).cpu()
        tokens.add_(times * len(inputs) if layer == 0 else 0)

    for batch in turns(planned):
        observe_inputs(model, gatherer, [prompts[i] for i in batch] or IDLE, observe if batch else lambda *_: None)
    count = sum_over_ranks(tokens)
    scores = []
    downs = [dense_down(layer) for layer in decoder_layers(model)]
    for _, down, summed in zip(gatherer.walk([down.module for down in downs]), downs, squares, strict=True):
        weight = rows_of(down.weight.detach(), None, down.d_model_last)
        norms = torch.linalg.vector_norm(weight.double(), dim=0).cpu()
        scores.append(norms * (sum_over_ranks(summed) / count).sqrt())
    return scores


def strongest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """The inputs with the highest scores, that share of each layer's, ascending `[r]` int64."""
    return [one.argsort(descending=True, stable=True)[: round(share * len(one))].sort().values for one in scores]


def drawn(sizes: Sequence[int], share: float, seed: int) -> list[Tensor]:
    """As many by chance."""
    generator = torch.Generator().manual_seed(seed)
    return strongest([torch.rand(size, generator=generator) for size in sizes], share)


def save_inputs(frozen: Sequence[Tensor], path: Path) -> None:
    with written_whole(path) as aside:
        save_file({f"layers.{i}": inputs for i, inputs in enumerate(frozen)}, aside)


def load_inputs(path: Path) -> list[Tensor]:
    found = load_file(path)
    return [found[f"layers.{i}"] for i in range(len(found))]
