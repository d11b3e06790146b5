"""`rows` and `lora` mode: the weights stay frozen, and a delta on selected rows trains, from zero.

A layer computes `y = x (W + D on rows S)^T` (the paper's LoKI Linear). `lora` is the paper's LoKI*:
`D = alpha/r A B`. Of a linear layer, the rows are put inside the weight for one product
forward and one back, and the gradient is `grad_y[..., S]^T x` for the selected rows only; two
products and an addition measured slower (eval/reports/training_step.md). Experts, and whatever else
computes by its weight in its own way, compute as they do, by a weight that has the rows inside.

Knows nothing of training, ranks or files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Linear, Module

from loki_ds.model.expert_rows import with_rows
from loki_ds.model.row_blocks import named_blocks
from loki_ds.model.row_weights import RowWeight
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.positions import Positions


class Start(NamedTuple):
    """How a delta begins: of which dtype and where, whole (`low_rank` None) or as two factors."""

    dtype: torch.dtype
    device: torch.device
    low_rank: LowRankSection | None
    seed: int


class RowDelta:
    """A trainable delta on selected rows of a module's frozen weight.

    Either `delta` `[k, in]`, or `delta_a` `[k, r]` and `delta_b` `[r, in]` train; of experts, one
    for each, `[E, ...]`. They are parameters of that very module, not of a child, because ZeRO-3
    gathers a module's own parameters for its forward and backward. Where a module has several, the
    later ones' names begin with the weight's.
    """

    def __init__(self, module: Module, attribute: str, shape: Sequence[int], rows: list[int], start: Start) -> None:
        """Begin at a delta of zero.

        shape: of one weight `[rows, in]`, or of all experts' `[E, rows, in]`.
        """
        dtype, device, low_rank, seed = start
        self.module, self.scaling, experts, d_in = module, 1.0, shape[:-2], shape[-1]
        self.prefix = f"{attribute}_" if "rows" in module._buffers else ""
        module.register_buffer(f"{self.prefix}rows", torch.tensor(rows, device=device), persistent=False)
        if low_rank is None:
            self._register("delta", torch.zeros(*experts, len(rows), d_in, dtype=dtype, device=device))
            return
        self.scaling = low_rank.alpha / low_rank.rank
        self._register("delta_a", torch.zeros(*experts, len(rows), low_rank.rank, dtype=dtype, device=device))
        right = torch.empty(*experts, low_rank.rank, d_in, dtype=torch.float32)
        bound = 1 / d_in**0.5  # kaiming_uniform with a = sqrt(5), as PEFT starts LoRA
        generator = torch.Generator().manual_seed(seed)
        if low_rank.init == "kaiming":
            right.uniform_(-bound, bound, generator=generator)
        else:
            right.normal_(0, 1 / low_rank.rank, generator=generator)
        self._register("delta_b", right.to(device, dtype))

    def _register(self, name: str, values: Tensor) -> None:
        self.module.register_parameter(self.prefix + name, nn.Parameter(values))

    @property
    def rows(self) -> Tensor:
        """Row numbers `[k]`."""
        return getattr(self.module, f"{self.prefix}rows")

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The two that train in `lora` mode."""
        if not hasattr(self.module, f"{self.prefix}delta_a"):
            return None
        return getattr(self.module, f"{self.prefix}delta_a"), getattr(self.module, f"{self.prefix}delta_b")

    def whole(self) -> Tensor:
        """`D [k, in]`, of experts `[E, k, in]`."""
        if self.factors is None:
            return getattr(self.module, f"{self.prefix}delta")
        a, b = self.factors
        return self.scaling * a @ b


def delta_on(weight: RowWeight) -> RowDelta | None:
    """The delta that trains on a weight, if one does."""
    return getattr(weight.module, "row_deltas", {}).get(weight.attribute)


class RowLinear(Linear):
    """A linear layer whose weight is frozen and whose selected rows carry a delta."""

    def __init__(self, base: Linear, rows: list[int], start: Start) -> None:
        Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.row_deltas = {"weight": RowDelta(self, "weight", (base.out_features, base.in_features), rows, start)}

    def forward(self, x: Tensor) -> Tensor:
        delta = self.row_deltas["weight"]
        out = rows_product(x, self.weight, delta.whole(), delta.rows)
        return out if self.bias is None else out + self.bias


class RowsInside(Module):
    """Before the class of a module whose own forward reads weights: while it runs, it reads those
    with the rows inside.

    The row-bearing weights are made anew in each forward, and kept for the backward.

    rows_last: by the name of each weight that has a delta.
    """

    row_deltas: dict[str, RowDelta]
    rows_last: dict[str, bool]

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Any:
        for attribute, delta in self.row_deltas.items():
            weight: Any = self._parameters[attribute]
            inside = _WithRows.apply(x, weight, delta.whole(), delta.rows, self.rows_last[attribute])
            object.__setattr__(self, attribute, inside)  # beside the parameter, which stays registered
        try:
            return super().forward(x, *arguments, **named)
        finally:
            for attribute in self.row_deltas:
                object.__delattr__(self, attribute)


class _WithRows(torch.autograd.Function):
    """The row-bearing weight; its gradient at the rows is the delta's.

    It counts as made of the module's input `x`, though it is not: ZeRO-3 releases the module's
    parameters once the input's gradient is there, and the delta's must have come before.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, delta: Tensor, rows: Tensor, rows_last: bool) -> Tensor:
        ctx.rows, ctx.rows_last, ctx.dtype = rows, rows_last, delta.dtype
        return with_rows(weight, rows, delta, rows_last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None, None]:
        lying = gradients[0].transpose(-1, -2) if ctx.rows_last else gradients[0]
        return None, None, lying.index_select(-2, ctx.rows).to(ctx.dtype), None, None


def _with_rows_inside(own: type[Any]) -> type[Any]:
    return type(own.__name__, (RowsInside, own), {})


def train_row_deltas(
    model: Module,
    positions: Positions,
    dtype: torch.dtype,
    device: torch.device,
    low_rank: LowRankSection | None,
    seed: int,
) -> None:
    """Freeze the model and give every weight with selected rows its delta.

    Call before DeepSpeed sees the model.

    dtype, device: of the deltas; low_rank: None for `rows` mode.
    """
    model.requires_grad_(False)
    blocks = named_blocks(model, positions.blocks)
    for i, (row_block, rows) in enumerate(zip(blocks, positions.rows, strict=True)):
        for held in row_block.weights if rows else ():
            _give_delta(held, rows, Start(dtype, device, low_rank, seed + i))


def _give_delta(held: RowWeight, rows: list[int], start: Start) -> None:
    """In the module's place, or in it, the delta trains."""
    if held.is_plain:
        holder, name = held.holder
        setattr(holder, name, RowLinear(held.module, rows, start))
        return
    inside, shape = held.module, list(held.shape)
    if not isinstance(inside, RowsInside):
        inside.__class__ = _with_rows_inside(type(inside))
        inside.row_deltas, inside.rows_last = {}, {}
    if held.rows_last:
        shape[-2:] = shape[:-3:-1]
    inside.row_deltas[held.attribute] = RowDelta(inside, held.attribute, shape, rows, start)
    inside.rows_last[held.attribute] = held.rows_last


def rows_product(x: Tensor, weight: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
    """`x (W + D on rows)^T`: one product forward and one back, no gradient for `W`, and the
    row-bearing weight never kept.

    What the delta's gradient needs is noted before the product is made. So activation
    checkpointing, which computes a layer again only up to the last thing that was kept, leaves this
    product out of it (a quarter of a layer's second forward pass).
    """
    return _RowsInside.apply(x, weight, delta, rows, _AtRows.apply(x, delta))


class _AtRows(torch.autograd.Function):
    """Stands for `x D^T [..., k]`, never read: takes the gradient at rows, gives the delta's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dtype = delta.dtype
        return x.new_zeros(()).expand(*x.shape[:-1], len(delta))  # no memory

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        at_rows = gradients[0].flatten(0, -2)
        return None, (at_rows.T @ x.flatten(0, -2).to(at_rows.dtype)).to(ctx.dtype)


class _RowsInside(torch.autograd.Function):
    """The product itself; the gradient at the rows goes to `_AtRows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, delta: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        # Not among the saved tensors: checkpointing counts those.
        ctx.weight, ctx.delta, ctx.rows = weight, delta.detach(), rows
        return nn.functional.linear(x, with_rows(weight, rows, delta))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, Tensor]:
        (gradient,) = gradients
        below = None
        if ctx.needs_input_grad[0]:
            below = gradient @ with_rows(ctx.weight, ctx.rows, ctx.delta).to(gradient.dtype)
        return below, None, None, None, gradient.index_select(-1, ctx.rows)
