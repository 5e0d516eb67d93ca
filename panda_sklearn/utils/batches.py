"""Batches that become smaller when the accelerator's memory runs out.

Imports torch alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import torch
from torch import Tensor

__all__ = ["Batches", "is_out_of_memory", "users_level"]

# Signs of it in plain RuntimeErrors of libraries and devices.
SIGNS = ("out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an accelerator's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in SIGNS)


class Batches:
    """Consecutive slices of samples.

    Attributes
    ----------
    n_samples : int
    size : int
        Samples in a slice; halved each time memory runs out.
    """

    def __init__(self, n_samples: int, size: int) -> None:
        if size < 1:  # possible under scikit-learn's skip_parameter_validation
            raise ValueError(f"batch_size must be at least 1, got {size}.")
        self.n_samples = n_samples
        self.size = self._first = min(size, n_samples)

    def map(self, make: Callable[[slice], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Yield each slice and what ``make`` returns for it, which is not kept here.

        Raises
        ------
        RuntimeError
            Torch's own, if memory runs out on a single sample.
        """
        start = 0
        while start < self.n_samples:
            where = slice(start, min(start + self.size, self.n_samples))
            try:
                made = [make(where)]
            except RuntimeError as error:
                if not is_out_of_memory(error) or where.stop - start == 1:
                    raise
                made = []
            # Outside the clause above, in which the exception would keep the tensors of
            # the failed pass alive.
            if made:
                yield where, made.pop()
                start = where.stop
            else:
                self.size = (where.stop - start) // 2

    @property
    def shrank(self) -> bool:
        """Whether memory ran out."""
        return self.size < self._first

    def warn(self) -> None:
        """Warn that memory ran out, at the line of the user's code that is running."""
        warnings.warn(
            f"The accelerator's memory does not hold batches of {self._first} samples: "
            f"went on with {self.size}. Set batch_size={self.size}. Noise that the "
            "network draws in its layers differs from that of larger batches.",
            UserWarning,
            stacklevel=users_level(),
        )


def users_level() -> int:
    """The stacklevel with which the caller's warning points to the user's own line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(frame: FrameType) -> bool:
    """Whether a frame runs code of this package, or of scikit-learn around it."""
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in ("panda_sklearn", "sklearn")
