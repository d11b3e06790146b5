"""`mask` mode: the whole `W_down` is a parameter, its gradient is zero outside the positions, and frozen rows stay bit for bit.

A gradient hook alone does not freeze a row: decoupled weight decay shrinks it, and a stateful optimizer may move it. So whatever
the optimizer did to frozen rows is undone after each of its steps, on its own shards (`zero.keep_through_steps`).
"""

import torch
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.attribution.anatomy import down_weights
from loki_ds.positions import Positions
from loki_ds.zero import full_shape, keep_through_steps


def train_only_rows(model: Module, positions: Positions) -> dict[Tensor, Tensor]:
    """Make the selected rows the only thing that gets a gradient. Call before DeepSpeed sees the model.

    Returns:
        Per `W_down` with selected rows, the mask of its frozen elements: bool `[d_model, d_ff]`, on the CPU.
    """
    model.requires_grad_(False)
    frozen = {}
    for weight, rows in zip(down_weights(model), positions.rows, strict=True):
        if rows:
            weight.requires_grad_(True)
            trained = torch.zeros(full_shape(weight)[0], 1, dtype=torch.bool)
            trained[rows] = True
            weight.register_hook(_only(trained))
            frozen[weight] = ~trained.expand(full_shape(weight))
    return frozen


def _only(trained: Tensor):  # type: ignore[no-untyped-def]
    def hook(gradient: Tensor) -> Tensor:
        return gradient * trained.to(gradient.device)

    return hook


class KeepFrozenRows(TrainerCallback):
    """Hands the frozen elements to the optimizer's guard as soon as the DeepSpeed engine exists."""

    def __init__(self, frozen: dict[Tensor, Tensor]) -> None:
        self.frozen = frozen

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:  # type: ignore[no-untyped-def]
        keep_through_steps(kwargs["optimizer"], self.frozen)
