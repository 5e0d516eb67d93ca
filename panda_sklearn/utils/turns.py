"""One thread at a time runs networks: the one rule for threads.

Running a network changes what all threads share: the network's modes, device and
hooks, and torch's random numbers. So whatever runs one takes a turn first
(:func:`take_turn`), and other threads wait in line until that turn ends. The thread
that has the turn may take further ones within it. Hooks act only in the thread that has
the turn (:func:`has_turn`): a network that other threads call by themselves does not
notice them.

The line is the process's, not a network's. Noise could not be the same in every pass if
two networks drew it at the same time, since torch has one stream of random numbers for
the CPU. Networks may share submodules. And two threads that each had a network and
asked for the other's would wait forever. To keep two GPUs busy, use two processes.

Imports nothing but Python.
"""

from __future__ import annotations

import os
import threading

from panda_sklearn.utils.undo import Undo

__all__ = ["has_turn", "take_turn"]


class _Turn:
    """A place in the line; its thread has the turn when it is the first."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    # What is done under the lock is one line with it: between two, an interrupt would
    # leave it locked.

    def begin(self) -> None:
        """Wait for the turn."""
        with _changed: self._begin()  # noqa: E701  # fmt: skip

    def _begin(self) -> None:
        _line.insert(0 if has_turn() else len(_line), self)
        while not has_turn():
            _changed.wait()

    def end(self) -> None:
        """Leave the line; may be called again after it was interrupted."""
        with _changed: self._end()  # noqa: E701  # fmt: skip

    def _end(self) -> None:
        if self in _line:
            _line.remove(self)
        _changed.notify_all()


# Turns in the order in which threads asked for them; a thread's further ones first.
_line: list[_Turn] = []
_changed = threading.Condition()


def take_turn(undo: Undo) -> None:
    """Wait until no other thread has the turn, and have it until ``undo`` ends."""
    turn = _Turn()
    undo.note(turn.end)
    turn.begin()


def has_turn() -> bool:
    """Whether the calling thread has the turn."""
    return [turn.thread for turn in _line[:1]] == [threading.get_ident()]


def _forget_other_threads() -> None:
    """In a forked process, which has the thread that forked and no other."""
    global _changed
    _changed = threading.Condition()
    _line[:] = [turn for turn in _line if turn.thread == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
