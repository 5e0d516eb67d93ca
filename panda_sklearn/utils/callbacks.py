"""The callbacks of scikit-learn, in versions that have them (1.9 and later).

The interface is experimental: only this module and the estimator's base class depend on
it. With an older scikit-learn there is no ``set_callbacks``, so no estimator has
callbacks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for the mixin that adds ``set_callbacks``, and adds nothing."""


__all__ = ["OF_CALLBACKS", "CallbackSupportMixin", "Task", "begin_fit"]

#: Attributes that callbacks and their contexts leave on an estimator.
OF_CALLBACKS = frozenset(
    {
        "_callback_fit_ctx",
        "_parent_callback_ctx",
        "_skl_callbacks",
        "_skl_callbacks_to_teardown",
    }
)


@dataclass(frozen=True)
class Task:
    """A task of a fit: the fit itself, a start or an iteration.

    Attributes
    ----------
    context : sklearn.callback.CallbackContext
    estimator : estimator
    X, y : object
        What ``fit`` was given.
    """

    context: Any
    estimator: Any
    X: Any
    y: Any

    def subtask(self, name: str, max_subtasks: int = 0) -> Task:
        """Begin a part of this task; one that has none is a leaf."""
        context = self.context.subcontext(task_name=name, max_subtasks=max_subtasks)
        return replace(self, context=context).begin()

    def begin(self) -> Task:
        """Tell the callbacks that it begins."""
        self.context.call_on_fit_task_begin(**self._told())
        return self

    def end(self, attributes: Any) -> bool:
        """Tell the callbacks that it has ended; whether one of them asks to stop.

        ``attributes`` are the fitted attributes at this point, or a function that
        returns them, which is called only for a callback that wants an estimator.
        """
        return self.context.call_on_fit_task_end(
            **self._told(), reconstruction_attributes=attributes
        )

    def _told(self) -> dict[str, Any]:
        # scikit-learn calls what is callable, which an X could be.
        return {"estimator": self.estimator, "X": lambda: self.X, "y": lambda: self.y}


def begin_fit(estimator: Any, X: Any, y: Any, max_subtasks: int) -> Task | None:
    """Begin the task of a fit; ``None`` if the estimator has no callbacks."""
    if not hasattr(estimator, "_skl_callbacks"):
        return None
    context = estimator._init_callback_context(max_subtasks=max_subtasks)
    return Task(context, estimator, X, y).begin()
