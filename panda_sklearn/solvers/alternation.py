"""Alternation on second moments: the steps that "spg" and streams are made of.

With one factor held, the other's problem depends on the data only through the small
matrices of :mod:`panda_sklearn.core.moments`; filling them is all that costs anything
in the number of samples. So each step solves both problems, the parts' by spectral
projected gradients and the appearances' in nearly closed form, and takes the parts a
little beyond their solution before it solves for the appearances, as far as that has
helped so far (extrapolation: Ang and Gillis, "Accelerating nonnegative matrix
factorization algorithms using extrapolation", Neural Computation 31(2), 2019).

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
from panda_sklearn.solvers.descent import descend, leading_factor, relative_objective

__all__ = [
    "Alternation",
    "Past",
    "canonical_pair",
    "descend_shared",
    "one_of",
    "solve_appearances",
    "solve_parts",
]

# Iterations of the descent on one factor, at most.
DESCENT_ITERATIONS = 500
FACTORED_ITERATIONS = 20  # which cost much more
POLISH_ITERATIONS = 6
# What its steps promise counts as nothing below this share of the energy, of the fall
# that ends the steps (times the objective, where that is a small share itself), or of
# the last step's fall. A descent that the last of these ended too early is repeated
# with so much less of it, as are those to come.
EXACT = 1e-12
EXACT_APPEARANCES = 1e-9
SHARE_OF_TOL = 1e-3
EXACT_RELATIVE = 1e-2
FIRST_FALL = 1e-2
TIGHTER = 1e-2
# Channels up to which appearances are sought among all of them. Beyond, and if they are
# few, they are sought in a space that grows from them: how often it is grown, the fall
# that ends it, and the iterations of the descent there.
SMALL = 256
GROWN = 5
GROWN_TOL = 1e-8
GROWN_ITERATIONS = 5

# How far the parts are taken beyond their solution, as a multiple of their last move.
FIRST_EXTRAPOLATION = 0.5
LONGEST_EXTRAPOLATION = 2.0
GROWTH = 1.5
SHRINKAGE = 0.5


# Parts, the moments of the appearances there, the best appearances and the objective.
Candidate = tuple[Tensor, Moments | FactoredMoments, Tensor, float]


@dataclass(frozen=True)
class Past:
    """What is kept of earlier samples: their moments, at the factors of their time.

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


class Alternation:
    """Factors that get better with each :meth:`advance`.

    Attributes
    ----------
    A, P : Tensor

    f : float
        The objective as a share of the energy; infinite before the first step.

    products : torch.dtype
        Type of the products over samples, the widest once f asks for it.

    tol : float
        The fall that ends the steps: no descent need be much more exact, and where the
        parts alone bring less they are not taken beyond their solution.
    """

    def __init__(
        self,
        samples: Samples,
        A: Tensor,
        P: Tensor,
        *,
        energy: Tensor,
        constraint: Constraint,
        products: torch.dtype,
        tol: float = 0.0,
        past: Past | None = None,
        factored: bool = True,
    ) -> None:
        self.samples, self.past = samples, past
        self.A, self.P = A, P
        self.energy = energy
        self.products = products
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
        self.solution: Tensor | None = None  # the parts before they were extrapolated
        self.extrapolation = FIRST_EXTRAPOLATION

    def step(self, n_iter: int) -> Iteration:
        """Advance, and say how far that went."""
        before = self.f
        self.advance()
        return self.iteration(self.f, STUCK if self.f == before else "")

    def iteration(self, f: float, end: str = "") -> Iteration:
        """What a step that ends at an objective says of itself."""
        energy = float(self.energy)
        assert self.samples.n_samples is not None  # it has been gone through
        return Iteration(f * energy, energy, self.samples.n_samples, end)

    def advance(self) -> None:
        """Solve for the parts, then for the appearances.

        Leaves everything as it is where that would raise the objective, as rounding
        can.
        """
        of_parts = self._part_moments()
        exact = max(EXACT, SHARE_OF_TOL * self.tol * min(self.f, 1.0))
        tol = max(exact, self.exactness * self.fall)
        solution, f_solution = solve_parts(of_parts, self.P, self.constraint, tol)
        P, of_appearances, A, f = self._extrapolate(solution, f_solution)
        if self.products == self.samples.dtype and cancels(f, 1.0, self.samples):
            self.products = accumulator_dtype(self.samples.device)
            self.f, self.solution = float("inf"), None  # what came before is no measure
            self.advance()
            return
        if not f < self.f:
            if tol > exact:  # which may be why
                self.exactness *= TIGHTER
                self.advance()
            return
        fall = self.f - f
        self.fall = min(fall, FIRST_FALL)  # of the first step it is no measure
        self.A, self.P, self.f, self.solution = A, P, f, solution
        self.of_parts, self.of_appearances = of_parts, of_appearances
        self.part_products = one_of(of_parts.products(P[None]))
        if fall < tol and tol > exact:  # the descent ended too early to tell
            self.exactness *= TIGHTER
            self.advance()

    def begin_with_appearances(self) -> None:
        """Solve for the appearances before the first step."""
        *_, self.A, _ = self._with_appearances(self.P)

    def continued(self, samples: Samples, energy: Tensor, tol: float) -> Alternation:
        """The same on other samples, from these factors."""
        return Alternation(
            samples,
            self.A,
            self.P,
            energy=energy,
            constraint=self.constraint,
            products=self.products,
            tol=tol,
        )

    def _extrapolate(self, solution: Tensor, f_solution: float) -> Candidate:
        """Parts at or beyond the solution, and the best appearances there.

        Beyond it, if the objective is no higher than it was at the solution.
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

    def _with_appearances(
        self, P: Tensor
    ) -> tuple[Tensor, Moments | FactoredMoments, Tensor, float]:
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

    def _options(self) -> dict:
        """Arguments of the functions that take moments."""
        return {"energy": self.energy, "dtype": self.products}


def canonical_pair(
    fit: Any, constraint: Constraint, past: Past | None = None
) -> tuple[Tensor, Tensor, float]:
    """The canonical pair of the factors of a fit, and what A was multiplied by.

    Parameters
    ----------
    fit : object
        Has ``samples``, ``A``, ``P``, ``f``, ``energy``, ``products``, and at these
        factors ``part_products`` and ``of_appearances``. The appearances may become
        better: beyond the rank of the data, single precision cannot tell.
    """
    options = {"energy": fit.energy, "dtype": fit.products}
    if constraint.rotatable:  # by what they hold: exactly at A
        moments = part_moments(fit.samples, fit.A, **options)
        moments = moments if past is None else past.of_parts + moments
        fit.part_products = one_of(moments.products(fit.P[None]))

    if not isinstance(fit.of_appearances, Moments):
        fit.of_appearances = appearance_moments(fit.samples, fit.P, **options)

    def pair() -> tuple[Tensor, Tensor, float]:
        given = fit.A, fit.P, fit.part_products, fit.of_appearances
        return canonical_factors(*given, constraint=constraint)

    A, P, c = pair()
    wide = accumulator_dtype(fit.samples.device)
    if fit.products != wide and not bool(A.any(dim=0).all()):
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
    """Parts at which the objective is least near P, and its share of the energy.

    ``linear`` is as of :func:`panda_sklearn.solvers.descent.descend`.
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
    """Appearances at which the objective is least, and its share of the energy.

    Where they are few beside the channels: in the space of what they are and what one
    more product makes of them, again and again (as LOBPCG does for eigenvectors).
    """
    C, R_C = A.shape
    if _is_solved_whole(C, R_C):
        assert isinstance(moments, Moments)
        return _in_space(moments, A)
    f = relative_objective(moments, A)
    for _ in range(GROWN):
        M1A, M2A = one_of(moments.products(A[None]))
        basis = torch.linalg.qr(torch.cat([A, M1A, M2A], dim=1)).Q
        M1B, M2B = one_of(moments.products(basis[None]))
        small = Moments(basis.T @ M1B, basis.T @ M2B, moments.energy, moments.eps)
        before = f
        X, f = _in_space(small, basis.T @ A, GROWN_ITERATIONS)
        A = basis @ X
        if not before - f > GROWN_TOL:
            break
    return A, f


def _is_solved_whole(C: int, R_C: int) -> bool:
    """Whether appearances are sought among all."""
    return C <= SMALL or 3 * R_C >= C


def _in_space(
    moments: Moments, A: Tensor, max_iter: int = POLISH_ITERATIONS
) -> tuple[Tensor, float]:
    """The best appearances, of all or from the given ones on."""
    C, R_C = A.shape
    leading = leading_factor(moments, R_C)
    if R_C == C:  # the minimum of a quadratic, with orthogonal columns
        M1A, M2A = one_of(moments.products(leading[None]))
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


def descend_shared(
    moments: Moments | FactoredMoments,
    X: Tensor,
    constraint: Constraint,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """:func:`descend` where all problems share their moments."""
    return descend(
        lambda X, which: moments.products(X),
        X,
        energy=moments.energy.expand(len(X)),
        constraint=constraint,
        **options,
    )


def one_of(products: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The products of a single problem."""
    return products[0][0], products[1][0]
