r"""One pair of factors for each minimum.

The objective (3) of the paper does not change under A -> c A R, P -> P / c with R
orthogonal, nor when parts change places. The canonical pair of all these has

- scale: A as near to orthonormal columns as a factor can bring it, that is
  sum_k g_k = sum_k g_k^2 for the eigenvalues g of A'A;
- rotation: coefficients of different appearances are uncorrelated over samples and
  parts, sum_i L_i L_i' is diagonal, and falls: the first appearances are the dominant
  ones. The last appearances are zero if together they hold no more energy than
  rounding may have put there, as those beyond the rank of the data;
- order: parts by the energy that each contributes, sum_i ||A l_ik p_k'||^2, falling;
  of those whose energies differ by rounding alone, the one that peaks first;
- signs: the entry of largest magnitude of each appearance is positive.

Where parts may be negative they have the freedom of the appearances, and are
rotated and signed as these are: sum_i L_i' L_i is diagonal.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import Moments

__all__ = ["canonical_factors", "signed"]

# Energies that differ by less than this share are the same up to rounding, which a fit
# magnifies.
SAME = 1e-6


def canonical_factors(
    A: Tensor,
    P: Tensor,
    part_products: tuple[Tensor, Tensor],
    of_appearances: Moments,
    *,
    constraint: Constraint,
) -> tuple[Tensor, Tensor, float]:
    """The canonical pair of A and P.

    Parameters
    ----------
    A, P : Tensor
        Shapes (C, R_C) and (S, R_S).

    part_products : tuple of Tensor of shape (S, R_S)
        M1 P and M2 P, for the moments of the problem of the parts at A or close to it.

    of_appearances : Moments
        Those of the problem of the appearances at P.

    constraint : Constraint
        What P may be; it is rotated only if it may be.

    Returns
    -------
    A, P : Tensor
        The canonical pair.

    scale : float
        The c above, by which A was multiplied.
    """
    A = _rotated(A, of_appearances.M1, of_appearances.eps)
    M1P, M2P = part_products
    if constraint.rotatable:
        P = signed(P @ _falling_eigenvectors(P.T @ M1P))
    else:
        energies = (P * M2P).sum(dim=0) * P.square().sum(dim=0)
        P = P[:, _falling(energies, P.argmax(dim=0))]
    g = torch.linalg.eigvalsh(A.T @ A)
    total, squares = float(g.sum()), float(g.square().sum())
    scale = (total / squares) ** 0.5 if squares > 0 else 1.0
    return scale * A, P / scale, scale


def _falling(energies: Tensor, places: Tensor) -> Tensor:
    """Indices by falling energy; of all but equal ones by rising place."""
    order = energies.argsort(descending=True, stable=True)
    falls = energies[order].diff().neg()
    new = falls > SAME * energies[order[:-1]]
    group = torch.cat([new.new_zeros(1), new]).cumsum(0)
    return order[(group * (places.max() + 1) + places[order]).argsort(stable=True)]


def _rotated(A: Tensor, B: Tensor, eps: float) -> Tensor:
    """A with the columns uncorrelated in the metric B, by falling energy, signed."""
    A = A @ _falling_eigenvectors(A.T @ B @ A)
    energies = (A * (B @ A)).sum(dim=0).clamp(min=0)
    left = energies.flip(0).cumsum(0).flip(0)  # of each appearance and those after it
    return signed(torch.where(left > eps * energies.sum(), A, 0))


def _falling_eigenvectors(M: Tensor) -> Tensor:
    return torch.linalg.eigh((M + M.T) / 2).eigenvectors.flip(1)


def signed(X: Tensor) -> Tensor:
    """Columns times 1 or -1, so that the entry of largest magnitude is positive."""
    peaks = X.gather(0, X.abs().argmax(dim=0, keepdim=True))
    return torch.where(peaks < 0, -X, X)
