r"""Passes over all samples, with curvature from some that are kept in memory.

Each pass evaluates one pair of factors (A, P) by thin products alone. It finds

- the appearances' moments at P, from which the best appearances there follow exactly;
- the gradient in the parts.

The next pair is found on the kept samples alone. With s the energy of all samples over
that of the kept ones, their objective, corrected to first order,

.. math::

    s f_{kept}(A, P) + \langle \nabla_P f - s \nabla_P f_{kept}, P \rangle,

is minimised by turns in the parts and in the appearances, whose moments are corrected
likewise. So the kept samples provide the curvature, and all samples determine where the
minimum is (as in DANE: Shamir, Srebro, Zhang, "Communication-efficient distributed
optimization using an approximate Newton-type method", ICML 2014). Both corrections
depend on A through AA' alone, as the objective does. A correction linear in A would
not, and the fit would run off along rotations of A. Where the kept samples lead
nowhere, because there are many minima or because they are unlike the others, the
alternation goes on with all samples, in more passes.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from panda_sklearn.core.channels import Summary
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    appearance_moments,
    factored_part_moments,
    part_moments,
    thin_products,
)
from panda_sklearn.core.objective import accumulator_dtype, cancels
from panda_sklearn.core.samples import Samples
from panda_sklearn.core.threads import ThreadsFor
from panda_sklearn.solvers.alternation import (
    Alternation,
    solve_appearances,
    solve_parts,
)
from panda_sklearn.solvers.base import STUCK, Iteration
from panda_sklearn.solvers.choosing import LARGEST_FORMED
from panda_sklearn.solvers.descent import products_of, relative_objective

__all__ = ["Passes"]

# How often, at most, parts and appearances are solved for by turns between two passes.
# The turns end with one that brings less than this fraction of what all have brought.
TURNS = 3
HELPFUL = 0.1
# The descent between passes ends when a step promises less than this fraction of tol.
FRACTION_OF_TOL = 5e-2
# Convergence is slow if a pass brings more than this fraction of what the last one
# brought. Then steps go further than the kept samples lead, by a multiple that grows.
SLOW = 0.4
FURTHER, GROWTH = 0.7, 1.5
# How many passes in a row may fail to lower the objective, and the fraction of a failed
# step that the next one takes.
FAILURES = 3
SHORTER = 0.25


class Passes:
    """Factors that each pass over all samples improves.

    Attributes
    ----------
    A, P : Tensor
        The best appearances at the best parts so far.

    f : float
        Their objective as a fraction of the energy.
    """

    past = None  # no moments of earlier samples, as in streams

    def __init__(
        self,
        samples: Samples,
        known: Summary,
        begun: Alternation,
        *,
        tol: float,
        lightly: ThreadsFor,
    ) -> None:
        self.samples, self.kept = samples, known.kept
        self.energy, self.energy_of_kept = known.energy, known.energy_of_kept
        self.n_samples = known.n_samples
        self.ratio = float(known.energy / known.energy_of_kept)  # s
        self.dtype, self.factored = begun.dtype, begun.factored_parts
        self.constraint = begun.constraint
        self.tol, self.inner_tol = tol, FRACTION_OF_TOL * tol
        self.f = float("inf")
        self.next = begun.A, begun.P  # the factors of the next pass
        # The kept samples' moments of the parts, at the appearances of the next pass.
        self.moments: Moments | FactoredMoments | None = None
        self.lightly = lightly
        C, S = samples.n_channels, samples.n_positions
        R_C, R_S = begun.A.shape[1], begun.P.shape[1]
        per_sample = R_S * C * (3 * S + 2 * C + 2 * R_C)
        self.in_pass = ThreadsFor(known.n_samples * per_sample)
        self.n_failures = 0
        self.fall, self.further = float("inf"), FURTHER
        # Factors to go back to, if the next are too far.
        self.safe: tuple[Tensor, Tensor] | None = None
        # The alternation on all samples, once the kept samples lead nowhere.
        self.whole: Alternation | None = None

    def step(self, n_iter: int) -> Iteration:
        """Evaluate the next factors, and choose those of the pass after it."""
        if self.whole is not None:
            return self._step_of_all(self.whole, n_iter)
        A, P = self.next
        of_appearances, part_products = self.in_pass(
            thin_products,
            self.samples,
            A,
            P,
            energy=self.energy,
            dtype=self.dtype,
        )
        best, f = self.lightly(solve_appearances, of_appearances, A)
        if self.dtype == self.samples.dtype and cancels(f, 1.0, self.samples):
            self.dtype = accumulator_dtype(self.samples.device)
            self.f, self.moments = float("inf"), None  # they are not exact enough
            return self.step(n_iter)
        end, failed = "", False
        if f < self.f:
            fall, self.f, self.n_failures = self.f - f, f, 0
            slow = fall > SLOW * self.fall
            self.fall, self.further = fall, GROWTH * self.further if slow else FURTHER
            self.A, self.P = best, P
            self.of_appearances, self.part_products = of_appearances, part_products
            if not fall < self.tol:  # else this is the last pass
                loss = relative_objective(of_appearances, A) - f
                promised = self.lightly(self._look_ahead, A, loss)
                if not promised > self.tol:
                    end = "no step promises to lower the objective by more than tol"
                if slow:
                    self._go_further()
        elif self.n_failures < FAILURES:
            self.n_failures, failed = self.n_failures + 1, True
            self.moments, self.further = None, FURTHER
            if self.safe is not None:
                self.next, self.safe = self.safe, None
            else:
                self.next = self.A, self.P + SHORTER * (P - self.P)
        elif self.samples.n_positions > LARGEST_FORMED:
            end = STUCK
        else:
            self.whole = Alternation(
                self.samples,
                self.A,
                self.P,
                energy=self.energy,
                constraint=self.constraint,
                dtype=self.dtype,
                tol=self.tol,
                factored=False,
            )
            self.whole.f, failed = self.f, True
        energy = float(self.energy)
        return Iteration(self.f * energy, energy, self.n_samples, end, failed)

    def _step_of_all(self, whole: Alternation, n_iter: int) -> Iteration:
        """Take a step of the alternation on all samples, which takes several passes."""
        iteration = whole.step(n_iter)
        if whole.f < self.f or whole.dtype != self.dtype:
            self.A, self.P, self.f = whole.A, whole.P, whole.f
            self.dtype = whole.dtype
            self.part_products = whole.part_products
            assert isinstance(whole.of_appearances, Moments)  # never factored here
            self.of_appearances = whole.of_appearances
        return iteration

    def _go_further(self) -> None:
        """Look beyond the factors that the kept samples lead to, to speed up."""
        self.safe = A, P = self.next
        move = self.further * (P - self.P)
        self.next = A, self.constraint.project(P + move)

    def _look_ahead(self, A: Tensor, loss: float) -> float:
        """Choose the next factors by the kept samples; return the fall they promise.

        The last pass was at the best parts and at A, which is worse than the best
        appearances by ``loss``.
        """
        P, options = self.P, self._options()
        if self.moments is None:
            _, own_products = thin_products(self.kept, A, P, **options)
        else:
            own_products = products_of(self.moments, P)
        linear = _gradient(P, self.part_products) / self.ratio
        linear -= _gradient(P, own_products)
        if self.moments is None or loss > self.tol:
            A = self._move_to(self.A)
        then, promised = None, 0.0
        for turn in range(TURNS):
            if turn:
                if then is None:
                    then = appearance_moments(self.kept, self.P, **options)
                now = appearance_moments(self.kept, P, **options)
                corrected = self._corrected(now, then)
                before = relative_objective(corrected, A)
                better, f = solve_appearances(corrected, A)
                if not before - f > self.tol:
                    break
                A = self._move_to(better)
            P, fall = self._descend(P, linear)
            promised += fall
            if not fall > max(self.tol, HELPFUL * promised):
                break
        self.next = A, P
        return promised

    def _move_to(self, A: Tensor) -> Tensor:
        """Set the kept samples' moments to those at other appearances; return these."""
        form = factored_part_moments if self.factored else part_moments
        self.moments = form(self.kept.Z, A, **self._options())
        return A

    def _options(self) -> dict[str, Any]:
        """Return the options of the functions that compute the kept moments."""
        return {"energy": self.energy_of_kept, "dtype": self.dtype}

    def _corrected(self, now: Moments, then: Moments) -> Moments:
        """Return the appearances' moments of all, by the change of the kept ones'."""
        known, s = self.of_appearances, self.ratio
        M1 = known.M1 + s * (now.M1 - then.M1)
        return Moments(M1, known.M2 + s * (now.M2 - then.M2), self.energy, known.eps)

    def _descend(self, P: Tensor, linear: Tensor) -> tuple[Tensor, float]:
        """Return parts that minimise the corrected objective, and how far it fell."""
        moments = self.moments
        assert moments is not None
        before = _value(P, products_of(moments, P), linear)
        P, _ = solve_parts(moments, P, self.constraint, self.inner_tol, linear=linear)
        after = _value(P, products_of(moments, P), linear)
        return P, float((before - after) / self.energy_of_kept)


def _gradient(P: Tensor, products: tuple[Tensor, Tensor]) -> Tensor:
    """Return the gradient (4), from M1 P and M2 P."""
    M1P, M2P = products
    return 2 * (P @ (P.T @ M2P) + M2P @ (P.T @ P)) - 4 * M1P


def _value(P: Tensor, products: tuple[Tensor, Tensor], linear: Tensor) -> Tensor:
    """Return the objective less the energy, with a linear term."""
    M1P, M2P = products
    return ((P.T @ P) * (P.T @ M2P)).sum() + (P * (linear - 2 * M1P)).sum()
