"""The rows of one layer's FFN, whatever it is made of.

A dense FFN writes by one `W_down [d_model, d_ff]`. A mixture of experts writes by many, together
`sum_e g_e W_e a_e + W_s a_s`: one wide FFN whose `W_down` is `[W_1 .. W_E W_s]`, whose inputs are 0
for experts that a token is not routed to. So a node stays a row: row `j` of a layer is row `j` of
its routed and shared experts side by side, `[width]` with `width` the sum of their `d_ff`. Weights
may lie as `[d_model, d_ff]`, as experts `[E, d_model, d_ff]`, or with `d_model` last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def width_of(shape: Sequence[int], rows_last: bool) -> int:
    """Numbers in one row of a weight of this shape."""
    experts = shape[0] if len(shape) == 3 else 1
    return experts * shape[-2 if rows_last else -1]


def row_count_of(shape: Sequence[int], rows_last: bool) -> int:
    """Rows of a weight of this shape."""
    return shape[-1 if rows_last else -2]


def rows_of(weight: Tensor, rows: Tensor | None, rows_last: bool) -> Tensor:
    """Some rows of a weight, or all: `[k, d_ff]`, of experts side by side `[k, E d_ff]`."""
    lying = weight.transpose(-1, -2) if rows_last else weight
    chosen = lying if rows is None else lying.index_select(-2, rows)
    return chosen if weight.dim() == 2 else side_by_side(chosen)


def side_by_side(rows: Tensor) -> Tensor:
    """The rows of all experts `[E, k, d_ff]` as rows of one wide matrix `[k, E d_ff]`."""
    return rows.transpose(0, 1).flatten(1)


def as_in(shape: Sequence[int], rows: Tensor) -> Tensor:
    """Side-by-side rows as a weight of this shape has them: `[k, d_ff]`, experts `[E, k, d_ff]`."""
    return rows if len(shape) == 2 else rows.unflatten(1, (shape[0], -1)).transpose(0, 1)


def put_rows(weight: Tensor, rows: Tensor, values: Tensor, rows_last: bool) -> None:
    """Write rows `[k, width]` into a weight, in place."""
    lying = weight.transpose(-1, -2) if rows_last else weight
    lying.index_copy_(-2, rows, as_in(weight.shape, values).to(weight))


def with_rows(weight: Tensor, rows: Tensor, delta: Tensor, rows_last: bool = False) -> Tensor:
    """A copy of a weight with `delta` (`[k, d_ff]`, of experts `[E, k, d_ff]`) added to its rows
    `[k]`, rounded once to the weight's dtype.

    This is also what leaves a run, so the exported model computes what the trained one did.
    """
    axis, wide = -1 if rows_last else -2, torch.promote_types(weight.dtype, delta.dtype)
    change = delta.transpose(-1, -2) if rows_last else delta
    changed = weight.index_select(axis, rows).to(wide) + change.to(wide)
    return weight.index_copy(axis, rows, changed.to(weight.dtype))
