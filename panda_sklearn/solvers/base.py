"""What all solvers share: the record they return, batches, the stopping rule.

Floor 1: torch and :mod:`panda_sklearn.core` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_sklearn.core.objective import sample_energies

#: Called after each iteration with its number (from 1) and the mean objective of the
#: samples it used; a true answer ends the fit.
Callback = Callable[[int, float], object]


# Stands for the sum of squares of data that are all zero.
EPS = torch.finfo(torch.float32).tiny


class DivergenceError(ValueError):
    """The objective grew without bound or every part vanished."""


@dataclass(frozen=True)
class SolverResult:
    """What a solver returns.

    Attributes
    ----------
    A : Tensor of shape (C, R_C)
    P : Tensor of shape (S, R_S)
    n_iter : int
    objective_history : list of float
        Mean over samples of the objective (3), after each iteration; where it draws
        a batch, over the batch and before its step.
    converged : bool
        Whether the stopping rule, rather than ``max_iter`` or the callback, ended
        the fit.
    reason : str
        Why the fit ended, as a clause.
    """

    A: Tensor
    P: Tensor
    n_iter: int
    objective_history: list[float]
    converged: bool
    reason: str


@dataclass(frozen=True)
class Batch:
    """The samples of one iteration and the sum of their squares."""

    Z: Tensor
    energy: Tensor

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.Z)


def draw_batches(
    Z: Tensor, batch_size: int | None, generator: torch.Generator
) -> Iterator[Batch]:
    """Endless batches: always all of Z (one object), or pass after pass over the data.

    Each pass goes through the samples in a new random order. Orders are drawn on the
    CPU so that a seed means the same on every device.
    """
    if batch_size is None or batch_size >= len(Z):
        everything = Batch(Z, sample_energies(Z).sum())
        while True:
            yield everything
    while True:
        order = torch.randperm(len(Z), generator=generator, device="cpu")
        for chosen in order.split(batch_size):
            samples = Z[chosen.to(Z.device)]
            yield Batch(samples, sample_energies(samples).sum())


class Progress:
    """Keeps the history, applies the stopping rule and calls the callback.

    The rule: stop when the relative objective (a fraction of the data's sum of
    squares), averaged over a window of iterations, is less than ``10 tol`` below its
    average over the window before. A window is ten iterations with the full gradient;
    with batches as many whole passes over the data as make ten iterations or more.
    ``tol=0`` never stops.

    Before it stops, ``on_plateau`` is asked whether it can help the fit along; if it
    answers true, the rule starts anew.
    """

    def __init__(
        self,
        *,
        tol: float,
        n_samples: int,
        batch_size: int | None,
        callback: Callback | None,
        on_plateau: Callable[[], bool] | None = None,
    ) -> None:
        self.tol = tol
        self.on_plateau = on_plateau
        a_pass = math.ceil(n_samples / min(batch_size or n_samples, n_samples))
        self.window = a_pass * math.ceil(10 / a_pass)
        self.callback = callback
        self.history: list[float] = []
        self.sums: list[tuple[float, float]] = []  # objective and sum of squares
        self.converged = False
        self.reason = "max_iter was reached"

    def record(self, f: float, batch: Batch) -> bool:
        """Note the objective of an iteration; whether to stop."""
        self.history.append(max(f, 0.0) / batch.size)
        self.sums.append((f, float(batch.energy)))
        stop = self.callback is not None and self.callback(
            len(self.history), self.history[-1]
        )
        if stop:
            self.reason = "the callback asked to stop"
        elif self._stagnates():
            some = any(energy > 0 for _, energy in self.sums)
            if some and self.on_plateau is not None and self.on_plateau():
                self.sums.clear()
            elif self.tol > 0:
                self.finish(
                    f"the relative objective fell by less than tol={self.tol:g} an "
                    "iteration"
                )
        return bool(stop) or self.converged

    def finish(self, reason: str) -> None:
        """Note that the fit has converged, and why."""
        self.converged, self.reason = True, reason

    def _stagnates(self) -> bool:
        if len(self.sums) < 2 * self.window:
            return False

        def relative(iterations: list[tuple[float, float]]) -> float:
            f, energy = map(sum, zip(*iterations, strict=True))
            return f / energy if energy > 0 else 0.0

        before = relative(self.sums[-2 * self.window : -self.window])
        return before - relative(self.sums[-self.window :]) < 10 * self.tol

    def result(self, A: Tensor, P: Tensor) -> SolverResult:
        """The record to return."""
        return SolverResult(
            A=A,
            P=P,
            n_iter=len(self.history),
            objective_history=self.history,
            converged=self.converged,
            reason=self.reason,
        )


def divergence_limit(f: float, batch: Batch) -> float:
    """Relative objective that means divergence, from the objective at the start.

    Ten times that of the start, or of zero factors if that is more.
    """
    return 10 * max(1.0, f / max(float(batch.energy), EPS))


def check_not_diverged(
    f: float, batch: Batch, P: Tensor, n_iter: int, learning_rate: float, limit: float
) -> None:
    """Raise :class:`DivergenceError` when a step has destroyed the factors.

    That is when the relative objective is not finite or above ``limit``, or when
    every part is zero: then both gradients are zero for good.
    """
    energy = float(batch.energy)
    remedy = (
        f'Lower learning_rate: it was {learning_rate:g}. The solver "pgd" with '
        "learning_rate=None always finds a step that is short enough."
    )
    if not math.isfinite(f) or f > limit * max(energy, EPS):
        raise DivergenceError(
            f"The fit diverged at iteration {n_iter}: the mean objective is "
            f"{f / batch.size:g}, against {energy / batch.size:g} for no factors at "
            f"all. {remedy}"
        )
    if energy > 0 and not P.any():
        raise DivergenceError(
            f"Every part became zero at iteration {n_iter}: the step was too long. "
            f"{remedy}"
        )
