"""Loops over the mathematics that minimise the objective.

Depends on torch and :mod:`panda_sklearn.core` alone: knows nothing of numpy,
scikit-learn or networks.

A solver is a function that returns a :class:`SolverResult`, and an entry in ``SOLVERS``
that says what it needs and can do.
"""

from panda_sklearn.solvers.adam import fit_adam
from panda_sklearn.solvers.alternation import Past
from panda_sklearn.solvers.base import (
    STOPPED,
    DivergenceError,
    SolverResult,
    Watcher,
)
from panda_sklearn.solvers.pgd import fit_pgd
from panda_sklearn.solvers.refinement import refine_parts
from panda_sklearn.solvers.spg import fit_spg
from panda_sklearn.solvers.starting import SOLVERS, Solver, best_fit
from panda_sklearn.solvers.streaming import learn

__all__ = [
    "SOLVERS",
    "STOPPED",
    "DivergenceError",
    "Past",
    "Solver",
    "SolverResult",
    "Watcher",
    "best_fit",
    "fit_adam",
    "fit_pgd",
    "fit_spg",
    "learn",
    "refine_parts",
]
