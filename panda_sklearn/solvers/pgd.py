"""Projected gradient descent: Algorithm 1 of the paper.

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.objective import (
    gradient_appearances,
    gradient_parts,
    objective,
)
from panda_sklearn.solvers.base import (
    EPS,
    Batch,
    Callback,
    Progress,
    SolverResult,
    check_not_diverged,
    divergence_limit,
    draw_batches,
)

# The automatic step, as a multiple of 1 / (sum of squares of the batch): how it
# begins, grows after a step that lowered the objective and shrinks after one that did
# not; and after how many shrinkings in a row the factors count as stationary.
FIRST_STEP = 0.25
GROWTH = 1.2
SHRINKAGE = 0.5
MAX_SHRINKAGES = 40


def pgd(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    *,
    learning_rate: float | None,
    max_iter: int,
    tol: float,
    batch_size: int | None,
    nonnegative: bool,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> SolverResult:
    """Minimise the objective by Algorithm 1.

    Each iteration takes a gradient step in P and projects it, then one in A at the
    new P, both with the same learning rate. Gradients are sums over the batch.

    With ``learning_rate=None`` the step is a multiple of 1 / (sum of squares of the
    batch), which makes the fit independent of the scale of Z. An iteration that would
    not lower its batch's objective is taken back and tried with half the step; one
    that does lets the next step grow by a fifth.

    Raises
    ------
    DivergenceError
        If the given learning rate is too large.
    """
    batches = draw_batches(Z, batch_size, generator)
    batch = next(batches)
    progress = Progress(
        tol=tol, n_samples=len(Z), batch_size=batch_size, callback=callback
    )
    W = batch.Z @ P
    multiple = FIRST_STEP
    f = float(objective(batch.Z, A, P, W=W, energy=batch.energy))
    limit = divergence_limit(f, batch)
    for n_iter in range(1, max_iter + 1):
        if n_iter > 1 and (drawn := next(batches)) is not batch:
            batch, W = drawn, drawn.Z @ P
            if learning_rate is None:
                f = float(objective(batch.Z, A, P, W=W, energy=batch.energy))
        gradient = gradient_parts(batch.Z, A, P, W=W)
        if learning_rate is not None:
            A, P, W, f = step(batch, A, P, gradient, learning_rate, nonnegative)
            check_not_diverged(f, batch, P, n_iter, learning_rate, limit)
        else:
            unit = 1 / max(float(batch.energy), EPS)
            for _ in range(MAX_SHRINKAGES):
                trial = step(batch, A, P, gradient, multiple * unit, nonnegative)
                if trial[3] <= f:
                    A, P, W, f = trial
                    multiple *= GROWTH
                    break
                multiple *= SHRINKAGE
            else:
                multiple = FIRST_STEP
                if batch.size == len(Z):
                    progress.finish("no step lowers the objective any further")
        if progress.record(f, batch):
            break
    return progress.result(A, P)


def step(
    batch: Batch,
    A: Tensor,
    P: Tensor,
    gradient: Tensor,
    learning_rate: float,
    nonnegative: bool,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One iteration of Algorithm 1, given the gradient in P.

    Returns
    -------
    A, P : Tensor
        The new factors.

    W : Tensor
        The batch's Z @ P for the new P.

    f : float
        The batch's objective at the new factors.
    """
    P = P - learning_rate * gradient
    if nonnegative:
        P = P.clamp(min=0)
    W = batch.Z @ P
    A = A - learning_rate * gradient_appearances(batch.Z, A, P, W=W)
    return A, P, W, float(objective(batch.Z, A, P, W=W, energy=batch.energy))
