"""Activations that are computed in each pass and stored nowhere.

The function that computes them is given, so this module does not depend on networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from panda_sklearn.utils.arrays import ArrayLike, Origin

__all__ = ["ExtractedBatches"]


class ExtractedBatches:
    """Batches of activations, computed from latents in each pass.

    Iterate over it as often as you like: each time the network runs on all latents,
    batch by batch, and nothing is kept. Made by ``GeneratorFeatureExtractor.batches``.

    Attributes
    ----------
    n_samples : int
        Number of samples: that of the latents, times the number of calls if each call
        is a sample.

    sample_shape : tuple of int
        Shape of one sample's activations.

    dtype : torch.dtype
        Type of the activations.

    batch_size : int
        Number of samples in a batch; fewer if an accelerator's memory is too small.
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
        """Kind and device of the batches: those of the latents."""
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
