"""`rows` and `lora` mode: `W_down` stays frozen and a delta on the selected rows trains, zero at
the start.

The layer computes `y = x (W + D on rows S)^T` (the paper's LoKI Linear). The rows are put
inside the weight for one product forward and one back, and the gradient is `grad_y[..., S]^T x` for
the selected rows only; two products and an addition measured slower
(eval/reports/training_step.md). `lora` is the paper's LoKI*: `D = alpha/r A B`.

Knows nothing of training, ranks or files.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Linear, Module

from loki_ds.implant_section import LowRankSection
from loki_ds.model.anatomy import decoder_layers, down_projection, replace_down_projection
from loki_ds.positions import Positions
from loki_ds.quiet.subspace import project_out


class RowLinear(Linear):
    """A down-projection whose weight is frozen and whose selected rows carry a trainable delta.

    Either `delta` `[k, d_ff]`, or `delta_a` `[k, r]` and `delta_b` `[r, d_ff]` train. They are
    parameters of this very module, not of a child, because ZeRO-3 gathers a module's own parameters
    for its forward and backward.
    """

    rows: Tensor

    def __init__(
        self,
        base: Linear,
        rows: list[int],
        dtype: torch.dtype,
        device: torch.device,
        low_rank: LowRankSection | None,
        seed: int,
    ) -> None:
        Module.__init__(self)
        self._quiet: list[Tensor] = []  # in a list, so that no cast of the model's dtype rounds it
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        self.register_buffer("rows", torch.tensor(rows, device=device), persistent=False)
        self.scaling = 1.0
        if low_rank is None:
            self.delta = nn.Parameter(torch.zeros(len(rows), self.in_features, dtype=dtype, device=device))
            return
        self.scaling = low_rank.alpha / low_rank.rank
        self.delta_a = nn.Parameter(torch.zeros(len(rows), low_rank.rank, dtype=dtype, device=device))
        start = torch.empty(low_rank.rank, self.in_features, dtype=torch.float32)
        bound = 1 / self.in_features**0.5  # kaiming_uniform with a = sqrt(5), as PEFT starts LoRA
        generator = torch.Generator().manual_seed(seed)
        if low_rank.init == "kaiming":
            start.uniform_(-bound, bound, generator=generator)
        else:
            start.normal_(0, 1 / low_rank.rank, generator=generator)
        self.delta_b = nn.Parameter(start.to(device, dtype))

    def whole_delta(self) -> Tensor:
        """`D [k, d_ff]`, and for a quiet implant `D P`, which protected inputs do not feel."""
        delta = self.scaling * self.delta_a @ self.delta_b if hasattr(self, "delta_a") else self.delta
        return project_out(delta, self._quiet[0]) if self._quiet else delta

    def keep_quiet(self, basis: Tensor) -> None:
        """From now on keep the delta out of the span of `basis [d_ff, r]` (orthonormal, on this
        module's device).
        """
        self._quiet = [basis]

    def right_factor(self) -> Tensor:
        """`delta_b [r, d_ff]` of a low rank as it acts: projected for a quiet implant."""
        return project_out(self.delta_b, self._quiet[0]) if self._quiet else self.delta_b

    def forward(self, x: Tensor) -> Tensor:
        return rows_product(x, self.weight, self.whole_delta(), self.rows)


def train_row_deltas(
    model: Module,
    positions: Positions,
    dtype: torch.dtype,
    device: torch.device,
    low_rank: LowRankSection | None,
    seed: int,
    bases: list[Tensor] | None = None,
) -> None:
    """Freeze the model and give every layer with selected rows its `RowLinear`.

    Call before DeepSpeed sees the model.

    dtype, device: of the deltas; low_rank: None for `rows` mode; bases: per layer the basis
    `[d_ff, r]` that a quiet implant keeps out of.
    """
    model.requires_grad_(False)
    for i, (layer, rows) in enumerate(zip(decoder_layers(model), positions.rows, strict=True)):
        if rows:
            module = RowLinear(down_projection(layer), rows, dtype, device, low_rank, seed + i)
            if bases is not None:
                module.keep_quiet(bases[i].to(device))
            replace_down_projection(layer, module)


def with_rows(weight: Tensor, rows: Tensor, delta: Tensor) -> Tensor:
    """A copy of `weight [d_model, d_ff]` with `delta [k, d_ff]` added to its rows `[k]`, rounded
    once to the weight's dtype.

    This is also what leaves the run, so the exported model computes what the trained one did.
    """
    wide = torch.promote_types(weight.dtype, delta.dtype)
    return weight.index_copy(0, rows, (weight[rows].to(wide) + delta.to(wide)).to(weight.dtype))


def rows_product(x: Tensor, weight: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
    """`x (W + D on rows)^T`: one product forward and one back, no gradient for `W`, and the
    row-bearing weight never kept.

    What the delta's gradient needs is noted before the product is made. So activation
    checkpointing, which computes a layer again only up to the last thing that was kept, leaves this
    product out of it (a quarter of a layer's second forward pass).
    """
    return _RowsInside.apply(x, weight, delta, rows, _AtRows.apply(x, delta))


class _AtRows(torch.autograd.Function):
    """Stands for `x D^T [..., k]`, whose value nobody reads: it takes the gradient at the rows and
    gives the delta's.
    """

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
        ctx.weight, ctx.delta, ctx.rows = (
            weight,
            delta.detach(),
            rows,
        )  # not among the saved tensors: checkpointing counts those
        return nn.functional.linear(x, with_rows(weight, rows, delta))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, Tensor]:
        (gradient,) = gradients
        below = (
            gradient @ with_rows(ctx.weight, ctx.rows, ctx.delta).to(gradient.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        return below, None, None, None, gradient.index_select(-1, ctx.rows)
