"""The base class of sources, and their samples.

A source reads the user's data in batches, in the user's layout. Its samples turn these
into maps (n, C, S), and are what a fit sees.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from panda_sklearn.core.samples import Check, Samples
from panda_sklearn.utils.arrays import MapLayout, Origin

__all__ = ["RUN_BYTES", "Source"]

# Bytes to read or compute at a time, where we can choose.
RUN_BYTES = 2**25


class Source(ABC):
    """The user's data, read in batches rather than loaded.

    Attributes
    ----------
    name : str
        The user's name for the data, for messages.

    sample_shape : tuple of int
        Shape of one sample in the user's layout.

    n_samples : int or None
        Number of samples; ``None`` if it is not known before the first pass.

    dtype : torch.dtype
        Type of the batches: float32 or float64.

    origin : Origin
        Kind and device of the data, which results share.

    device : torch.device
        Device of the batches.

    ordered : bool
        Whether samples come in the same order in every pass.
    """

    ordered = True

    def __init__(
        self,
        name: str,
        sample_shape: tuple[int, ...],
        *,
        n_samples: int | None,
        dtype: torch.dtype,
        origin: Origin,
        device: str | torch.device | None,
    ) -> None:
        self.name = name
        self.sample_shape, self.n_samples = sample_shape, n_samples
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.origin = origin
        self.device = torch.device(
            origin.device if device is None or origin.tensor else device
        )

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(n_samples, ...), where ``None`` is a number that is not known yet."""
        return (self.n_samples, *self.sample_shape)

    @property
    def ndim(self) -> int:
        """Number of axes, including that of the samples."""
        return 1 + len(self.sample_shape)

    @abstractmethod
    def read(self) -> Generator[Tensor, None, None]:
        """Yield all samples in order, as tensors (n, *sample_shape) with any n >= 1.

        They have the source's ``dtype`` and device, and may share the user's memory.
        """

    def samples(
        self,
        layout: MapLayout,
        *,
        batch_size: int | None = None,
        check: Check | None = None,
    ) -> Samples:
        """The data as maps (C, S).

        Parameters
        ----------
        layout : MapLayout
            Layout of the maps in the user's samples.

        batch_size : int, default=None
            Number of samples in a batch, where a pass does not ask for another.

        check : Check, default=None
            Check of the values in the first pass.

        Returns
        -------
        samples : Samples
        """
        return _Read(self, layout, batch_size=batch_size, check=check)

    def check_count(self, n_samples: int) -> None:
        """Set the number of samples, after a pass.

        Raises
        ------
        ValueError
            If there are none, or another number than before.
        """
        if self.n_samples not in (None, n_samples):
            raise ValueError(
                f"{self.name} gave {n_samples} samples in this pass, but "
                f"{self.n_samples} before: it must give the same in each. If it can be "
                "iterated over only once, give its batches to partial_fit one by one."
            )
        if n_samples == 0:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={(0, *self.sample_shape)}) while "
                "a minimum of 1 is required."
            )
        self.n_samples = n_samples


class _Read(Samples):
    """Samples of a source."""

    def __init__(
        self,
        source: Source,
        layout: MapLayout,
        *,
        batch_size: int | None,
        check: Check | None,
    ) -> None:
        super().__init__(
            layout.n_channels,
            layout.n_positions,
            dtype=source.dtype,
            device=source.device,
            n_samples=source.n_samples,
            batch_size=batch_size,
            check=check,
        )
        self.source, self.layout = source, layout
        self.ordered = source.ordered

    def map(
        self, function: Callable[[Tensor], Tensor], *, size: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the results of a function of each batch, in the order of the samples.

        Raises
        ------
        ValueError
            If the samples come in another order in each pass.
        """
        if not self.ordered:
            raise ValueError(
                f"{self.source.name} is shuffled in each pass, so it would be unknown "
                "which result is of which sample. Make its DataLoader with "
                "shuffle=False."
            )
        return super().map(function, size=size)

    def _read(self) -> Generator[Tensor, None, None]:
        with contextlib.closing(self.source.read()) as batches:
            for batch in batches:
                yield self.layout.to_maps(batch)

    def _check_pass(self, n_samples: int) -> None:
        self.source.check_count(n_samples)
        super()._check_pass(n_samples)
