"""Projected gradient descent: Algorithm 1 of the paper.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.objective import (
    gradient_appearances,
    gradient_parts,
    objective_of,
)
from panda_sklearn.solvers.base import (
    STUCK,
    Batch,
    Course,
    Iteration,
    SolverResult,
    StoppingRule,
    Watcher,
    check_not_diverged,
    divergence_limit,
    draw_batches,
    iterate,
    mean_objective,
)

# The automatic step, as a multiple of 1 / (sum of squares of the batch): the first, its
# growth after a step that lowered the objective, and its shrinkage after one that did
# not. After so many shrinkages in a row the factors count as stationary.
FIRST_STEP = 0.25
GROWTH = 1.2
SHRINKAGE = 0.5
MAX_SHRINKAGES = 40
# With batches it is shortened when passes over the data stop helping: by how much, and
# how often before the fit counts as converged.
ANNEALING = 0.25
MAX_ANNEALINGS = 4


def fit_pgd(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    *,
    learning_rate: float | None,
    max_iter: int,
    tol: float,
    batch_size: int | None,
    constraint: Constraint,
    generator: torch.Generator,
    watcher: Watcher | None = None,
) -> SolverResult:
    """Minimise the objective by Algorithm 1.

    Each iteration takes a gradient step in P and projects it, then one in A at the
    new P, both with the same learning rate. Gradients are sums over the batch.

    With ``learning_rate=None`` the step is a multiple of 1 / (sum of squares of the
    batch), which makes the fit independent of the scale of Z. An iteration that would
    not lower its batch's objective is taken back and tried with half the step; one
    that does lets the next step grow by a fifth. With batches, the longest step that
    is allowed falls to a quarter whenever the passes over the data stop helping, four
    times at most. A start that is worse than no factors at all is scaled down first.

    Raises
    ------
    DivergenceError
        If the given learning rate is too large.
    """
    batches = draw_batches(Z, batch_size, generator)
    batch = next(batches)
    whole = batch.size == len(Z)
    automatic = AutomaticStep()
    W = batch.Z @ P
    f = float(objective_of(batch.Z, A, P, W=W, energy=batch.energy))
    if learning_rate is None:
        P, W, f = scale_down(batch, A, P, W, f)
    limit = divergence_limit(f, batch)

    def advance(n_iter: int) -> Iteration:
        nonlocal A, P, W, f, batch
        if n_iter > 1 and not whole:
            batch = next(batches)
            W = batch.Z @ P
            f = float(objective_of(batch.Z, A, P, W=W, energy=batch.energy))
        before = f
        if learning_rate is None:
            A, P, W, f = automatic.take(batch, A, P, W, f, constraint)
        else:
            gradient = gradient_parts(batch.Z, A, P, W=W)
            A, P, W, f = step(batch, A, P, gradient, learning_rate, constraint)
            check_not_diverged(f, batch, P, n_iter, learning_rate, limit)
        end = STUCK if whole and automatic.stuck else ""
        return batch.iteration(f if whole else before, end)

    def result(course: Course) -> SolverResult:
        if batch_size is not None:
            course.objective_history[-1] = mean_objective(Z, A, P)
        return SolverResult(A, P, *course)

    course = iterate(
        advance,
        rule=StoppingRule.of_passes(tol, len(Z), batch_size),
        max_iter=max_iter,
        watcher=watcher,
        result=result,
        on_plateau=None if whole or learning_rate is not None else automatic.anneal,
    )
    return result(course)


class AutomaticStep:
    """Steps whose length adapts to what the objective does."""

    def __init__(self) -> None:
        self.multiple = FIRST_STEP
        self.longest = float("inf")
        self.n_annealings = 0
        self.stuck = False

    def take(
        self,
        batch: Batch,
        A: Tensor,
        P: Tensor,
        W: Tensor,
        f: float,
        constraint: Constraint,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Take the first of ever shorter steps that does not raise the objective.

        Returns what :func:`step` does; where no step helps, what was given.
        """
        energy = float(batch.energy)
        if energy == 0:
            return A, P, W, f
        gradient = gradient_parts(batch.Z, A, P, W=W)
        for _ in range(MAX_SHRINKAGES):
            rate = self.multiple / energy
            trial = step(batch, A, P, gradient, rate, constraint)
            if trial[3] <= f and self._spares_parts(P, trial[1]):
                self.multiple = min(self.multiple * GROWTH, self.longest)
                return trial
            self.multiple *= SHRINKAGE
        self.stuck = True
        self.multiple = min(FIRST_STEP, self.longest)
        return A, P, W, f

    def _spares_parts(self, before: Tensor, after: Tensor) -> bool:
        """Whether a step loses no part for good that a shorter one would spare."""
        alive, left = before.any(dim=0).sum(), after.any(dim=0).sum()
        return bool(left > 0 if self.multiple <= FIRST_STEP else left >= alive)

    def anneal(self) -> bool:
        """Allow only shorter steps from now on; return whether that was possible."""
        if self.n_annealings == MAX_ANNEALINGS:
            return False
        self.n_annealings += 1
        self.multiple = self.longest = ANNEALING * self.multiple
        return True


def scale_down(
    batch: Batch, A: Tensor, P: Tensor, W: Tensor, f: float
) -> tuple[Tensor, Tensor, float]:
    """Return P, W and f; scaled by the best factor where f is above that of P = 0.

    As a function of the factor c of P the objective is E - 2 a c^2 + b c^4, with
    a = sum ||L_i||^2.
    """
    energy = float(batch.energy)
    if f <= energy:
        return P, W, f
    a = float(torch.einsum("cr,nck->nrk", A, W).square().sum(dtype=batch.energy.dtype))
    b = f - energy + 2 * a
    c = (a / b) ** 0.5
    return c * P, c * W, energy - a**2 / b


def step(
    batch: Batch,
    A: Tensor,
    P: Tensor,
    gradient: Tensor,
    learning_rate: float,
    constraint: Constraint,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Take one iteration of Algorithm 1, given the gradient in P.

    Returns
    -------
    A, P : Tensor
        The new factors.

    W : Tensor
        The batch's Z @ P for the new P.

    f : float
        The batch's objective at the new factors.
    """
    P = constraint.project(P - learning_rate * gradient)
    W = batch.Z @ P
    A = A - learning_rate * gradient_appearances(batch.Z, A, P, W=W)
    return A, P, W, float(objective_of(batch.Z, A, P, W=W, energy=batch.energy))
