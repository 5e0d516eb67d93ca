r"""The package's own solver: exact alternation on second moments.

With one factor held, the other's problem depends on the data only through the small
matrices of :mod:`panda_sklearn.core.moments`; filling them is all that costs anything
in the number of samples. So each iteration solves both problems, the parts' by
spectral projected gradients and the appearances' in nearly closed form, and takes the
parts a little beyond their solution before it solves for the appearances, as far as
that has helped so far (extrapolation: Ang and Gillis, "Accelerating nonnegative matrix
factorization algorithms using extrapolation", Neural Computation 31(2), 2019).

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.canonical import canonical
from panda_sklearn.core.constraint import FREE, NONNEGATIVE, Constraint
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    appearance_moments,
    factored_part_moments,
    is_cheaper_factored,
    part_moments,
)
from panda_sklearn.core.objective import (
    accumulator_dtype,
    cancels,
    sample_energies,
    total_objective,
)
from panda_sklearn.core.starts import grown_parts, random_parts, revived
from panda_sklearn.solvers.base import Callback, SolverResult
from panda_sklearn.solvers.descent import descend, leading_factor, relative_objective

# Iterations of the descent on one factor, at most; and below which share of the energy,
# or of the last iteration's fall, what its steps promise counts as nothing.
DESCENT_ITERATIONS = 500
FACTORED_ITERATIONS = 20  # which cost much more
POLISH_ITERATIONS = 20
EXACT = 1e-12
EXACT_RELATIVE = 1e-7
FIRST_FALL = 1e-2

# Starts are descended from roughly, the best few of them further.
COMPARISON = {"max_iter": 100, "tol": 1e-5}
FINALISTS = 3
FINAL = {"max_iter": 300, "tol": 1e-7}
# Positions, at most, of which the S x S moments are formed for that (512 MB). Beyond,
# a few random starts are compared on a few samples.
LARGEST_FORMED = 8192

# How far the parts are taken beyond their solution, as a multiple of their last move.
FIRST_EXTRAPOLATION = 0.5
LONGEST_EXTRAPOLATION = 2.0
GROWTH = 1.5
SHRINKAGE = 0.5


def spg(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    *,
    learning_rate: float | None = None,
    max_iter: int,
    tol: float,
    batch_size: int | None = None,
    constraint: Constraint,
    generator: torch.Generator,
    callback: Callback | None = None,
    grow: bool = False,
) -> SolverResult:
    """Minimise the objective by alternation on second moments.

    Parameters
    ----------
    Z, A : Tensor
        Shapes (N, C, S) and (C, R_C).

    P : Tensor of shape (S, R_S) or (K, S, R_S)
        A start; or K of them, of which the best is that with the lowest objective
        once each is descended from, with A held.

    learning_rate : None
        There is none to choose.

    batch_size : int, default=None
        Number of samples whose products are formed at a time; changes nothing else.

    grow : bool, default=False
        Whether to add a start that is grown from the data to the K.

    max_iter, tol, constraint, generator, callback
        As for every solver.
    """
    nonnegative = not constraint.rotatable
    dtype = accumulator_dtype(Z.device)
    A, P = A.to(dtype), P.to(dtype)
    energy = sample_energies(Z).sum()
    products = Z.dtype
    if not energy > 0:
        A, P = torch.zeros_like(A), P.new_zeros(P.shape[-2:])
        reason = "the data are all zero"
        return SolverResult(A.to(Z), P.to(Z), 1, [0.0], True, reason)
    if P.ndim == 3:
        draws = P, generator, grow
        P, f = _best_start(Z, A, *draws, energy, batch_size, nonnegative, products)
        if cancels(f, 1.0, Z):
            products = dtype
            P, _ = _best_start(Z, A, *draws, energy, batch_size, nonnegative, products)
    P = revived(P, generator)

    fit = _Alternation(Z, A, P, energy, batch_size, nonnegative, products)
    history: list[float] = []
    converged, reason = False, "max_iter was reached"
    for n_iter in range(1, max_iter + 1):
        before = fit.f
        fit.advance()
        history.append(max(fit.f, 0.0) * float(energy) / len(Z))
        if fit.f == before:
            converged, reason = True, "no step lowers the objective any further"
        elif before - fit.f < tol:
            converged = True
            reason = f"the relative objective fell by less than tol={tol:g}"
        if callback is not None and callback(n_iter, history[-1]) and not converged:
            reason = "the callback asked to stop"
            break
        if converged:
            break
    A, P = (factor.to(Z) for factor in fit.canonical())
    if cancels(fit.f, 1.0, Z):  # that of the factors as they are rounded
        history[-1] = max(float(total_objective(Z, A, P)), 0.0) / len(Z)
    return SolverResult(A, P, len(history), history, converged, reason)


class _Alternation:
    """Factors that get better with each :meth:`advance`.

    Attributes
    ----------
    A, P : Tensor

    f : float
        The objective as a share of the energy; infinite before the first iteration.

    products : torch.dtype
        Type of the products over samples, the widest once f asks for it.
    """

    def __init__(
        self,
        Z: Tensor,
        A: Tensor,
        P: Tensor,
        energy: Tensor,
        batch_size: int | None,
        nonnegative: bool,
        products: torch.dtype,
    ) -> None:
        self.Z, self.A, self.P = Z, A, P
        self.energy, self.batch_size = energy, batch_size
        self.products = products
        self.nonnegative = nonnegative
        shape = *Z.shape[1:], A.shape[1], P.shape[1]
        self.factored = nonnegative and is_cheaper_factored(*shape)
        self.f = float("inf")
        self.fall = FIRST_FALL
        self.solution: Tensor | None = None  # the parts before they were extrapolated
        self.extrapolation = FIRST_EXTRAPOLATION

    def advance(self) -> None:
        """Solve for the parts, then for the appearances.

        Leaves everything as it is where that would raise the objective, as rounding
        can.
        """
        form = factored_part_moments if self.factored else part_moments
        of_parts = form(self.Z, self.A, **self._options())
        tol = max(EXACT, EXACT_RELATIVE * self.fall)
        solution, f_solution = solve_parts(of_parts, self.P, self.nonnegative, tol)
        P, of_appearances, A, f = self._extrapolate(solution, f_solution)
        if self.products == self.Z.dtype and cancels(f, 1.0, self.Z):
            self.products = accumulator_dtype(self.Z.device)
            self.f, self.solution = float("inf"), None  # what came before is no measure
            self.advance()
            return
        if not f < self.f:
            return
        self.fall = min(self.f - f, 1.0)
        self.A, self.P, self.f, self.solution = A, P, f, solution
        M1P, M2P = of_parts.products(P[None])
        self.part_products, self.of_appearances = (M1P[0], M2P[0]), of_appearances

    def _extrapolate(
        self, solution: Tensor, f_solution: float
    ) -> tuple[Tensor, Moments, Tensor, float]:
        """Parts at or beyond the solution, and the best appearances there.

        Beyond it, if the objective is no higher than it was at the solution.
        """
        if self.nonnegative and self.solution is not None:
            move = self.extrapolation * (solution - self.solution)
            beyond = self._with_appearances((solution + move).clamp(min=0))
            if beyond[-1] <= f_solution:
                longer = GROWTH * self.extrapolation
                self.extrapolation = min(longer, LONGEST_EXTRAPOLATION)
                return beyond
            self.extrapolation *= SHRINKAGE
        return self._with_appearances(solution)

    def _with_appearances(self, P: Tensor) -> tuple[Tensor, Moments, Tensor, float]:
        moments = appearance_moments(self.Z, P, **self._options())
        return P, moments, *solve_appearances(moments, self.A)

    def _options(self) -> dict[str, Any]:
        """Arguments of the functions that take moments."""
        return {
            "energy": self.energy,
            "batch_size": self.batch_size,
            "dtype": self.products,
        }

    def canonical(self) -> tuple[Tensor, Tensor]:
        """A and P in canonical form."""
        if not self.nonnegative:  # rotated by what they hold: exactly at A
            moments = part_moments(self.Z, self.A, **self._options())
            M1P, M2P = moments.products(self.P[None])
            self.part_products = M1P[0], M2P[0]
        A, P = self._canonical()
        wide = accumulator_dtype(self.Z.device)
        if self.products != wide and not bool(A.any(dim=0).all()):
            # Beyond the rank of the data, or of their products in single precision?
            self.products = wide
            moments = appearance_moments(self.Z, self.P, **self._options())
            self.A, self.f = solve_appearances(moments, self.A)
            self.of_appearances = moments
            A, P = self._canonical()
        return A, P

    def _canonical(self) -> tuple[Tensor, Tensor]:
        A, P, _ = canonical(
            self.A,
            self.P,
            self.part_products,
            self.of_appearances,
            constraint=NONNEGATIVE if self.nonnegative else FREE,
        )
        return A, P


def _best_start(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    generator: torch.Generator,
    grow: bool,
    energy: Tensor,
    batch_size: int | None,
    nonnegative: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, float]:
    """The best of the starts, and of one grown from the data, once descended from.

    Also its share of the energy.
    """
    _, S, R_S = P.shape
    if not nonnegative:  # the parts' problem is solved without a start
        return P.new_ones(S, R_S), 1.0
    given: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "energy": energy}
    moments: Moments | FactoredMoments
    if S <= LARGEST_FORMED:
        formed = moments = part_moments(Z, A, **given)
        if grow:
            grown = grown_parts(formed.M1, R_S, generator, formed.eps)
            P = torch.cat([grown[None], P])
    else:
        if len(P) == 0:
            P = random_parts(S, R_S, generator).to(P)[None]
        P = P[:FINALISTS]
        some = Z[:: -(-len(Z) // 16)]
        given["energy"] = sample_energies(some).sum()
        moments = factored_part_moments(some, A, **given)
    P, f = _descend(moments, P, True, COMPARISON)
    P, f = _descend(moments, P[f.argsort()[:FINALISTS]], True, FINAL)
    return P[f.argmin()], float(f.min())


def solve_parts(
    moments: Moments | FactoredMoments,
    P: Tensor,
    nonnegative: bool,
    tol: float = EXACT,
) -> tuple[Tensor, float]:
    """Parts at which the objective is least near P, and its share of the energy."""
    if not nonnegative:
        assert isinstance(moments, Moments)
        P = leading_factor(moments, P.shape[1])
    formed = isinstance(moments, Moments)
    max_iter = DESCENT_ITERATIONS if formed else FACTORED_ITERATIONS
    options = {"max_iter": max_iter, "tol": tol}
    P, f = _descend(moments, P[None], nonnegative, options)
    return P[0], float(f[0])


def solve_appearances(moments: Moments, A: Tensor) -> tuple[Tensor, float]:
    """Appearances at which the objective is least, and its share of the energy."""
    C, R_C = A.shape
    leading = leading_factor(moments, R_C)
    f = relative_objective(moments, leading)
    if R_C == C:  # the minimum of a quadratic
        return leading, f
    best = leading if f <= relative_objective(moments, A) else A
    A, objectives = _descend(
        moments, best[None], False, {"max_iter": POLISH_ITERATIONS, "tol": EXACT}
    )
    return A[0], float(objectives[0])


def _descend(
    moments: Moments | FactoredMoments,
    X: Tensor,
    nonnegative: bool,
    options: dict,
) -> tuple[Tensor, Tensor]:
    """:func:`descend` where all problems share their moments."""
    return descend(
        lambda X, which: moments.products(X),
        X,
        energy=moments.energy.expand(len(X)),
        constraint=NONNEGATIVE if nonnegative else FREE,
        **options,
    )
