r"""The canonical form: one pair of factors for each minimum.

The objective (3) of the paper does not change under A -> c A R, P -> P / c with R
orthogonal, nor when parts change places. Of all these pairs, the canonical one has

- scale: the columns of A are as near to orthonormal as a scale can bring them, that is
  sum_k g_k = sum_k g_k^2 for the eigenvalues g of A'A;
- rotation: coefficients of different appearances are uncorrelated over samples and
  parts, that is sum_i L_i L_i' is diagonal. Its entries fall: the first appearances are
  the dominant ones. The last appearances are zero if together they hold no more energy
  than rounding may account for, as do those beyond the rank of the data;
- order: parts are by the energy that each contributes, sum_i ||A l_ik p_k'||^2,
  falling. Of parts whose energies differ by rounding alone, the one that peaks at an
  earlier position comes first;
- signs: the entry of largest magnitude of each appearance is positive.

Where parts may be negative they are as free as the appearances, and are rotated and
signed alike: sum_i L_i' L_i is diagonal.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import Moments

__all__ = ["canonical_factors", "signed"]

# Energies that differ by less than this fraction are the same up to rounding, which a
# fit magnifies.
SAME = 1e-6


def canonical_factors(
    A: Tensor,
    P: Tensor,
    part_products: tuple[Tensor, Tensor],
    of_appearances: Moments,
    *,
    constraint: Constraint,
) -> tuple[Tensor, Tensor, float]:
    """Return the canonical pair of A and P.

    Parameters
    ----------
    A, P : Tensor
        Shapes (C, R_C) and (S, R_S).

    part_products : tuple of Tensor of shape (S, R_S)
        M1 P and M2 P, with the moments of the problem of the parts at A or close to it.

    of_appearances : Moments
        The moments of the problem of the appearances at P.

    constraint : Constraint
        The constraint on P, which is rotated only where that allows it.

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
    """Return indices by falling energy; of the same energy, by rising place."""
    order = energies.argsort(descending=True, stable=True)
    falls = energies[order].diff().neg()
    new = falls > SAME * energies[order[:-1]]
    group = torch.cat([new.new_zeros(1), new]).cumsum(0)
    return order[(group * (places.max() + 1) + places[order]).argsort(stable=True)]


def _rotated(A: Tensor, B: Tensor, eps: float) -> Tensor:
    """Return A with columns uncorrelated in the metric B, by falling energy, signed."""
    A = A @ _falling_eigenvectors(A.T @ B @ A)
    energies = (A * (B @ A)).sum(dim=0).clamp(min=0)
    left = energies.flip(0).cumsum(0).flip(0)  # of each appearance and those after it
    return signed(torch.where(left > eps * energies.sum(), A, 0))


def _falling_eigenvectors(M: Tensor) -> Tensor:
    return torch.linalg.eigh((M + M.T) / 2).eigenvectors.flip(1)


def signed(X: Tensor) -> Tensor:
    """Return the columns with signs that make their largest entries positive."""
    peaks = X.gather(0, X.abs().argmax(dim=0, keepdim=True))
    return torch.where(peaks < 0, -X, X)
