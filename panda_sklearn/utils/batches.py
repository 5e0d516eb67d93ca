"""Batches that become smaller when the accelerator's memory runs out.

Floor 2: torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["Batches"]


class Batches:
    """Consecutive slices of samples.

    Attributes
    ----------
    n_samples : int
    size : int
        Samples in a slice; halved each time that memory runs out.
    """

    def __init__(self, n_samples: int, size: int) -> None:
        self.n_samples = n_samples
        self.size = min(size, n_samples)

    def map(self, make: Callable[[slice], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Each slice and what ``make`` gives for it, which is not kept here.

        Raises
        ------
        torch.OutOfMemoryError
            If memory runs out on a single sample.
        """
        start = 0
        while start < self.n_samples:
            where = slice(start, min(start + self.size, self.n_samples))
            try:
                made = [make(where)]
            except torch.OutOfMemoryError:
                if where.stop - start == 1:
                    raise
                made = []
            # Out of the clause above, where the exception would keep the failed
            # pass's tensors alive.
            if made:
                yield where, made.pop()
                start = where.stop
            else:
                self.size = (where.stop - start) // 2
