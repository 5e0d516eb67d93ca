"""What a fit knows of its data, wherever they are: a shape, and sums over samples.

Samples are gone through in passes, batch by batch, and nobody but a kind of samples
loops over batches: what is asked of all of them is a sum that a function adds to, or
something of each one. So data may be in memory, on disk, made anew in each pass or,
since sums add, on many machines. Kinds other than "in memory" are in
:mod:`panda_sklearn.sources`.

Floor 0: torch only. Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Check", "InMemory", "Samples", "Sums", "as_samples", "in_one_pass"]

# Numbers in a batch, so few that its products stay in the cache, and how often as many
# a batch may have. The same wherever the samples are, so that all sums are.
BATCH_ELEMENTS = 2**21
LARGEST_BATCH = 8

# Samples in a batch of several sums, where that is not too many numbers.
IN_A_BATCH = 256


class Check(Protocol):
    """What looks at all values once, in the first pass, before anything is done."""

    def see(self, batch: Tensor, start: int) -> None:
        """Raise if something is wrong with samples (n, C, S), from ``start`` on."""

    def finish(self) -> None:
        """Raise if something is wrong with all samples together."""


class Samples(ABC):
    """Samples Z_i (C, S) that can be gone through again and again, in one order.

    Attributes
    ----------
    n_samples : int or None
        N; ``None`` until a pass has told it.

    n_channels, n_positions : int
        C and S.

    dtype : torch.dtype
        Type of the batches: float32 or float64.

    device : torch.device
        Where batches, and so all sums, are.

    n_passes : int
        How often the samples were gone through so far.

    check : Check or None
        What is still to be asked of the values, in the next pass.

    ordered : bool
        Whether the order is one; where each pass has its own, there are sums alone.
    """

    ordered = True

    def __init__(
        self,
        n_channels: int,
        n_positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        n_samples: int | None = None,
        batch_size: int | None = None,
        check: Check | None = None,
    ) -> None:
        self.n_channels, self.n_positions = n_channels, n_positions
        self.dtype, self.device = dtype, device
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.check = check
        self.n_passes = 0

    @abstractmethod
    def _read(self) -> Generator[Tensor, None, None]:
        """All samples in order, as tensors (n, C, S) with any n of 1 or more."""

    def _check_pass(self, n_samples: int) -> None:
        """What there is to check, or to say, at the end of a pass over so many."""
        self.n_samples = n_samples

    def accumulate(
        self, add: Callable[..., None], *totals: Tensor, size: int = 1
    ) -> tuple[Tensor, ...]:
        """Add something of each batch to totals, in one pass.

        Parameters
        ----------
        add : callable
            ``add(batch, *totals)`` adds in place; batches are of shape (n, C, S).

        *totals : Tensor
            What to add to: on ``device``, and zero.

        size : int, default=1
            Number of samples in a batch that ``add`` asks for; they are more where
            that is faster, and fewer where memory is short.

        Returns
        -------
        totals : tuple of Tensor
            The sums over all samples.
        """
        size = self.batch_size or self._size(size)
        with contextlib.closing(self._pass(size)) as batches:
            for batch in batches:
                add(batch, *totals)
        return totals

    def map(
        self, function: Callable[[Tensor], Tensor], *, size: int | None = None
    ) -> Iterator[Tensor]:
        """What a function makes of each batch, in the order of the samples.

        Batches are of ``size`` samples, if it is given.
        """
        size = size or self.batch_size or self._size()
        with contextlib.closing(self._pass(size)) as batches:
            for batch in batches:
                yield function(batch)

    def _pass(self, size: int) -> Generator[Tensor, None, None]:
        """Batches of one pass, of ``size`` samples but for the last."""
        self.n_passes += 1
        n_samples = 0
        with contextlib.closing(self._in_batches(size)) as batches:
            for batch in batches:
                if self.check is not None:
                    self.check.see(batch, n_samples)
                n_samples += len(batch)
                yield batch
        self._check_pass(n_samples)
        if self.check is not None:
            self.check.finish()
            self.check = None

    def _in_batches(self, size: int) -> Generator[Tensor, None, None]:
        """What is read, cut and joined: the same for all ways to read the same data.

        What waits for more is copied: it shall not keep all that was read with it, nor
        change where the next is read into the same memory.
        """
        waiting: list[Tensor] = []
        n_waiting = 0
        with contextlib.closing(self._read()) as reading:
            for read in reading:
                if n_waiting:
                    rest, read = read[: size - n_waiting], read[size - n_waiting :]
                    waiting.append(rest.clone())
                    n_waiting += len(rest)
                    if n_waiting < size:
                        continue
                    yield torch.cat(waiting)
                    waiting, n_waiting = [], 0
                whole = len(read) - len(read) % size
                yield from read[:whole].split(size) if whole else ()
                if whole < len(read):
                    waiting, n_waiting = [read[whole:].clone()], len(read) - whole
        if waiting:
            yield torch.cat(waiting)

    def _size(self, wanted: int = 1) -> int:
        """Number of samples in a batch."""
        fast = BATCH_ELEMENTS // (self.n_channels * self.n_positions)
        return max(1, fast, min(wanted, LARGEST_BATCH * fast))


class InMemory(Samples):
    """Samples that are a tensor Z (N, C, S), which is not copied."""

    n_samples: int

    def __init__(
        self, Z: Tensor, *, batch_size: int | None = None, check: Check | None = None
    ) -> None:
        super().__init__(
            *Z.shape[1:],
            dtype=Z.dtype,
            device=Z.device,
            n_samples=len(Z),
            batch_size=batch_size,
            check=check,
        )
        self.Z = Z

    def _read(self) -> Generator[Tensor, None, None]:
        yield self.Z

    def _in_batches(self, size: int) -> Generator[Tensor, None, None]:
        yield from self.Z.split(size)


class Sums(Protocol):
    """Sums over samples that make something: what :func:`in_one_pass` fills.

    They know nothing of where the samples are.
    """

    def totals(self) -> tuple[Tensor, ...]:
        """What to add to, zero."""

    def begin(self, batch: Tensor) -> None:
        """Learn from some samples what the sums are to be taken about."""

    @property
    def add(self) -> Callable[..., None]:
        """Adds something of a batch, ``add(batch, *totals)``, and may begin with it."""

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> Any:
        """What the sums of all samples make."""


def in_one_pass(samples: Samples, *sums: Sums) -> list[Any]:
    """What several sums make of samples, which are read once."""
    totals = [some.totals() for some in sums]
    counts = [len(own) for own in totals]

    def shared(everything: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        rest = iter(everything)
        return (tuple(itertools.islice(rest, n)) for n in counts)

    def add(batch: Tensor, *everything: Tensor) -> None:
        for some, own in zip(sums, shared(everything), strict=True):
            some.add(batch, *own)

    # Few large batches: products of coefficients are small, and their sums are not.
    found = samples.accumulate(add, *itertools.chain(*totals), size=IN_A_BATCH)
    n = samples.n_samples
    assert n is not None  # a pass has told
    return [some.moments(own, n) for some, own in zip(sums, shared(found), strict=True)]


def as_samples(Z: Samples | Tensor) -> Samples:
    """Samples as they are; a tensor (N, C, S) as samples in memory."""
    return Z if isinstance(Z, Samples) else InMemory(Z)
