"""How a fit is watched: a progress bar, and the callbacks of scikit-learn.

Beside the estimator, :mod:`panda_sklearn.decomposition`.

Imports tqdm, and :mod:`panda_sklearn.utils.callbacks`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from panda_sklearn.solvers import SolverResult, Watcher
from panda_sklearn.utils.callbacks import Task

__all__ = ["FitWatcher", "progress_bar"]


def progress_bar(panda: Any, note: str, total: int | None) -> tqdm:
    """A progress bar, shown if the estimator is verbose."""
    return tqdm(
        total=total,
        desc=type(panda).__name__ + note,
        disable=not panda.verbose,
        mininterval=1,
    )


class FitWatcher(Watcher):
    """Shows a progress bar for each start, and tells callbacks of all tasks.

    The iterations are tasks of the fit, or of a start if there are several. Use it as
    a context manager, which closes the bar.

    Parameters
    ----------
    panda : PartsAppearanceDecomposition

    task : Task, default=None
        The task of the fit; ``None`` tells no callbacks.

    attributes : callable, default=None
        Given a function that returns a solver's result, returns the fitted attributes
        of a fit with that result. Needed with a task.
    """

    def __init__(
        self,
        panda: Any,
        task: Task | None = None,
        attributes: Callable[[Callable[[], SolverResult]], dict] | None = None,
    ) -> None:
        self.panda, self.attributes = panda, attributes
        self.of_fit = self.of_start = self.of_iteration = task
        self.bar: tqdm | None = None

    def __enter__(self) -> FitWatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def begin_start(self, number: int, n_starts: int) -> None:
        """Open a bar, and begin a task if there are several starts."""
        several = n_starts > 1
        note = f", start {number} of {n_starts}" if several else ""
        self.bar = progress_bar(self.panda, note, self.panda.max_iter)
        if several and self.of_fit is not None:
            self.of_start = self.of_fit.subtask("start", int(self.panda.max_iter))

    def end_start(self, best: SolverResult) -> bool:
        """Close the bar, and end the task if there are several starts."""
        assert self.bar is not None
        self.bar.total = self.bar.n  # done, whatever max_iter was
        self.bar.close()
        if self.of_start is self.of_fit:
            return False
        return self._end(self.of_start, lambda: best)

    def begin_iteration(self) -> None:
        """Begin a task."""
        if self.of_start is not None:
            self.of_iteration = self.of_start.subtask("iteration")

    def end_iteration(
        self, objective: float, result: Callable[[], SolverResult]
    ) -> bool:
        """Move the bar on, and end the task."""
        assert self.bar is not None
        self.bar.set_postfix(objective=f"{objective:.5g}", refresh=False)
        self.bar.update()
        return self._end(self.of_iteration, result)

    def _end(self, task: Task | None, result: Callable[[], SolverResult]) -> bool:
        if task is None:
            return False
        assert self.attributes is not None
        attributes = self.attributes
        return task.end(lambda: attributes(result))
