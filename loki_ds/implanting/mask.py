"""`mask` mode: the whole weight that holds rows (of a mixture, every expert's) is a parameter, its
gradient is zero outside the positions, and frozen rows stay bit for bit.

A gradient hook alone does not freeze a row: decoupled weight decay shrinks it, and a stateful
optimizer may move it. So whatever the optimizer did to frozen rows is undone after each of its
steps, on its own shards.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.distributed.zero.optimizer import Shard, after_each_step
from loki_ds.model.row_blocks import named_blocks
from loki_ds.model.row_weights import RowWeight
from loki_ds.selection.positions import Positions


def train_only_rows(model: Module, positions: Positions) -> dict[Tensor, Tensor]:
    """Make the selected rows the only thing that gets a gradient.

    Call before DeepSpeed sees the model.

    Returns:
        Per weight with selected rows, the mask of its frozen elements: bool, whole shape, on CPU.
    """
    model.requires_grad_(False)
    frozen = {}
    for row_block, rows in zip(named_blocks(model, positions.blocks), positions.rows, strict=True):
        for held in row_block.weights if rows else ():
            trained = _trained(held, rows)
            held.weight.requires_grad_(True)
            held.weight.register_hook(_only(trained))
            frozen[held.weight] = ~trained.expand(held.shape)
    return frozen


def _trained(held: RowWeight, rows: list[int]) -> Tensor:
    """Which elements of a weight train, `[rows, 1]` or as it lies: bool, to be broadcast."""
    trained = torch.zeros(held.rows, dtype=torch.bool)
    trained[rows] = True
    return trained if held.rows_last else trained[:, None]


def _only(trained: Tensor) -> Callable[[Tensor], Tensor]:
    """A gradient's hook that leaves what trains."""

    def hook(gradient: Tensor) -> Tensor:
        nonlocal trained
        trained = trained.to(gradient.device)  # moves at the first step; a copy in each would stall the device
        return gradient * trained

    return hook


class KeepFrozenRows(TrainerCallback):
    """Hands the frozen elements to the optimizer's shards as soon as the engine exists."""

    def __init__(self, frozen: dict[Tensor, Tensor]) -> None:
        self.frozen = frozen

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        keep_through_steps(kwargs["optimizer"], self.frozen)


def keep_through_steps(optimizer: Any, frozen: Mapping[Tensor, Tensor]) -> None:
    """Put back, bit for bit, what the optimizer may not change, after each of its steps.

    frozen: per trainable parameter, a boolean mask of its elements (full shape, CPU): True stays.
    """
    kept = [_frozen(Shard(parameter), mask) for parameter, mask in frozen.items()]

    def put_back() -> None:
        for shard, where, values in kept:
            elements = shard.read()
            torch.where(where, values, elements, out=elements)
            shard.write(elements)

    after_each_step(optimizer, put_back)


def _frozen(shard: Shard, mask: Tensor) -> tuple[Shard, Tensor, Tensor]:
    """A shard, which of its elements are frozen, and the shard as it began; both where the
    optimizer keeps it.
    """
    elements = shard.read()
    return shard, shard.mine(mask, padding=True).to(elements.device), elements.clone()
