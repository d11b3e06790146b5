"""The directions that hold a share of the energy of protected inputs, and the projection that keeps a delta out of them.

`C = U' diag(lambda) U'^T`; `U` are the leading eigenvectors whose eigenvalues sum to at least `energy` of the trace, `P = I - U U^T`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """One layer's protected directions.

    basis: `U [d_ff, r]`, orthonormal columns, float32. trace: of `C`. tail: the energy outside `U` (trace units). largest_outside: the
    largest eigenvalue left out, 0 when none is.
    """

    basis: Tensor
    trace: float
    tail: float
    largest_outside: float

    @property
    def room(self) -> float:
        """Share of the input's dimensions that a delta may still use."""
        return 1 - self.basis.shape[1] / self.basis.shape[0]


def protected_subspace(moment: Tensor, energy: float) -> Subspace:
    """The smallest leading subspace of `C [d_ff, d_ff]` (float64) with a share `energy` of its trace."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    cumulative = values.cumsum(0)
    trace = float(cumulative[-1])
    rank = int((cumulative < energy * trace).sum()) + 1
    rank = min(rank, len(values))
    outside = float(values[rank]) if rank < len(values) else 0.0
    return Subspace(vectors[:, :rank].float().contiguous(), trace, float(values[rank:].sum()), outside)


def project_out(delta: Tensor, basis: Tensor) -> Tensor:
    """`D P = D - (D U) U^T`, for `D [k, d_ff]`, computed in the basis' precision or better."""
    wide = delta.to(torch.promote_types(delta.dtype, basis.dtype))
    basis = basis.to(wide.dtype)
    return wide - (wide @ basis) @ basis.T
