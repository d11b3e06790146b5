"""Put an implant into a loaded model, or take it out again."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.distributed.zero.model import is_sharded
from loki_ds.export.implant_file import Implant
from loki_ds.model.anatomy import down_shapes, sites
from loki_ds.model.expert_rows import put_rows, rows_of
from loki_ds.model.ffn import Down
from loki_ds.refusal import Refusal


def apply_implant(model: Module, path: str | Path) -> None:
    """Write the implanted rows into the model's `W_down`, in place.

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
    implant, found_sites = Implant.load(path), sites(model)
    if is_sharded(model):
        raise Refusal(
            f"{path}: an implant goes into a whole model, this one is sharded by ZeRO-3; apply it to the checkpoint "
            "instead"
        )
    implant.positions.check_fits(down_shapes(model), str(path))
    for layer, rows in implant.layers.items():
        if rows.base.shape[1] != found_sites[layer].width:
            raise Refusal(
                f"{path}: layer {layer}'s rows are of {rows.base.shape[1]} numbers, the model's of "
                f"{found_sites[layer].width}"
            )
        if not all(_holds(down, rows.rows, values) for down, values in found_sites[layer].split(getattr(rows, before))):
            raise Refusal(
                f"{path}: layer {layer} of the model does not hold the rows the implant expects ({before}); is it "
                "another model?"
            )
    for layer, rows in implant.layers.items():
        for down, values in found_sites[layer].split(getattr(rows, wanted)):
            put_rows(down.weight, rows.rows.to(down.weight.device), values, down.d_model_last)


def _holds(down: Down, rows: Tensor, values: Tensor) -> bool:
    """Whether a weight's rows are these values, in its dtype."""
    own = rows_of(down.weight, rows.to(down.weight.device), down.d_model_last)
    return torch.equal(own, values.to(own))
