"""Parts refined to single samples (section 3.5 of the paper, equation (6)).

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`; here P is (N, S, R_S), one set of parts a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.moments import diagonalised
from panda_sklearn.core.objective import (
    accumulator_dtype,
    cancels,
    sample_energies,
)
from panda_sklearn.solvers.descent import descend

# A sample is finished when a full step promises less than this share of its energy.
TOL = 1e-7


def refine_parts(
    Z: Tensor, A: Tensor, P: Tensor, *, max_iter: int, nonnegative: bool
) -> Tensor:
    """Descend (6) from the global parts, all samples at once.

    By :func:`panda_sklearn.solvers.descent.descend`: each sample has steps of its own
    and stops on its own, and none ends worse than it began.

    Parameters
    ----------
    Z, A, P : Tensor
        Shapes (N, C, S), (C, R_C) and (S, R_S).

    max_iter : int
        Number of steps, at most.

    nonnegative : bool
        Whether to project onto the non-negative orthant.

    Returns
    -------
    P : Tensor of shape (N, S, R_S)
    """
    wide, given = accumulator_dtype(Z.device), A
    A, g = diagonalised(A)
    norms = sample_energies(Z).sqrt().to(Z)
    maps = A.T @ (Z / torch.where(norms > 0, norms, 1)[:, None, None])
    everything = maps

    def products(X: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal maps
        if len(which) < len(maps):
            maps = everything[which]
        YX = maps @ X
        both = maps.mT @ torch.cat([YX, g[:, None] * YX], dim=2)
        return both[..., : X.shape[2]], both[..., X.shape[2] :]

    refined, f = descend(
        products,
        P.expand(len(Z), -1, -1),
        energy=(norms > 0).to(Z),
        nonnegative=nonnegative,
        max_iter=max_iter,
        tol=TOL,
        rescale=False,
    )
    # Ten times sooner than elsewhere: none may end worse than it began.
    low = cancels(f, 10.0, Z) & (norms > 0)
    if bool(low.any()):
        refined = refined.contiguous()
        refined[low] = refine_parts(
            Z[low].to(wide),
            given.to(wide),
            P.to(wide),
            max_iter=max_iter,
            nonnegative=nonnegative,
        ).to(Z)
    return refined
