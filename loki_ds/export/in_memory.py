"""Put an implant into a loaded model, or take it out again."""

from pathlib import Path

import torch
from torch.nn import Module

from loki_ds.export.implant_file import Implant
from loki_ds.model.anatomy import down_weights
from loki_ds.refusal import Refusal
from loki_ds.zero.model import is_sharded


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
def _write(model: Module, path: str | Path, found: str, wanted: str) -> None:
    implant, weights = Implant.load(path), down_weights(model)
    if is_sharded(model):
        raise Refusal(
            f"{path}: an implant goes into a whole model, this one is sharded by ZeRO-3; apply it to the checkpoint "
            "instead"
        )
    implant.positions.check_fits([(weight.shape[0], weight.shape[1]) for weight in weights], str(path))
    for layer, rows in implant.layers.items():
        expected = getattr(rows, found).to(weights[layer])
        if not torch.equal(weights[layer][rows.rows.to(expected.device)], expected):
            raise Refusal(
                f"{path}: layer {layer} of the model does not hold the rows the implant expects ({found}); is it "
                "another model?"
            )
    for layer, rows in implant.layers.items():
        weights[layer][rows.rows.to(weights[layer].device)] = getattr(rows, wanted).to(weights[layer])
