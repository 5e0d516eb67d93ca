"""Running a solver from one start or several.

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.objective import total_objective
from panda_sklearn.core.starts import hosvd, random_appearances, random_parts
from panda_sklearn.solvers.adam import adam
from panda_sklearn.solvers.base import Callback, SolverResult
from panda_sklearn.solvers.pgd import pgd
from panda_sklearn.solvers.spg import spg

__all__ = ["SOLVERS", "best_fit"]

#: Solvers by the name that the estimator's ``solver`` parameter takes.
SOLVERS: dict[str, Callable[..., SolverResult]] = {
    "adam": adam,
    "pgd": pgd,
    "spg": spg,
}

# Starts of "spg", which are cheap.
N_STARTS = 10


def best_fit(
    Z: Tensor,
    R_C: int,
    R_S: int,
    *,
    solver: str,
    init: str | tuple[Tensor, Tensor],
    n_init: int | None,
    generator: torch.Generator,
    watched: Callable[[str], AbstractContextManager[Callback]],
    scatter: Tensor | None = None,
    **options: Any,
) -> SolverResult:
    """The best result of all starts.

    Parameters
    ----------
    Z : Tensor of shape (N, C, S)

    R_C, R_S : int
        Ranks.

    solver : str
        A key of ``SOLVERS``.

    init : {"hosvd", "random"} or pair of Tensor
        Where to start from: appearances as said, and parts from U(0, 0.01); or A and
        P themselves.

    n_init : int or None
        Number of starts. "spg" chooses among its starts itself; with "hosvd" the
        first of them is one that it makes of the data. ``None`` is ten for "spg" and
        one for the others and for a given start.

    generator : torch.Generator
        Draws the starts, and the order of batches.

    watched : callable
        Given a note about the start, a context that yields the solver's callback.

    scatter : Tensor of shape (C, C), default=None
        The channel scatter of Z, where it is known.

    **options
        For the solver.

    Returns
    -------
    result : SolverResult
    """
    _, C, S = Z.shape
    given = None if isinstance(init, str) else init
    chooses = solver == "spg" and given is None
    if n_init is None:
        n_init = N_STARTS if chooses else 1
    leading = None
    if init == "hosvd":
        # With all appearances, their space has no start to choose.
        if chooses and R_C == C:
            leading = torch.eye(C, dtype=Z.dtype, device=Z.device)
        else:
            leading = hosvd(Z, R_C, scatter=scatter)

    def draw() -> tuple[Tensor, Tensor]:
        if given is not None:
            return given
        P = random_parts(S, R_S, generator)
        A = random_appearances(C, R_C, generator) if leading is None else leading
        return A, P

    def run(A: Tensor, P: Tensor, note: str, **more: Any) -> SolverResult:
        with watched(note) as callback:
            return SOLVERS[solver](
                Z,
                A.to(Z),
                P.to(Z),
                generator=generator,
                callback=callback,
                **options,
                **more,
            )

    if chooses:
        drawn = [draw() for _ in range(n_init)]
        grow = leading is not None
        parts = torch.stack([P for _, P in drawn])
        return run(drawn[0][0], parts[1:] if grow else parts, "", grow=grow)
    best: SolverResult | None = None
    for number in range(1, n_init + 1):
        result = run(*draw(), f", start {number} of {n_init}" if n_init > 1 else "")
        if options.get("batch_size") is not None and solver != "spg":
            # A batch's own objective is no measure.
            whole = float(total_objective(Z, result.A, result.P)) / len(Z)
            result.objective_history[-1] = max(whole, 0.0)
        if best is None or result.objective_history[-1] < best.objective_history[-1]:
            best = result
    assert best is not None  # n_init is at least 1
    return best
