"""Loops over the mathematics that minimise the objective.

Floor 1 of the package: torch and :mod:`panda_sklearn.core` alone; knows nothing of
numpy arrays, scikit-learn or networks.

A solver is a function ``solver(Z, A, P, *, learning_rate, max_iter, tol, batch_size,
constraint, generator, callback)`` that returns a :class:`SolverResult`. A new one
enters the package by a line in ``SOLVERS``.
"""

from panda_sklearn.solvers.adam import adam
from panda_sklearn.solvers.base import Callback, DivergenceError, SolverResult
from panda_sklearn.solvers.pgd import pgd
from panda_sklearn.solvers.refinement import refine_parts
from panda_sklearn.solvers.spg import spg
from panda_sklearn.solvers.starting import SOLVERS, best_fit
from panda_sklearn.solvers.streaming import Past, learn

__all__ = [
    "SOLVERS",
    "Callback",
    "DivergenceError",
    "Past",
    "SolverResult",
    "adam",
    "best_fit",
    "learn",
    "pgd",
    "refine_parts",
    "spg",
]
