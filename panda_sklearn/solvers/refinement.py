"""Parts refined to single samples (section 3.5 of the paper, equation (6)).

Notation as in :mod:`panda_sklearn.core.objective`, but P is (N, S, R_S): one set of
parts a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from panda_sklearn.core.factors import Factors
from panda_sklearn.core.moments import diagonalised
from panda_sklearn.core.objective import (
    accumulator_dtype,
    batches_of,
    cancels,
)
from panda_sklearn.solvers.descent import descend

# A sample is finished when a full step promises less than this fraction of its energy.
TOL = 1e-7


def refine_parts(
    Z: Tensor,
    factors: Factors,
    *,
    max_iter: int,
    done: Callable[[int], object] | None = None,
) -> Tensor:
    """Minimise (6) for each sample on its own, starting from the global parts.

    A few samples at a time, so that the memory beside the result does not grow with
    their number. With :func:`panda_sklearn.solvers.descent.descend`, each sample has
    its own steps and its own end, and none ends worse than it began.

    Parameters
    ----------
    Z : Tensor of shape (N, C, S)

    factors : Factors
        The appearances are held; the parts are the start.

    max_iter : int
        Largest number of steps.

    done : callable, default=None
        Called with the number of samples refined since the last call.

    Returns
    -------
    parts : Tensor of shape (N, R_S, S)
    """
    refined = Z.new_empty(len(Z), *factors.P.T.shape)
    for batch, into in zip(batches_of(Z), batches_of(Z, refined), strict=True):
        into[:] = _refined(batch, factors, max_iter).mT
        if done is not None:
            done(len(batch))
    return refined


def _refined(Z: Tensor, factors: Factors, max_iter: int) -> Tensor:
    """Return the parts (N, S, R_S) of a few samples."""
    A, g = diagonalised(factors.A)
    wide = accumulator_dtype(Z.device)
    norms = torch.linalg.vector_norm(Z, dim=(1, 2), dtype=wide).to(Z)
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
        factors.P.expand(len(Z), -1, -1),
        energy=(norms > 0).to(Z),
        constraint=factors.constraint,
        max_iter=max_iter,
        tol=TOL,
        rescale=False,
    )
    # Ten times sooner than elsewhere, since none may end worse than it began.
    low = cancels(f, 10.0, Z) & (norms > 0)
    if bool(low.any()):
        refined = refined.contiguous()
        factors = factors.to(Z.device, wide)
        refined[low] = _refined(Z[low].to(wide), factors, max_iter).to(Z)
    return refined
