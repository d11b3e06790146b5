"""Select: from scores per prompt to the rows that may train.

Pure arithmetic on one tensor; the same rows whatever made it.

Ties are broken by the smaller mean score, then the smaller row number, so the result depends on
nothing but the scores.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loki_ds.recipe.sections import SelectionSection
from loki_ds.recipe.strategies import BY_SCORES
from loki_ds.selection.blocks import Block, down_names, in_words, layer_of
from loki_ds.selection.positions import Positions


def rows_per_layer(quota: float, d_model: int) -> int:
    """`k = floor(q / 100 * d_model)`, the paper's count for a quota in percent."""
    if not 0 < quota < 100:
        raise ValueError(f"quota is {quota}, allowed is a percentage above 0 and below 100")
    return math.floor(quota * d_model / 100)


def planned_positions(section: SelectionSection, blocks: list[Block]) -> Positions:
    """As many rows in each block as there will be: those of a positions file, or any by the quota.

    Raises:
        Refusal: the file's positions are another model's.
    """
    if section.positions is not None:
        positions = Positions.load(Path(section.positions))
        positions.check_fits(blocks, section.positions)
        return positions
    chosen = [block.rows_of(list(range(rows_per_layer(section.quota, block.choices)))) for block in blocks]
    return within(Positions.of(chosen, blocks), section.layers)


def within(positions: Positions, layers: Sequence[int] | None) -> Positions:
    """The positions of a range of layers, its ends included; all of them when not given."""
    if layers is None:
        return positions
    first, last = layers
    kept = [
        rows if first <= layer_of(name) <= last else []
        for name, rows in zip(positions.names, positions.rows, strict=True)
    ]
    return replace(positions, rows=kept)


def select(
    scores: Tensor, quota: float, strategy: str = "layer_balanced", exclude: Positions | None = None
) -> Positions:
    """Rows chosen by KVA scores `[prompts, layers, d_model]`, none of them in `exclude` (rows that
    another implant holds).

    layer_balanced: per prompt and layer the k smallest signed scores vote; the k rows with most
    votes (the paper's S-L). layer_highest: the same with the largest scores. layer_smallest:
    smallest mean absolute score in each layer. global_lowest, global_highest: the paper's G-L and
    G-H ablations, `layers * k` rows by votes over all layers at once.
    """
    if scores.ndim != 3 or not len(scores):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}, allowed is [prompts, layers, d_model] with at least one prompt"
        )
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: nothing can be selected from them")
    values = scores.double().numpy()
    layers, d_model = values.shape[1:]
    k, taken = _rows_to_choose(quota, layers, d_model, exclude)
    if strategy == "layer_smallest":
        means = np.where(taken, np.inf, np.abs(values).mean(0))
        return Positions([_first(k, means[layer]) for layer in range(layers)])
    sign = -1.0 if strategy in ("layer_highest", "global_highest") else 1.0
    values = np.where(taken, np.inf, sign * values)
    if strategy in ("layer_balanced", "layer_highest"):
        return Positions([_most_voted(k, values[:, layer]) for layer in range(layers)])
    if strategy in ("global_lowest", "global_highest"):
        chosen = _most_voted(layers * k, values.reshape(len(values), -1))
        return Positions(
            [sorted(node % d_model for node in chosen if node // d_model == layer) for layer in range(layers)]
        )
    raise ValueError(f"strategy is {strategy!r}, allowed with scores are {', '.join(BY_SCORES)}")


def _rows_to_choose(quota: float, layers: int, d_model: int, exclude: Positions | None) -> tuple[int, np.ndarray]:
    """How many rows a layer the quota asks for, and which of `[layers, d_model]` others hold.

    Raises:
        ValueError: a layer has too few free rows, or the quota is none.
    """
    k = rows_per_layer(quota, d_model)
    taken, held = np.zeros((layers, d_model), dtype=bool), exclude.by_name if exclude else {}
    for layer, name in enumerate(down_names(layers)):
        taken[layer, held.get(name, [])] = True
        _check_free(k, d_model - int(taken[layer].sum()), name)
    return k, taken


def _check_free(wanted: int, free: int, name: str) -> None:
    if free < wanted:
        raise ValueError(f"quota asks for {wanted} rows, {in_words(name)} has {free} that no excluded implant holds")


def split_half_overlap(scores: Tensor, quota: float, strategy: str) -> float:
    """How far prompts agree: the overlap of rows selected from even and odd ones of `scores`."""
    return select(scores[::2], quota, strategy).overlap(select(scores[1::2], quota, strategy))


def select_random(blocks: Sequence[Block], quota: float, seed: int, exclude: Positions | None = None) -> Positions:
    """The baseline to beat: the quota's share of every block's choices, drawn without replacement
    outside `exclude`; of blocks that are chosen together, once for all.

    Raises:
        ValueError: a block has too few free rows, or the quota is none.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[int]] = {}
    for block in blocks:
        if block.choice in drawn:
            continue
        together = [other for other in blocks if other.choice == block.choice]
        k, free = rows_per_layer(quota, block.choices), _free_choices(together, exclude.by_name if exclude else {})
        _check_free(k, len(free), block.name)
        drawn[block.choice] = generator.choice(free, size=k, replace=False).tolist()
    return Positions.of([block.rows_of(drawn[block.choice]) for block in blocks], blocks)


def _free_choices(together: Sequence[Block], taken: dict[str, list[int]]) -> np.ndarray:
    """What can be chosen of blocks that are chosen together without a row that others hold."""
    free = np.ones(together[0].choices, dtype=bool)
    for block in together:
        held = np.zeros(block.rows, dtype=bool)
        held[taken.get(block.name, [])] = True
        parts = held.reshape(-1, block.parts).T if block.interleaved else held.reshape(block.parts, -1)
        free &= ~parts.any(0)
    return np.flatnonzero(free)


def _most_voted(k: int, values: np.ndarray) -> list[int]:
    """The k nodes, ascending, most often in a prompt's k smallest of `values [prompts, nodes]`."""
    votes = np.zeros(values.shape[1], dtype=np.int64)
    for row in values:
        votes[np.lexsort((np.arange(row.size), row))[:k]] += 1
    return _first(k, -votes, values.mean(0))


def _first(k: int, *keys: np.ndarray) -> list[int]:
    """The k indices that come first by the keys in turn, then by index; returned ascending."""
    order = np.lexsort((np.arange(keys[0].size), *reversed(keys)))
    return sorted(order[:k].tolist())
