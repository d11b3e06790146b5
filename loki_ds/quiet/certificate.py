"""How much protected inputs feel of an implant, before any task is run: measured from `C`, and
bounded by the energy left outside `U`.

With `Delta` what an implant adds to a layer's rows, the mean squared change of the layer's FFN
output on protected inputs is `E |Delta x|^2 = tr(Delta C Delta^T)`. For `Delta = D P` it is at most
`|Delta|_F^2` times the largest eigenvalue left outside `U`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from loki_ds.quiet.subspace import SecondMoment, Subspace, project_out


def certify(
    weights: Mapping[int, Tensor], deltas: Mapping[int, Tensor], moments: list[SecondMoment], subspaces: list[Subspace]
) -> list[dict[str, Any]]:
    """Per layer with a delta: `change` and `bound` relative to the output's mean square `tr(W C
    W^T)`, `leak`, `room`, `rank`.

    weights `[d_model, d_ff]` and deltas `[k, d_ff]` as exported, so rounding is in the figures;
    `leak` is the share of the delta's square that lies inside the protected subspace (rounding
    only, for an implant trained quietly). Of a sketched `C`, `change` is what the sketch sees; the
    bound holds in any case.
    """
    return [_certify_layer(i, weights[i], deltas[i].double(), moments[i], subspaces[i]) for i in sorted(deltas)]


def _certify_layer(
    layer: int, weight: Tensor, delta: Tensor, moment: SecondMoment, subspace: Subspace
) -> dict[str, Any]:
    output = moment.felt(weight)
    square = float(delta.square().sum())
    inside = float((delta - project_out(delta, subspace.basis)).square().sum())
    return {
        "layer": layer,
        "change": moment.felt(delta) / output,
        "bound": (square * subspace.largest_outside + inside * subspace.trace) / output,
        "leak": inside / square if square else 0.0,
        "room": subspace.room,
        "rank": subspace.basis.shape[1],
    }


def strongest(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The layer in which protected inputs feel most."""
    return max(layers, key=lambda layer: layer["change"])
