"""Adam through automatic differentiation (section 4.3.3 of the paper).

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.objective import objective_of
from panda_sklearn.solvers.base import (
    EPS,
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

# The default learning rate, for a column of one entry. Adam moves every entry by about
# the rate in each iteration, and the entries of columns of unit norm are of size
# 1 / sqrt(number of rows); so the rate is divided by that root.
RATE_OF_UNIT_COLUMN = 0.1


def fit_adam(
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
    """Minimise the objective with Adam on both factors at once, projecting P.

    The loss is the objective divided by the batch's sum of squares, so that Adam's
    guard against division by zero does not depend on the scale of Z.

    With ``learning_rate=None`` the rate is 0.1 / sqrt(max(C, S)).

    Raises
    ------
    DivergenceError
        If the given learning rate is too large.
    """
    if Z.is_inference():  # made under torch.inference_mode, which autograd refuses
        Z = Z.clone()
    batches = draw_batches(Z, batch_size, generator)
    batch = next(batches)
    whole = batch.size == len(Z)
    rate = learning_rate
    if rate is None:
        rate = RATE_OF_UNIT_COLUMN / max(Z.shape[1:]) ** 0.5
    A, P = A.clone().requires_grad_(), P.clone().requires_grad_()
    optimiser = torch.optim.Adam([A, P], lr=rate)
    # Adam's first step makes its counters on the process's default device.
    cpu = torch.device("cpu")

    def relative_objective(batch: Batch) -> tuple[Tensor, Tensor]:
        unit = batch.energy.clamp(min=EPS)
        return objective_of(batch.Z, A, P, energy=batch.energy) / unit, unit

    with torch.enable_grad():
        loss, unit = relative_objective(batch)
        f = float(loss.detach() * unit)
        limit = divergence_limit(f, batch)

        def advance(n_iter: int) -> Iteration:
            nonlocal loss, unit, f, batch
            if n_iter > 1 and not whole:
                batch = next(batches)
                loss, unit = relative_objective(batch)
                f = float(loss.detach() * unit)
            optimiser.zero_grad()
            loss.backward()
            with cpu if n_iter == 1 else contextlib.nullcontext():
                optimiser.step()
            with torch.no_grad():
                P.copy_(constraint.project(P))
            # Without batches, the next iteration starts from this objective.
            with torch.set_grad_enabled(whole):
                loss, unit = relative_objective(batch)
            before, f = f, float(loss.detach() * unit)
            check_not_diverged(f, batch, P.detach(), n_iter, rate, limit)
            return batch.iteration(f if whole else before)

        def result(course: Course) -> SolverResult:
            now_A, now_P = A.detach().clone(), P.detach().clone()  # changed in place
            if batch_size is not None:
                course.objective_history[-1] = mean_objective(Z, now_A, now_P)
            return SolverResult(now_A, now_P, *course)

        course = iterate(
            advance,
            rule=StoppingRule.of_passes(tol, len(Z), batch_size),
            max_iter=max_iter,
            watcher=watcher,
            result=result,
        )
        return result(course)
