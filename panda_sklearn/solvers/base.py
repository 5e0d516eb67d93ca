"""What all solvers share: the record they return, batches, the stopping rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from panda_sklearn.core.channels import ChannelMoments
from panda_sklearn.core.objective import sample_energies, total_objective

# Stands for the sum of squares of data that are all zero.
EPS = torch.finfo(torch.float32).tiny

# The reason of a fit that ends where no step leads down.
STUCK = "no step lowers the objective any further"

# Why it ends where a watcher asks for that.
STOPPED = "a callback asked to stop"


class DivergenceError(ValueError):
    """The objective grew without bound or every part vanished."""


@dataclass(frozen=True)
class SolverResult:
    """What a solver returns.

    Attributes
    ----------
    A : Tensor of shape (C, R_C)
    P : Tensor of shape (S, R_S)
    objective_history : list of float
        Mean over samples of the objective (3), after each iteration. Where it draws
        batches: over the batch and before its step, but for the last value, which is
        over all samples at the end.
    converged : bool
        Whether the stopping rule, rather than ``max_iter`` or a watcher, ended the
        fit.
    reason : str
        Why the fit ended, as a clause.
    channels : ChannelMoments or None
        Those of the samples, if the solver computed them.
    """

    A: Tensor
    P: Tensor
    objective_history: list[float]
    converged: bool
    reason: str
    channels: ChannelMoments | None = None

    @property
    def n_iter(self) -> int:
        """Number of iterations."""
        return len(self.objective_history)


class Watcher:
    """Is told when starts and iterations begin and end; this one ignores it."""

    def begin_start(self, number: int, n_starts: int) -> None:
        """The next start begins; ``number`` counts from 1."""

    def end_start(self, best: SolverResult) -> bool:
        """It has ended, and this is the best result so far; whether to stop here."""
        return False

    def begin_iteration(self) -> None:
        """The next iteration begins."""

    def end_iteration(
        self, objective: float, result: Callable[[], SolverResult]
    ) -> bool:
        """It has ended; whether to stop here.

        Parameters
        ----------
        objective : float
            Mean objective of the samples that it used.

        result : callable
            Returns what the solver would if it stopped here. It changes nothing, but
            may go through the samples.
        """
        return False


@dataclass(frozen=True)
class Iteration:
    """What came of a step of a solver.

    Attributes
    ----------
    f, energy : float
        Objective and sum of squares of the samples that the step used.

    n_samples : int
        Number of these samples.

    end : str
        Why no further step is needed, as a clause; empty if one may be.

    failed : bool
        Whether it did not lower the objective and another step is to be tried. This is
        no sign of convergence.
    """

    f: float
    energy: float
    n_samples: int
    end: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Batch:
    """The samples of one iteration and the sum of their squares."""

    Z: Tensor
    energy: Tensor

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.Z)

    def iteration(self, f: float, end: str = "") -> Iteration:
        """Return the record of a step on these samples that ends at the objective f."""
        return Iteration(f, float(self.energy), self.size, end)


def draw_batches(
    Z: Tensor, batch_size: int | None, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield batches without end: always all of Z, or pass after pass over the data.

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


class StoppingRule:
    """Stop when the objective hardly falls any more.

    That is when the relative objective (a fraction of the data's sum of squares),
    averaged over a window of iterations, is less than ``fall`` below its average over
    the window before.

    Parameters
    ----------
    tol : float
        The tolerance that ``reason`` names. With 0 the rule never ends a fit.

    window : int, default=1
        Number of iterations.

    fall : float, default=None
        ``None`` is ``tol``.
    """

    def __init__(self, tol: float, *, window: int = 1, fall: float | None = None):
        self.tol, self.window = tol, window
        self.fall = tol if fall is None else fall
        self.reason = f"the relative objective fell by less than tol={tol:g}" + (
            " an iteration" if window > 1 else ""
        )
        self.restart()

    @classmethod
    def of_passes(
        cls, tol: float, n_samples: int, batch_size: int | None
    ) -> StoppingRule:
        """Return the rule over the fewest whole passes of ten or more iterations."""
        a_pass = math.ceil(n_samples / min(batch_size or n_samples, n_samples))
        return cls(tol, window=a_pass * math.ceil(10 / a_pass), fall=10 * tol)

    def restart(self) -> None:
        """Forget the iterations so far."""
        self.seen: list[Iteration] = []

    def met(self, iteration: Iteration) -> bool:
        """Note an iteration; return whether the objective hardly falls."""
        self.seen.append(iteration)
        if len(self.seen) < 2 * self.window:
            return False

        def relative(iterations: list[Iteration]) -> float:
            energy = sum(i.energy for i in iterations)
            return sum(i.f for i in iterations) / energy if energy > 0 else 0.0

        before = relative(self.seen[-2 * self.window : -self.window])
        return before - relative(self.seen[-self.window :]) < self.fall

    @property
    def any_data(self) -> bool:
        """Whether any data so far were not zero."""
        return any(i.energy > 0 for i in self.seen)


class Course(NamedTuple):
    """How a fit went, as in :class:`SolverResult`."""

    objective_history: list[float]
    converged: bool
    reason: str


def iterate(
    step: Callable[[int], Iteration],
    *,
    rule: StoppingRule,
    max_iter: int,
    watcher: Watcher | None = None,
    result: Callable[[Course], SolverResult] | None = None,
    on_plateau: Callable[[], bool] | None = None,
) -> Course:
    """Run the loop of all solvers.

    Parameters
    ----------
    step : callable
        Takes the step of an iteration, given its number from 1.

    rule : StoppingRule

    max_iter : int

    watcher : Watcher, default=None
        Told of each iteration.

    result : callable, default=None
        Makes a result of the course so far, for the watcher.

    on_plateau : callable, default=None
        Called before the rule ends the fit. Returns whether it changed something that
        may help; then the rule starts anew.
    """
    history: list[float] = []

    def result_so_far() -> SolverResult:
        assert result is not None
        return result(Course(list(history), False, STOPPED))

    for n_iter in range(1, max_iter + 1):
        if watcher is not None:
            watcher.begin_iteration()
        iteration = step(n_iter)
        history.append(max(iteration.f, 0.0) / iteration.n_samples)
        stop = watcher is not None and watcher.end_iteration(history[-1], result_so_far)
        if iteration.end:
            return Course(history, True, iteration.end)
        if not iteration.failed and rule.met(iteration):
            if on_plateau is not None and rule.any_data and on_plateau():
                rule.restart()
            elif rule.tol > 0:
                return Course(history, True, rule.reason)
        if stop:
            return Course(history, False, STOPPED)
    return Course(history, False, "max_iter was reached")


def mean_objective(Z: Tensor, A: Tensor, P: Tensor) -> float:
    """The objective, as a mean over all samples."""
    return max(float(total_objective(Z, A, P)), 0.0) / len(Z)


def divergence_limit(f: float, batch: Batch) -> float:
    """Return the relative objective above which a fit that began at f diverges.

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
