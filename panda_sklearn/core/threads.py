"""One thread for work that is too small for several.

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

# The number of threads to put back, for each Python thread that has set it to one.
# torch keeps it partly by thread and partly by process, so all put back the same.
_users: dict[int, int] = {}

Result = TypeVar("Result")


class ThreadsFor:
    """Calls functions on one thread, if their operations have little to do.

    Afterwards the number of threads is what it was before, whatever happens.

    Parameters
    ----------
    multiplications : float
        Number of multiplications in the longest operations of these functions.
    """

    def __init__(self, multiplications: float) -> None:
        self.one = multiplications < WORTH_THREADS

    def __call__(
        self, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """Return what the function returns."""
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
