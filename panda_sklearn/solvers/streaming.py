"""Learning from one batch of samples after another, in memory that does not grow.

What the problem of one factor needs to know of earlier samples is in their moments,
and those add (:mod:`panda_sklearn.core.moments`). They were taken at the factors of
their time, so that they are a little out of date; the closer the factors are to where
they settle, the less.

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.canonical import canonical
from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import Moments, appearance_moments, part_moments
from panda_sklearn.core.objective import (
    accumulator_dtype,
    cancels,
    sample_energies,
)
from panda_sklearn.core.starts import hosvd, revived
from panda_sklearn.solvers.spg import solve_appearances, solve_parts

__all__ = ["Past", "learn"]


@dataclass(frozen=True)
class Past:
    """What is kept of the samples so far.

    Attributes
    ----------
    of_parts, of_appearances : Moments
        Of sizes S and C.

    n_samples : int
    """

    of_parts: Moments
    of_appearances: Moments
    n_samples: int

    def to(self, device: torch.device) -> Past:
        """The same, on a device."""
        parts, appearances = self.of_parts.to(device), self.of_appearances.to(device)
        return Past(parts, appearances, self.n_samples)


def learn(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    past: Past | None,
    *,
    max_iter: int,
    tol: float,
    constraint: Constraint,
    generator: torch.Generator,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor, Past, float]:
    """Alternate on the moments of the past and of a new batch together.

    Parameters
    ----------
    Z, A, P : Tensor
        The new batch and the factors so far, of shapes (N, C, S), (C, R_C) and
        (S, R_S).

    past : Past or None
        What the last call returned.

    max_iter, tol, constraint, batch_size
        As for :func:`panda_sklearn.solvers.spg.spg`.

    generator : torch.Generator
        Draws parts that are zero so far anew; without it they would stay so.

    Returns
    -------
    A, P : Tensor
        The new factors, in canonical form.

    past : Past

    f : float
        Mean over all samples so far of the objective, with the earlier ones taken as
        their moments have them.
    """
    A, P = (factor.to(accumulator_dtype(Z.device)) for factor in (A, P))
    energy = sample_energies(Z).sum()
    n_samples = len(Z) + (past.n_samples if past is not None else 0)
    P = revived(P, generator)
    if not A.any():
        A = hosvd(Z, A.shape[1]).to(P)
    f = float("inf")
    given: dict[str, Any] = {"energy": energy, "batch_size": batch_size}
    n_left = max_iter
    while n_left:
        n_left -= 1
        of_parts = part_moments(Z, A, **given)
        if past is not None:
            of_parts = past.of_parts + of_parts
        P, _ = solve_parts(of_parts, P, not constraint.rotatable)
        of_appearances = appearance_moments(Z, P, **given)
        if past is not None:
            of_appearances = past.of_appearances + of_appearances
        before = f
        A, f = solve_appearances(of_appearances, A)
        if "dtype" not in given and cancels(f, 1.0, Z):
            given["dtype"], f, n_left = A.dtype, float("inf"), max_iter
        elif before - f < tol:
            break
    M1P, M2P = of_parts.products(P[None])
    products = M1P[0], M2P[0]
    found = canonical(A, P, products, of_appearances, constraint=constraint)
    if Z.dtype != A.dtype and "dtype" not in given and not bool(found[0].any(0).all()):
        # Beyond the rank of the data, or of their products in single precision?
        of_appearances = appearance_moments(Z, P, dtype=A.dtype, **given)
        if past is not None:
            of_appearances = past.of_appearances + of_appearances
        A, f = solve_appearances(of_appearances, A)
        found = canonical(A, P, products, of_appearances, constraint=constraint)
    A, P, c = found
    past = Past(of_parts.rescaled(c), of_appearances.rescaled(1 / c), n_samples)
    return A, P, past, max(f, 0.0) * float(of_appearances.energy) / n_samples
