"""Put an implant into a loaded model, or take it out again."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.export.implant_file import Implant
from loki_ds.model.expert_rows import put_rows, rows_of
from loki_ds.model.row_blocks import blocks_of, named_blocks
from loki_ds.model.row_weights import RowWeight
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import in_words


def apply_implant(model: Module, path: str | Path) -> None:
    """Write the implanted rows into the model's weights, in place.

    The model may be loaded in another dtype than the implant's; then the rows are rounded to it.

    Raises:
        Refusal: the model is not the base the implant was made from, or is sharded. Nothing is
            written then.
    """
    _write(model, path, "base", "implanted")


def revert_implant(model: Module, path: str | Path) -> None:
    """Write the base's rows back, in place.

    Raises as `apply_implant` does, for a model without this implant.
    """
    _write(model, path, "implanted", "base")


@torch.no_grad()
def _write(model: Module, path: str | Path, before: str, wanted: str) -> None:
    implant = Implant.load(path)
    blocks = named_blocks(model, implant.blocks)
    if is_sharded(model):
        raise Refusal(
            f"{path}: an implant goes into a whole model, this one is sharded by ZeRO-3; apply it to the checkpoint "
            "instead"
        )
    implant.positions.check_fits(blocks_of(blocks), str(path))
    for i, rows in implant.layers.items():
        name, width = in_words(blocks[i].block.name), blocks[i].block.width
        if rows.base.shape[1] != width:
            raise Refusal(f"{path}: {name}'s rows are of {rows.base.shape[1]} numbers, the model's of {width}")
        if not all(_holds(weight, rows.rows, values) for weight, values in blocks[i].split(getattr(rows, before))):
            raise Refusal(
                f"{path}: {name} of the model does not hold the rows the implant expects ({before}); is it another "
                "model?"
            )
    for i, rows in implant.layers.items():
        for weight, values in blocks[i].split(getattr(rows, wanted)):
            put_rows(weight.weight, rows.rows.to(weight.weight.device), values, weight.rows_last)


def _holds(weight: RowWeight, rows: Tensor, values: Tensor) -> bool:
    """Whether a weight's rows are these values, in its dtype."""
    there = rows_of(weight.weight, rows.to(weight.weight.device), weight.rows_last)
    return torch.equal(there, values.to(there))
