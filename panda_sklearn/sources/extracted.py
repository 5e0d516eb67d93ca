"""Activations that are made anew in each pass, and stored nowhere.

Floor 2: torch. What makes them is given: this module knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from panda_sklearn.utils.arrays import ArrayLike, Origin

__all__ = ["ExtractedBatches"]


class ExtractedBatches:
    """Batches of activations, made from latents in each pass.

    Iterate over it as often as you like: each time a network runs on all latents, batch
    by batch, and nothing is kept. Made by ``GeneratorFeatureExtractor.batches``.

    Attributes
    ----------
    n_samples : int
        Number of samples: that of the latents, times that of the calls if each is one.

    sample_shape : tuple of int
        Shape of one sample's activations.

    dtype : torch.dtype
        Type of the activations.

    batch_size : int
        Number of samples in a batch; less if an accelerator's memory does not hold so
        many.
    """

    def __init__(
        self,
        make: Callable[[ArrayLike], Iterator[ArrayLike]],
        latents: ArrayLike,
        *,
        sample_shape: tuple[int, ...],
        dtype: torch.dtype,
        batch_size: int,
        rows: int = 1,
    ) -> None:
        self._make, self._latents = make, latents
        self.n_samples = rows * len(latents)
        self.sample_shape, self.dtype = sample_shape, dtype
        self.batch_size = rows * batch_size

    @property
    def origin(self) -> Origin:
        """Whether batches are tensors, and where: as the latents."""
        return Origin.of(self._latents)

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def __iter__(self) -> Iterator[ArrayLike]:
        return self._make(self._latents)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_samples={self.n_samples}, "
            f"sample_shape={self.sample_shape})"
        )
