"""Arrays in memory, with the interface of sources."""

from __future__ import annotations

import torch

from panda_sklearn.core.samples import Check, InMemory
from panda_sklearn.utils.arrays import ArrayLike, MapLayout, Origin, as_tensor

__all__ = ["LoadedArray"]


class LoadedArray:
    """A checked array or tensor; its attributes are those of :class:`Source`."""

    def __init__(self, X: ArrayLike, device: str | torch.device | None = None) -> None:
        self.X, self._device = X, device
        self.shape, self.ndim = tuple(X.shape), X.ndim
        self.dtype = as_tensor(X[:1]).dtype
        self.origin = Origin.of(X)

    def samples(
        self,
        layout: MapLayout,
        *,
        batch_size: int | None = None,
        check: Check | None = None,
    ) -> InMemory:
        """The data as maps (C, S), sharing memory where possible."""
        Z = layout.to_maps(as_tensor(self.X, self._device))
        return InMemory(Z, batch_size=batch_size, check=check)
