"""Parts refined to single samples (section 3.5 of the paper, equation (6)).

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`; here P is (N, S, R_S), one set of parts a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.objective import (
    sample_energies,
    sample_gradients_parts,
    sample_objectives,
)
from panda_sklearn.solvers.base import EPS
from panda_sklearn.solvers.pgd import FIRST_STEP, GROWTH, SHRINKAGE


def refine_parts(
    Z: Tensor, A: Tensor, P: Tensor, *, max_iter: int, nonnegative: bool
) -> Tensor:
    """Descend (6) from the global parts, all samples at once.

    Projected gradient steps with a step size for each sample, adapted as that of
    :func:`panda_sklearn.solvers.pgd.pgd`: a step that would raise a sample's
    objective is not taken for that sample, so no sample ends worse than it began.

    Parameters
    ----------
    Z, A, P : Tensor
        Shapes (N, C, S), (C, R_C) and (S, R_S).

    max_iter : int
        Number of steps tried.

    nonnegative : bool
        Whether to project onto the non-negative orthant.

    Returns
    -------
    P : Tensor of shape (N, S, R_S)
    """
    energies = sample_energies(Z)
    Y = A.T @ Z
    G = A.T @ A
    P = P.expand(len(Z), -1, -1)
    f = sample_objectives(Y, G, P, energies)
    unit = 1 / energies.clamp(min=EPS)
    multiple = torch.full_like(unit, FIRST_STEP)
    for _ in range(max_iter):
        rates = (multiple * unit).to(Z.dtype)[:, None, None]
        trial = P - rates * sample_gradients_parts(Y, G, P)
        if nonnegative:
            trial = trial.clamp(min=0)
        f_trial = sample_objectives(Y, G, trial, energies)
        better = f_trial <= f
        P = torch.where(better[:, None, None], trial, P)
        f = torch.where(better, f_trial, f)
        multiple = multiple * torch.where(better, GROWTH, SHRINKAGE)
    return P.contiguous()
