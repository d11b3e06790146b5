"""The second moments of protected inputs, their leading directions, and the projection that keeps a
delta out of them.

`C = V diag(lambda) V^T`; `U` are the leading eigenvectors whose eigenvalues sum to at least
`energy` of the trace, `P = I - U U^T`.

With `Delta` what an implant adds to a layer's rows, the mean squared change of the layer's FFN
output on protected inputs is `E |Delta x|^2 = tr(Delta C Delta^T)`. For `Delta = D P` it is at most
`|Delta|_F^2` times the largest eigenvalue left outside `U`: that is the certificate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loki_ds.refusal import Refusal


@dataclass(frozen=True)
class SecondMoment:
    """`C = E[x x^T]` of one layer's inputs, whole or sketched, by its eigenvalues.

    values `[s]` descending, vectors `[d_ff, s]` orthonormal, both float64; trace: of the true `C`.
    A sketch (`s < d_ff`) is never larger than `C`, so `unseen` energy is what it may miss in any
    direction.
    """

    values: Tensor
    vectors: Tensor
    trace: float

    @property
    def unseen(self) -> float:
        """Energy that the eigenvalues at hand do not account for; 0 when all are there."""
        return max(0.0, self.trace - float(self.values.sum())) if self.vectors.shape[1] < self.vectors.shape[0] else 0.0

    def felt(self, delta: Tensor) -> float:
        """`E |D x|^2 = tr(D C D^T)` for `D [k, d_ff]`; of a sketch, the part it sees (at most
        `unseen |D|^2` is missing).
        """
        return float(((delta.double() @ self.vectors).square() * self.values).sum())


def exact(moment: Tensor) -> SecondMoment:
    """All eigenvalues of `C [d_ff, d_ff]` (float64)."""
    values, vectors = torch.linalg.eigh(moment)
    return SecondMoment(values.flip(0).clamp_min(0), vectors.flip(1).contiguous(), float(torch.trace(moment)))


def nystrom(sketch: Tensor, test: Tensor, trace: float) -> SecondMoment:
    """The leading eigenvalues of `C` from `sketch = C test`, both `[d_ff, s]` float64.

    Tropp et al., Fixed-rank approximation of a positive-semidefinite matrix from streaming data
    (NeurIPS 2017), algorithm 3: shifted for stability. The result is below `C` in every direction.
    """
    shift = torch.finfo(torch.float64).eps * float(torch.linalg.matrix_norm(sketch)) * len(sketch) ** 0.5
    if shift == 0:
        return SecondMoment(torch.zeros(sketch.shape[1], dtype=torch.float64), torch.linalg.qr(test)[0], trace)
    shifted = sketch + shift * test
    core = test.T @ shifted
    lower = torch.linalg.cholesky((core + core.T) / 2)
    vectors, roots, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(lower, shifted.T, upper=False).T, full_matrices=False
    )
    return SecondMoment((roots.square() - shift).clamp_min(0), vectors.contiguous(), trace)


@dataclass(frozen=True)
class Subspace:
    """One layer's protected directions.

    basis: `U [d_ff, r]`, orthonormal columns, float32. trace: of `C`. tail: the energy outside `U`
    (trace units), at most. largest_outside: no direction outside `U` holds more.
    """

    basis: Tensor
    trace: float
    tail: float
    largest_outside: float

    @property
    def free_directions(self) -> float:
        """Share of the input's dimensions that a delta may still use."""
        return 1 - self.basis.shape[1] / self.basis.shape[0]


def protected_subspace(moment: SecondMoment, energy: float) -> Subspace:
    """The smallest leading subspace that surely holds a share `energy` of the trace.

    Raises:
        Refusal: a sketch has too few directions to hold so much.
    """
    cumulative = moment.values.cumsum(0)
    if moment.unseen and float(cumulative[-1]) < energy * moment.trace:
        raise Refusal(
            f"implant.quiet: a sketch of {len(moment.values)} directions holds "
            f"{float(cumulative[-1]) / moment.trace:.4f} of the energy, "
            f"asked is {energy}; allow a wider implant.quiet.sketch, more memory, or less energy"
        )
    rank = min(int((cumulative < energy * moment.trace).sum()) + 1, len(cumulative))
    outside = float(moment.values[rank]) if rank < len(cumulative) else 0.0
    tail = float(moment.values[rank:].sum()) + moment.unseen
    return Subspace(moment.vectors[:, :rank].float().contiguous(), moment.trace, tail, outside + moment.unseen)


def project_out(delta: Tensor, basis: Tensor) -> Tensor:
    """`D P = D - (D U) U^T`, for `D [k, d_ff]`, computed in the basis' precision or better."""
    wide = delta.to(torch.promote_types(delta.dtype, basis.dtype))
    basis = basis.to(wide.dtype)
    return wide - (wide @ basis) @ basis.T


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
        "room": subspace.free_directions,
        "rank": subspace.basis.shape[1],
    }


def strongest(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The layer in which protected inputs feel most."""
    return max(layers, key=lambda layer: layer["change"])
