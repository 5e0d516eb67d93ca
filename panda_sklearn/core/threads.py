"""No more threads than work is worth.

Threads wait for each other after every operation. Where operations take microseconds
and anything else runs on the machine, they wait for milliseconds each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from panda_sklearn.utils.undo import Undo

__all__ = ["ThreadsFor"]

# Multiplications from which more than one thread is worth it.
WORTH_THREADS = 2**29

# The number of threads that each thread that uses one puts back. It is set partly for a
# thread and partly for the process, so users at the same time put back the same.
_users: dict[int, int] = {}

Result = TypeVar("Result")


class ThreadsFor:
    """Calls functions on one thread, if their operations have little to do.

    The number of threads is what it was afterwards, whatever happens.

    Parameters
    ----------
    multiplications : float
        Of their longest operations.
    """

    def __init__(self, multiplications: float) -> None:
        self.one = multiplications < WORTH_THREADS

    def __call__(
        self, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """What the function returns."""
        with Undo() as undo, undo:
            if self.one:
                _use_one(undo)
            return function(*args, **kwargs)


def _use_one(undo: Undo) -> None:
    n_threads = [*_users.values(), torch.get_num_threads()][0]
    user = threading.get_ident()
    if n_threads == 1 or user in _users:
        return

    def put_back() -> None:
        torch.set_num_threads(n_threads)
        _users.pop(user, None)

    undo.note(put_back)
    _users[user] = n_threads
    torch.set_num_threads(1)
