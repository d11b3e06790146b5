"""Weights that hold rows, as a loaded model has them."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Linear, Module
from transformers.pytorch_utils import Conv1D

from loki_ds.distributed.zero.sharding import full_shape
from loki_ds.model.expert_rows import row_count_of, width_of
from loki_ds.selection.blocks import Block


class RowWeight(NamedTuple):
    """One weight that holds rows: the attribute of a module, `[rows, in]` or of experts
    `[E, rows, in]`, or with its rows last.

    holder: the module that has this one as a child, and under which name.
    """

    module: Any
    attribute: str
    rows_last: bool
    holder: tuple[Module, str]

    @classmethod
    def of_linear(cls, module: Module, holder: tuple[Module, str]) -> "RowWeight":
        """A linear layer's, GPT-2's kind too."""
        return cls(module, "weight", isinstance(module, Conv1D), holder)

    @property
    def weight(self) -> Tensor:
        return getattr(self.module, self.attribute)

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole weight's shape, also where ZeRO-3 holds it in parts."""
        return tuple(full_shape(self.module._parameters[self.attribute]))

    @property
    def is_plain(self) -> bool:
        """Whether a linear layer alone computes by it."""
        return isinstance(self.module, Linear)

    @property
    def of_experts(self) -> bool:
        return len(self.shape) == 3

    @property
    def rows(self) -> int:
        return row_count_of(self.shape, self.rows_last)

    @property
    def width(self) -> int:
        """Numbers in a row, of experts those of all of them side by side."""
        return width_of(self.shape, self.rows_last)


class RowBlock(NamedTuple):
    """Weights whose rows lie side by side, under one number; routed experts come first."""

    block: Block
    weights: list[RowWeight]

    def split(self, rows: Tensor) -> list[tuple[RowWeight, Tensor]]:
        """Rows `[k, width]` shared out among the weights."""
        return list(zip(self.weights, rows.split([weight.width for weight in self.weights], dim=1), strict=True))
