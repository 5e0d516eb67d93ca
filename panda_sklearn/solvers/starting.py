"""The solvers, what each needs and can do, and running one from a start or several.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.core.starts import hosvd, random_appearances, random_parts
from panda_sklearn.solvers.adam import fit_adam
from panda_sklearn.solvers.base import SolverResult, Watcher
from panda_sklearn.solvers.pgd import fit_pgd
from panda_sklearn.solvers.spg import fit_spg

__all__ = ["SOLVERS", "Solver", "best_fit"]


@dataclass(frozen=True)
class Solver:
    """A solver, and what the estimator needs to know of it.

    Attributes
    ----------
    run : callable
        ``run(samples, R_C, R_S, init=, n_init=, ...)`` for one that chooses its starts,
        else ``run(Z, A, P, ...)``; returns a :class:`SolverResult`.

    chooses_starts : bool
        Whether it draws all starts and finds the best itself.

    reads_in_order : bool
        Whether passes over the samples are all it needs. If not, samples must be in
        memory.

    learns_from_streams : bool
        Whether ``partial_fit`` can go on from what it found.

    takes_rate : bool
        Whether it takes ``learning_rate``, and ``batch_size`` for the number of samples
        of an iteration.
    """

    run: Callable[..., SolverResult]
    chooses_starts: bool = False
    reads_in_order: bool = False
    learns_from_streams: bool = False
    takes_rate: bool = False


#: Solvers by the name that the estimator's ``solver`` parameter takes.
SOLVERS = {
    "adam": Solver(fit_adam, takes_rate=True),
    "pgd": Solver(fit_pgd, takes_rate=True),
    "spg": Solver(
        fit_spg, chooses_starts=True, reads_in_order=True, learns_from_streams=True
    ),
}


def best_fit(
    samples: Samples,
    R_C: int,
    R_S: int,
    *,
    solver: Solver,
    init: str | tuple[Tensor, Tensor],
    n_init: int | None,
    generator: torch.Generator,
    watcher: Watcher,
    **options: Any,
) -> SolverResult:
    """Fit from each start, and return the best result.

    Parameters
    ----------
    samples : Samples
        In memory, unless the solver reads in order.

    R_C, R_S : int
        Ranks.

    solver : Solver

    init : {"hosvd", "random"} or pair of Tensor
        Where to start from: A as named, with entries of P from U(0, 0.01); or A and P
        themselves.

    n_init : int or None
        Number of starts. ``None`` is one, or the number that the solver chooses.

    generator : torch.Generator
        Draws the starts, and the order of batches.

    watcher : Watcher
        Told of the starts and their iterations. A solver that chooses among its starts
        counts as one.

    **options
        Options of the solver.

    Returns
    -------
    result : SolverResult
    """
    options |= {"generator": generator, "watcher": watcher}
    if solver.chooses_starts:
        watcher.begin_start(1, 1)
        result = solver.run(samples, R_C, R_S, init=init, n_init=n_init, **options)
        watcher.end_start(result)
        return result
    assert isinstance(samples, InMemory)
    Z = samples.Z
    leading = hosvd(Z, R_C) if init == "hosvd" else None

    def draw() -> tuple[Tensor, Tensor]:
        if not isinstance(init, str):
            return init
        P = random_parts(samples.n_positions, R_S, generator)
        if leading is not None:
            return leading, P
        return random_appearances(samples.n_channels, R_C, generator), P

    best: SolverResult | None = None
    n_init = n_init or 1
    for number in range(1, n_init + 1):
        A, P = draw()
        watcher.begin_start(number, n_init)
        result = solver.run(Z, A.to(Z), P.to(Z), **options)
        if best is None or result.objective_history[-1] < best.objective_history[-1]:
            best = result
        if watcher.end_start(best):
            break
    assert best is not None  # n_init is at least 1
    return best
