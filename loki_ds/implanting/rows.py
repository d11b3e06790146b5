"""`rows` and `lora` mode: the weights stay frozen, and a delta on selected rows trains, from zero.

A layer computes `y = x (W + D on rows S)^T` (the paper's LoKI Linear). `lora` is the paper's LoKI*:
`D = alpha/r A B`. Of a dense FFN's linear layer, the rows are put inside the weight for one product
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

from loki_ds.model.anatomy import sites
from loki_ds.model.expert_rows import with_rows
from loki_ds.model.ffn import Down
from loki_ds.recipe.implant import LowRankSection
from loki_ds.selection.positions import Positions


class Start(NamedTuple):
    """How a delta begins: of which dtype and where, whole (`low_rank` None) or as two factors."""

    dtype: torch.dtype
    device: torch.device
    low_rank: LowRankSection | None
    seed: int


class RowDelta(Module):
    """What a module with a frozen weight has besides: a trainable delta on selected rows of it.

    Either `delta` `[k, d_ff]`, or `delta_a` `[k, r]` and `delta_b` `[r, d_ff]` train; of experts,
    one for each, `[E, ...]`. They are parameters of this very module, not of a child, because
    ZeRO-3 gathers a module's own parameters for its forward and backward.
    """

    rows: Tensor
    delta: nn.Parameter
    delta_a: nn.Parameter
    delta_b: nn.Parameter

    def start_delta(self, shape: Sequence[int], rows: list[int], start: Start) -> None:
        """Begin at a delta of zero.

        shape: of one weight `[d_model, d_ff]`, or of all experts' `[E, d_model, d_ff]`.
        """
        dtype, device, low_rank, seed = start
        self.register_buffer("rows", torch.tensor(rows, device=device), persistent=False)
        self.scaling, experts, d_ff = 1.0, shape[:-2], shape[-1]
        if low_rank is None:
            self.delta = nn.Parameter(torch.zeros(*experts, len(rows), d_ff, dtype=dtype, device=device))
            return
        self.scaling = low_rank.alpha / low_rank.rank
        self.delta_a = nn.Parameter(torch.zeros(*experts, len(rows), low_rank.rank, dtype=dtype, device=device))
        right = torch.empty(*experts, low_rank.rank, d_ff, dtype=torch.float32)
        bound = 1 / d_ff**0.5  # kaiming_uniform with a = sqrt(5), as PEFT starts LoRA
        generator = torch.Generator().manual_seed(seed)
        if low_rank.init == "kaiming":
            right.uniform_(-bound, bound, generator=generator)
        else:
            right.normal_(0, 1 / low_rank.rank, generator=generator)
        self.delta_b = nn.Parameter(right.to(device, dtype))

    def whole_delta(self) -> Tensor:
        """`D [k, d_ff]`, of experts `[E, k, d_ff]`."""
        return self.scaling * self.delta_a @ self.delta_b if hasattr(self, "delta_a") else self.delta


class RowLinear(Linear, RowDelta):
    """A linear down-projection whose weight is frozen and whose selected rows carry a delta."""

    def __init__(self, base: Linear, rows: list[int], start: Start) -> None:
        Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.start_delta((base.out_features, base.in_features), rows, start)

    def forward(self, x: Tensor) -> Tensor:
        out = rows_product(x, self.weight, self.whole_delta(), self.rows)
        return out if self.bias is None else out + self.bias


class RowsInside(RowDelta):
    """Before the class of a module whose own forward reads a weight: while it runs, it reads the
    one with the rows inside.

    The row-bearing weight is made anew in each forward, and kept for the backward.
    """

    attribute: str
    d_model_last: bool

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Any:
        weight: Any = self._parameters[self.attribute]
        inside = _WithRows.apply(x, weight, self.whole_delta(), self.rows, self.d_model_last)
        object.__setattr__(self, self.attribute, inside)  # beside the parameter, which stays registered
        try:
            return super().forward(x, *arguments, **named)
        finally:
            object.__delattr__(self, self.attribute)


class _WithRows(torch.autograd.Function):
    """The row-bearing weight; its gradient at the rows is the delta's.

    It counts as made of the module's input `x`, though it is not: ZeRO-3 releases the module's
    parameters once the input's gradient is there, and the delta's must have come before.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, delta: Tensor, rows: Tensor, d_model_last: bool) -> Tensor:
        ctx.rows, ctx.d_model_last, ctx.dtype = rows, d_model_last, delta.dtype
        return with_rows(weight, rows, delta, d_model_last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None, None]:
        lying = gradients[0].transpose(-1, -2) if ctx.d_model_last else gradients[0]
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
    for i, (site, rows) in enumerate(zip(sites(model), positions.rows, strict=True)):
        for down in site.downs if rows else ():
            _give_delta(down, rows, Start(dtype, device, low_rank, seed + i))


def _give_delta(down: Down, rows: list[int], start: Start) -> None:
    """In the module's place, or in it, the delta trains."""
    if down.is_plain:
        holder, name = down.holder
        setattr(holder, name, RowLinear(down.module, rows, start))
        return
    inside, its_class, shape = down.module, type(down.module), list(down.shape)
    inside.__class__ = _with_rows_inside(its_class)
    inside.attribute, inside.d_model_last = down.attribute, down.d_model_last
    if down.d_model_last:
        shape[-2:] = shape[:-3:-1]
    inside.start_delta(shape, rows, start)


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
