"""Alternation on second moments: the steps that "spg" and streams are made of.

With one factor held, the other's problem depends on the data only through the small
matrices of :mod:`panda_sklearn.core.moments`. Filling them is the only work that grows
with the number of samples. So each step solves both problems: the parts' by spectral
projected gradients, the appearances' in nearly closed form. Before it solves for the
appearances it takes the parts a little beyond their solution, as far as that has helped
so far (extrapolation: Ang and Gillis, "Accelerating nonnegative matrix factorization
algorithms using extrapolation", Neural Computation 31(2), 2019).

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.canonical import canonical_factors
from panda_sklearn.core.constraint import FREE, Constraint
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    appearance_moments,
    factored_appearance_moments,
    factored_part_moments,
    is_cheaper_factored,
    part_moments,
)
from panda_sklearn.core.objective import accumulator_dtype, cancels
from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.solvers.base import STUCK, Iteration
from panda_sklearn.solvers.descent import (
    descend_shared,
    leading_factor,
    products_of,
    relative_objective,
)

__all__ = [
    "Alternation",
    "Past",
    "canonical_pair",
    "solve_appearances",
    "solve_parts",
]

# Largest number of iterations of the descent on one factor.
DESCENT_ITERATIONS = 500
FACTORED_ITERATIONS = 20  # each costs much more
POLISH_ITERATIONS = 6
# A descent ends when a step promises less than the largest of these: a fraction of the
# energy; a fraction of ``tol`` (times the objective, where that is small itself); and a
# fraction of the last step's fall. If the last of these ended a descent too early, the
# descent is repeated with that fraction reduced, also for the steps to come.
EXACT = 1e-12
EXACT_APPEARANCES = 1e-9
FRACTION_OF_TOL = 1e-3
EXACT_RELATIVE = 1e-2
FIRST_FALL = 1e-2
TIGHTER = 1e-2
# With more channels than this, few appearances are not sought in the space of all
# channels, but in one that grows from the current appearances: how often it grows, the
# fall that ends it, and the iterations of the descent in it.
SMALL = 256
GROWN = 5
GROWN_TOL = 1e-8
GROWN_ITERATIONS = 5

# How far the parts are taken beyond their solution, as a multiple of their last move:
# at first and at most, and the change after one that helped and one that did not.
FIRST_EXTRAPOLATION = 0.5
LONGEST_EXTRAPOLATION = 2.0
GROWTH = 1.5
SHRINKAGE = 0.5


# Parts, the moments of the appearances there, the best appearances and the objective.
Candidate = tuple[Tensor, Moments | FactoredMoments, Tensor, float]


@dataclass(frozen=True)
class Past:
    """What is kept of earlier samples: their moments, at the factors of that time.

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
        """Return the same on a device."""
        parts, appearances = self.of_parts.to(device), self.of_appearances.to(device)
        return Past(parts, appearances, self.n_samples)


class Alternation:
    """Factors that :meth:`advance` improves.

    Attributes
    ----------
    A, P : Tensor

    f : float
        The objective as a fraction of the energy; infinite before the first step.

    dtype : torch.dtype
        Type of the products over samples; becomes the widest when f is too small for
        the narrower one.

    tol : float
        The fall that ends the steps. Descents need not be much more exact, and the
        parts are not taken beyond their solution where they alone bring less.
    """

    def __init__(
        self,
        samples: Samples,
        A: Tensor,
        P: Tensor,
        *,
        energy: Tensor,
        constraint: Constraint,
        dtype: torch.dtype,
        tol: float = 0.0,
        past: Past | None = None,
        factored: bool = True,
    ) -> None:
        self.samples, self.past = samples, past
        self.A, self.P = A, P
        self.energy = energy
        self.dtype = dtype
        self.constraint = constraint
        self.tol = tol
        (C, R_C), (S, R_S) = A.shape, P.shape
        may = factored and isinstance(samples, InMemory)
        self.factored_parts = (
            may and not constraint.rotatable and is_cheaper_factored(C, S, R_C, R_S)
        )
        self.factored_appearances = (
            may
            and 2 * (samples.n_samples or 0) * R_S < C
            and not _is_solved_whole(C, R_C)
        )
        self.f = float("inf")
        self.fall, self.exactness = FIRST_FALL, EXACT_RELATIVE
        self.solution: Tensor | None = None  # the parts before the extrapolation
        self.extrapolation = FIRST_EXTRAPOLATION

    def step(self, n_iter: int) -> Iteration:
        """Advance, and return what came of it."""
        before = self.f
        self.advance()
        return self.iteration(self.f, STUCK if self.f == before else "")

    def iteration(self, f: float, end: str = "") -> Iteration:
        """Return the record of a step that ends at the objective f."""
        energy = float(self.energy)
        assert self.samples.n_samples is not None  # a pass has counted them
        return Iteration(f * energy, energy, self.samples.n_samples, end)

    def advance(self) -> None:
        """Solve for the parts, then for the appearances.

        Leaves everything as it is where that would raise the objective, as rounding
        can.
        """
        of_parts = self._part_moments()
        exact = max(EXACT, FRACTION_OF_TOL * self.tol * min(self.f, 1.0))
        tol = max(exact, self.exactness * self.fall)
        solution, f_solution = solve_parts(of_parts, self.P, self.constraint, tol)
        P, of_appearances, A, f = self._extrapolate(solution, f_solution)
        if self.dtype == self.samples.dtype and cancels(f, 1.0, self.samples):
            self.dtype = accumulator_dtype(self.samples.device)
            self.f, self.solution = float("inf"), None  # f is not exact enough
            self.advance()
            return
        if not f < self.f:
            if tol > exact:  # perhaps that is why
                self.exactness *= TIGHTER
                self.advance()
            return
        fall = self.f - f
        self.fall = min(fall, FIRST_FALL)  # the first step's fall says nothing
        self.A, self.P, self.f, self.solution = A, P, f, solution
        self.of_parts, self.of_appearances = of_parts, of_appearances
        self.part_products = products_of(of_parts, P)
        if fall < tol and tol > exact:  # the descent ended too early to tell
            self.exactness *= TIGHTER
            self.advance()

    def begin_with_appearances(self) -> None:
        """Solve for the appearances before the first step."""
        *_, self.A, _ = self._with_appearances(self.P)

    def continued(self, samples: Samples, energy: Tensor, tol: float) -> Alternation:
        """Return an alternation on other samples, from these factors."""
        return Alternation(
            samples,
            self.A,
            self.P,
            energy=energy,
            constraint=self.constraint,
            dtype=self.dtype,
            tol=tol,
        )

    def _extrapolate(self, solution: Tensor, f_solution: float) -> Candidate:
        """Return parts at or beyond the solution, and the best appearances there.

        Beyond it, if the objective there is no higher than at the solution.
        """
        if (
            not self.constraint.rotatable
            and self.solution is not None
            and self.f - f_solution > self.tol
        ):
            move = self.extrapolation * (solution - self.solution)
            beyond = self._with_appearances(self.constraint.project(solution + move))
            if beyond[-1] <= f_solution:
                longer = GROWTH * self.extrapolation
                self.extrapolation = min(longer, LONGEST_EXTRAPOLATION)
                return beyond
            self.extrapolation *= SHRINKAGE
        return self._with_appearances(solution)

    def _with_appearances(self, P: Tensor) -> Candidate:
        moments = self._appearance_moments(P)
        return P, moments, *solve_appearances(moments, self.A)

    def _part_moments(self) -> Moments | FactoredMoments:
        if self.factored_parts:
            assert isinstance(self.samples, InMemory)
            return factored_part_moments(self.samples.Z, self.A, **self._options())
        moments = part_moments(self.samples, self.A, **self._options())
        return moments if self.past is None else self.past.of_parts + moments

    def _appearance_moments(self, P: Tensor) -> Moments | FactoredMoments:
        if self.factored_appearances:
            assert isinstance(self.samples, InMemory)
            return factored_appearance_moments(self.samples.Z, P, **self._options())
        moments = appearance_moments(self.samples, P, **self._options())
        return moments if self.past is None else self.past.of_appearances + moments

    def _options(self) -> dict[str, Any]:
        """Return the options of the functions that compute moments."""
        return {"energy": self.energy, "dtype": self.dtype}


def canonical_pair(fit: Any) -> tuple[Tensor, Tensor, float]:
    """Return the canonical pair of the factors of a fit, and what A was multiplied by.

    Parameters
    ----------
    fit : Alternation or Passes
        Its appearances may become better: single precision cannot tell those beyond
        the rank of the data.
    """
    past, constraint = fit.past, fit.constraint
    options = {"energy": fit.energy, "dtype": fit.dtype}
    if constraint.rotatable:  # their rotation needs the products at A itself
        moments = part_moments(fit.samples, fit.A, **options)
        moments = moments if past is None else past.of_parts + moments
        fit.part_products = products_of(moments, fit.P)

    if not isinstance(fit.of_appearances, Moments):
        fit.of_appearances = appearance_moments(fit.samples, fit.P, **options)

    def pair() -> tuple[Tensor, Tensor, float]:
        given = fit.A, fit.P, fit.part_products, fit.of_appearances
        return canonical_factors(*given, constraint=constraint)

    A, P, c = pair()
    wide = accumulator_dtype(fit.samples.device)
    if fit.dtype != wide and not bool(A.any(dim=0).all()):
        options["dtype"] = wide
        moments = appearance_moments(fit.samples, fit.P, **options)
        if past is not None:
            moments = past.of_appearances + moments
        fit.A, fit.f = solve_appearances(moments, fit.A)
        fit.of_appearances = moments
        A, P, c = pair()
    return A, P, c


def solve_parts(
    moments: Moments | FactoredMoments,
    P: Tensor,
    constraint: Constraint,
    tol: float = EXACT,
    *,
    linear: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Return the parts near P with the least objective, and that over the energy.

    ``linear`` is that of :func:`panda_sklearn.solvers.descent.descend`.
    """
    if constraint.rotatable:
        assert isinstance(moments, Moments)
        P = leading_factor(moments, P.shape[1])
    formed = isinstance(moments, Moments)
    X, f = descend_shared(
        moments,
        P[None],
        constraint,
        max_iter=DESCENT_ITERATIONS if formed else FACTORED_ITERATIONS,
        tol=tol,
        rescale=linear is None,
        linear=linear,
    )
    return X[0], float(f[0])


def solve_appearances(
    moments: Moments | FactoredMoments, A: Tensor
) -> tuple[Tensor, float]:
    """Return the appearances with the least objective, and that over the energy.

    Few appearances of many channels are sought in the space that they span together
    with their products, again and again (as LOBPCG does for eigenvectors).
    """
    C, R_C = A.shape
    if _is_solved_whole(C, R_C):
        assert isinstance(moments, Moments)
        return _in_space(moments, A)
    f = relative_objective(moments, A)
    for _ in range(GROWN):
        M1A, M2A = products_of(moments, A)
        basis = torch.linalg.qr(torch.cat([A, M1A, M2A], dim=1)).Q
        M1B, M2B = products_of(moments, basis)
        small = Moments(basis.T @ M1B, basis.T @ M2B, moments.energy, moments.eps)
        before = f
        X, f = _in_space(small, basis.T @ A, GROWN_ITERATIONS)
        A = basis @ X
        if not before - f > GROWN_TOL:
            break
    return A, f


def _is_solved_whole(C: int, R_C: int) -> bool:
    """Whether appearances are sought in the space of all channels."""
    return C <= SMALL or 3 * R_C >= C


def _in_space(
    moments: Moments, A: Tensor, max_iter: int = POLISH_ITERATIONS
) -> tuple[Tensor, float]:
    """Return the best appearances in closed form, or by descent from the given ones."""
    C, R_C = A.shape
    leading = leading_factor(moments, R_C)
    if R_C == C:  # the minimum of a quadratic; its columns are orthogonal
        M1A, M2A = products_of(moments, leading)
        norms = leading.square().sum(dim=0)
        change = (leading * (norms * M2A - 2 * M1A)).sum()
        energy = float(moments.energy)
        return leading, 1 + float(change) / energy if energy > 0 else 0.0
    f = relative_objective(moments, leading)
    best = leading if f <= relative_objective(moments, A) else A
    X, objectives = descend_shared(
        moments, best[None], FREE, max_iter=max_iter, tol=EXACT_APPEARANCES
    )
    return X[0], float(objectives[0])
