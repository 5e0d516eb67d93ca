"""Putting things back, however a block of code ends.

Imports nothing but Python.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

__all__ = ["Undo"]

# How often a step is tried again after an interrupt. Ctrl-C is pressed a few times at
# most; a step that always ends so must not go on for ever.
MAX_TRIES = 100


class Undo:
    """Steps to take at the end of a block, the last noted first.

    Enter it twice::

        with Undo() as undo, undo:
            undo.note(lambda: lamp.switch(off))
            lamp.switch(on)

    Ctrl-C can come between any two lines, also before the first line of ``__exit__``,
    which then does nothing; the second ``__exit__`` is for that. For the same reason a
    step is noted *before* what it undoes. A step must do no harm if there is nothing to
    undo yet, nor when it is taken again after it was cut short. The block takes the
    place of a ``try``, which could be interrupted before its first line.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def note(self, step: Callable[[], object]) -> None:
        """Note a step to take at the end."""
        self._steps.append(step)

    def forget(self) -> None:
        """Forget all steps, so that what was done stays."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure: BaseException | None = None
        tries = 0
        while self._steps:
            try:
                while self._steps:
                    self._steps[-1]()
                    self._steps.pop()
                    tries = 0
            except Exception as problem:  # of this step; the others are still taken
                failure = failure or problem
                self._steps.pop()
            except BaseException as interrupt:
                failure = interrupt
                tries += 1
                if tries == MAX_TRIES:
                    self._steps.pop()
        if failure is not None:
            raise failure
