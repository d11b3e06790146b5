"""`mask` mode: the whole `W_down` is a parameter, its gradient is zero outside the positions, and
frozen rows stay bit for bit.

A gradient hook alone does not freeze a row: decoupled weight decay shrinks it, and a stateful
optimizer may move it. So whatever the optimizer did to frozen rows is undone after each of its
steps, on its own shards (`zero.keep_through_steps`). A quiet implant projects what it did to the
selected rows, likewise after each step.
"""

import torch
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.attribution.anatomy import decoder_layers, down_projection, down_weights
from loki_ds.positions import Positions
from loki_ds.quiet.subspace import project_out
from loki_ds.zero import Gatherer, full_shape, keep_through_steps, rewrite_rows_through_steps


def train_only_rows(model: Module, positions: Positions) -> dict[Tensor, Tensor]:
    """Make the selected rows the only thing that gets a gradient.

    Call before DeepSpeed sees the model.

    Returns:
        Per `W_down` with selected rows, the mask of its frozen elements: bool `[d_model, d_ff]`, on
            the CPU.
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
    """Hands the frozen elements, and what a quiet implant keeps out of, to the optimizer's guards
    as soon as the engine exists.
    """

    def __init__(self, frozen: dict[Tensor, Tensor], quiet: dict[Tensor, "QuietRows"]) -> None:
        self.frozen, self.quiet = frozen, quiet

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:  # type: ignore[no-untyped-def]
        keep_through_steps(kwargs["optimizer"], self.frozen)
        if self.quiet:
            rewrite_rows_through_steps(
                kwargs["optimizer"], {weight: (quiet.rows, quiet) for weight, quiet in self.quiet.items()}
            )


class QuietRows:
    """Takes out of one layer's trained rows `[k, d_ff]` whatever they moved within the span of
    `basis [d_ff, r]`.
    """

    def __init__(self, rows: list[int], base: Tensor, basis: Tensor) -> None:
        self.rows, self.base, self.basis = rows, base, basis

    def __call__(self, trained: Tensor) -> Tensor:
        base, basis = self.base.to(trained), self.basis.to(trained.device)
        return base + project_out(trained - base, basis)


def quiet_rows(model: Module, positions: Positions, bases: list[Tensor]) -> dict[Tensor, QuietRows]:
    """Per `W_down` with selected rows, its projection; the base's rows are read now, before
    anything trains.
    """
    found, gatherer = {}, Gatherer()
    for layer, rows, basis in zip(decoder_layers(model), positions.rows, bases, strict=True):
        if rows:
            projection = down_projection(layer)
            with gatherer.whole(projection):
                found[projection.weight] = QuietRows(rows, projection.weight.detach()[rows].float().cpu(), basis)
    return found
