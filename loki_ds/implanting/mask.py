"""`mask` mode: the whole `W_down` (of a mixture, every expert's) is a parameter, its gradient is
zero outside the positions, and frozen rows stay bit for bit.

A gradient hook alone does not freeze a row: decoupled weight decay shrinks it, and a stateful
optimizer may move it. So whatever the optimizer did to frozen rows is undone after each of its
steps, on its own shards. A quiet implant projects what it did to the selected rows, likewise.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.model.anatomy import decoder_layers, sites
from loki_ds.model.sites import Down, dense_down
from loki_ds.model.wide import d_model_of
from loki_ds.positions import Positions
from loki_ds.quiet.subspace import project_out
from loki_ds.zero.model import Gatherer, full_shape
from loki_ds.zero.optimizer import Shard, SpreadElements, after_each_step


def train_only_rows(model: Module, positions: Positions) -> dict[Tensor, Tensor]:
    """Make the selected rows the only thing that gets a gradient.

    Call before DeepSpeed sees the model.

    Returns:
        Per weight with selected rows, the mask of its frozen elements: bool, of its whole shape, on
        the CPU.
    """
    model.requires_grad_(False)
    frozen = {}
    for site, rows in zip(sites(model), positions.rows, strict=True):
        for down in site.downs if rows else ():
            trained = _trained(down, rows)
            down.weight.requires_grad_(True)
            down.weight.register_hook(_only(trained))
            frozen[down.weight] = ~trained.expand(down.shape)
    return frozen


def _trained(down: Down, rows: list[int]) -> Tensor:
    """Which elements of a weight train, `[d_model, 1]` or as it lies: bool, to be broadcast."""
    trained = torch.zeros(d_model_of(down.shape, down.d_model_last), dtype=torch.bool)
    trained[rows] = True
    return trained if down.d_model_last else trained[:, None]


def _only(trained: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * trained.to(gradient.device)


class KeepFrozenRows(TrainerCallback):
    """Hands the frozen elements, and what a quiet implant keeps out of, to the optimizer's shards
    as soon as the engine exists.
    """

    def __init__(self, frozen: dict[Tensor, Tensor], quiet: dict[Tensor, "QuietRows"]) -> None:
        self.frozen, self.quiet = frozen, quiet

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        keep_through_steps(kwargs["optimizer"], self.frozen)
        if self.quiet:
            project_through_steps(kwargs["optimizer"], self.quiet)


def keep_through_steps(optimizer: Any, frozen: Mapping[Tensor, Tensor]) -> None:
    """Put back, bit for bit, what the optimizer may not change, after each of its steps.

    frozen: per trainable parameter, a boolean mask of its elements (full shape, CPU): True stays as
    it is now.
    """
    kept = [_Kept(parameter, mask) for parameter, mask in frozen.items()]

    def put_back() -> None:
        for elements in kept:
            elements.put_back()

    after_each_step(optimizer, put_back)


class _Kept:
    """The frozen elements in this rank's shard of one parameter, with their values."""

    def __init__(self, parameter: Tensor, mask: Tensor) -> None:
        self.shard = Shard(parameter)
        elements = self.shard.read()
        self.where = self.shard.mine(mask, padding=True).to(elements.device)
        self.values = elements[self.where].clone()

    def put_back(self) -> None:
        elements = self.shard.read()
        elements[self.where] = self.values
        self.shard.write(elements)


class QuietRows:
    """Takes out of one layer's trained rows `[k, d_ff]` whatever they moved within the span of
    `basis [d_ff, r]`.
    """

    def __init__(self, rows: list[int], base: Tensor, basis: Tensor) -> None:
        self.rows, self.base, self.basis = rows, base, basis

    def __call__(self, trained: Tensor) -> Tensor:
        base, basis = self.base.to(trained), self.basis.to(trained.device)
        if not basis.is_floating_point():
            return trained.index_copy(1, basis, base[:, basis])  # bit for bit, of -0.0 too
        return base + project_out(trained - base, basis)


def project_through_steps(optimizer: Any, quiet: Mapping[Tensor, QuietRows]) -> None:
    """After each step of the optimizer, project the trained rows, put together from all ranks'
    shards.
    """
    projected = [(_spread_rows(parameter, one.rows), one) for parameter, one in quiet.items()]

    def project() -> None:
        for rows, one in projected:
            rows.write(one(rows.read()))

    after_each_step(optimizer, project)


def _spread_rows(parameter: Tensor, rows: list[int]) -> SpreadElements:
    n, m = full_shape(parameter)
    place = torch.full((n, m), -1, dtype=torch.int64)
    place[rows] = torch.arange(len(rows) * m).view(len(rows), m)
    return SpreadElements(parameter, place, (len(rows), m))


def quiet_rows(model: Module, positions: Positions, bases: list[Tensor]) -> dict[Tensor, QuietRows]:
    """Per dense `W_down` with selected rows, its projection; the base's rows are read now, before
    anything trains.
    """
    found, gatherer = {}, Gatherer()
    for layer, rows, basis in zip(decoder_layers(model), positions.rows, bases, strict=True):
        if rows:
            down = dense_down(layer)
            with gatherer.whole(down.module):
                found[down.weight] = QuietRows(rows, down.weight.detach()[rows].float().cpu(), basis)
    return found
