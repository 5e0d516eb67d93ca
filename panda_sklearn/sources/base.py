"""What all sources have in common, and their samples.

Floor 2: torch. A source knows how to read the user's data in batches, in the user's
layout; its samples bring these to maps (n, C, S) and are what a fit sees.
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

# What is read or made at a time, where that is ours to choose.
RUN_BYTES = 2**25


class Source(ABC):
    """Data of a user that are read in batches, rather than loaded.

    Attributes
    ----------
    name : str
        What the user calls them.

    sample_shape : tuple of int
        Shape of one sample in the user's layout.

    n_samples : int or None
        ``None`` until a pass has told it.

    dtype : torch.dtype
        Type of the batches: float32 or float64.

    origin : Origin
        Whether they are tensors, and where: what is made of them goes back there.

    device : torch.device
        Where batches are brought to.

    ordered : bool
        Whether samples come in one order in each pass.
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
        """(n_samples, ...), with ``None`` for a number that is not known yet."""
        return (self.n_samples, *self.sample_shape)

    @property
    def ndim(self) -> int:
        """Number of axes, that of the samples included."""
        return 1 + len(self.sample_shape)

    @abstractmethod
    def read(self) -> Generator[Tensor, None, None]:
        """All samples in order, as tensors (n, *sample_shape) with any n of 1 or more.

        Of the source's ``dtype``, on its device. They may share memory with the user's.
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
            How maps lie in the user's samples.

        batch_size : int, default=None
            Number of samples in a batch, where none is asked for.

        check : Check, default=None
            What is to be asked of the values in the first pass.

        Returns
        -------
        samples : Samples
        """
        return _Read(self, layout, batch_size=batch_size, check=check)

    def check_count(self, n_samples: int) -> None:
        """Take the number of samples of a pass.

        Raises
        ------
        ValueError
            If there are none, or not as many as before.
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
        """What a function makes of each batch, in the order of the samples.

        Raises
        ------
        ValueError
            If the samples come in another order in each pass.
        """
        if not self.ordered:
            raise ValueError(
                f"{self.source.name} is shuffled in each pass, so that nobody could say"
                " which result is whose. Make its DataLoader with shuffle=False."
            )
        return super().map(function, size=size)

    def _read(self) -> Generator[Tensor, None, None]:
        with contextlib.closing(self.source.read()) as batches:
            for batch in batches:
                yield self.layout.to_maps(batch)

    def _check_pass(self, n_samples: int) -> None:
        self.source.check_count(n_samples)
        super()._check_pass(n_samples)
