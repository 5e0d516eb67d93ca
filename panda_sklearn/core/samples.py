"""What a fit knows of its data, wherever they are: a shape, and sums over samples.

Samples are read in passes, batch by batch. Only a kind of :class:`Samples` loops over
batches; all other code gives it a function that adds something of each batch to a sum,
or that returns something for each sample. So data may be in memory, on disk, computed
anew in each pass or, since sums add, on many machines. Kinds other than "in memory" are
in :mod:`panda_sklearn.sources`.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from panda_sklearn.core.drawing import Kept, drawn_places

__all__ = [
    "Check",
    "InMemory",
    "Samples",
    "Sums",
    "Together",
    "as_samples",
    "in_one_pass",
]

# Elements in a batch: few enough that its products stay in the cache; and how many
# times as many it may have. The same wherever the samples are, so that sums are, too.
BATCH_ELEMENTS = 2**21
LARGEST_BATCH = 8

# Samples in a batch of several sums, where those are not too many elements. Batches are
# large, since adding to the sums of coefficients costs more than their small products.
IN_A_BATCH = 256


class Check(Protocol):
    """A check of all values, in the first pass, before they are used."""

    def see(self, batch: Tensor, start: int) -> None:
        """Raise if something is wrong with samples (n, C, S), from ``start`` on."""

    def join(self, other: Any) -> None:
        """Add what another check has seen of other samples."""

    def finish(self) -> None:
        """Raise if something is wrong with all samples together."""


class Samples(ABC):
    """Samples Z_i (C, S) that can be read again and again, in one order.

    Attributes
    ----------
    n_samples : int or None
        N; ``None`` until a pass has counted them.

    n_channels, n_positions : int
        C and S.

    dtype : torch.dtype
        Type of the batches: float32 or float64.

    device : torch.device
        Where batches are, and so all sums.

    n_passes : int
        Number of passes so far.

    check : Check or None
        The check that the next pass makes, if one is still to be made.

    ordered : bool
        Whether all passes have the same order. If not, only sums make sense.

    spread : bool
        Whether they are elsewhere, and can only be summed over.
    """

    ordered = True
    spread = False

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
        """Yield all samples in order, as tensors (n, C, S) with any n of 1 or more."""

    def _check_pass(self, n_samples: int) -> None:
        """Check or note the number of samples at the end of a pass."""
        self.n_samples = n_samples

    def accumulate(
        self, add: Callable[..., Any], *totals: Tensor, size: int = 1
    ) -> tuple[Tensor, ...]:
        """Add something of each batch to totals, in one pass.

        Parameters
        ----------
        add : callable
            ``add(batch, *totals)`` adds in place; batches are of shape (n, C, S). It is
            sent to where the samples are, if it can be pickled and keeps no state.

        *totals : Tensor
            What to add to: zeros on ``device``.

        size : int, default=1
            Number of samples in a batch that ``add`` asks for. There are more where
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
        """Yield what a function returns for each batch, in the order of the samples.

        Batches are of ``size`` samples, if it is given.
        """
        size = size or self.batch_size or self._size()
        with contextlib.closing(self._pass(size)) as batches:
            for batch in batches:
                yield function(batch)

    def begin(self, *sums: Sums) -> None:  # noqa: B027
        """Begin sums with the first samples, where ``add`` itself cannot.

        That is where samples are in several places, and the sums must be about the same
        value in all of them.
        """

    def look(
        self,
        add: Callable[..., None],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """Like :meth:`accumulate`, and keep some samples in memory.

        Parameters
        ----------
        n_some : callable
            Returns how many of N samples to keep; for a larger N, no fewer.

        generator : torch.Generator
            Draws them: the same ones, wherever the samples are.

        Returns
        -------
        totals : tuple of Tensor

        kept : InMemory
            All samples, if there are no more than asked for.
        """
        passing = Kept(n_some, generator)

        def see(batch: Tensor, *totals: Tensor) -> None:
            add(batch, *totals)
            passing.see(batch)

        found = self.accumulate(see, *totals)
        return found, InMemory(passing.samples())

    def first(self) -> Tensor:
        """Return the first batch alone; this does not count as a pass."""
        n_passes = self.n_passes
        with contextlib.closing(self._pass(self.batch_size or self._size())) as batches:
            batch = next(batches)
        self.n_passes = n_passes
        return batch

    def _pass(self, size: int) -> Generator[Tensor, None, None]:
        """Yield the batches of one pass, each of ``size`` samples except the last."""
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
        """Cut and join what is read into batches, the same however it is read.

        Samples that wait for more are copied, so that they do not keep all that was
        read with them in memory, and do not change when the next are read into the same
        memory.
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
        """Return the number of samples in a batch."""
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

    def look(
        self,
        add: Callable[..., None],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """As for all samples; those that :class:`Kept` would keep are kept."""
        found = self.accumulate(add, *totals)
        n = n_some(self.n_samples)
        places = drawn_places(self.n_samples, n, generator)
        if n >= self.n_samples:
            return found, self
        return found, InMemory(self.Z[places.to(self.device)])

    def _read(self) -> Generator[Tensor, None, None]:
        yield self.Z

    def _in_batches(self, size: int) -> Generator[Tensor, None, None]:
        yield from self.Z.split(size)


class Sums(Protocol):
    """Sums over samples, and what is computed from them; see :func:`in_one_pass`.

    They know nothing of where the samples are.
    """

    def totals(self) -> tuple[Tensor, ...]:
        """Return what to add to, zeros."""

    def begin(self, batch: Tensor) -> None:
        """Choose the value that the sums are taken about, from some samples."""

    @property
    def add(self) -> Callable[..., None]:
        """``add(batch, *totals)`` adds a batch; it begins the sums if nothing has."""

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> Any:
        """Return what is computed from the sums over all samples."""


def in_one_pass(samples: Samples, *sums: Sums, size: int = IN_A_BATCH) -> list[Any]:
    """Return what several sums compute from samples, which are read once.

    Batches are of ``size`` samples, as :meth:`Samples.accumulate` has it.
    """
    samples.begin(*sums)
    together = Together(sums)
    found = samples.accumulate(together.add, *together.totals(), size=size)
    assert samples.n_samples is not None  # a pass has counted them
    return together.moments(found, samples.n_samples)


class Together:
    """Several sums as one."""

    def __init__(self, sums: Sequence[Sums]) -> None:
        self.sums = list(sums)
        self.counts = [len(some.totals()) for some in sums]

    def totals(self) -> tuple[Tensor, ...]:
        """Return those of all sums, one after the other."""
        return tuple(itertools.chain(*(some.totals() for some in self.sums)))

    def add(self, batch: Tensor, *totals: Tensor) -> None:
        """Add a batch to each."""
        for some, own in zip(self.sums, self._shared(totals), strict=True):
            some.add(batch, *own)

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> list[Any]:
        """Return what each sum computes from its totals."""
        each = zip(self.sums, self._shared(totals), strict=True)
        return [some.moments(own, n_samples) for some, own in each]

    def _shared(self, totals: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        rest = iter(totals)
        return (tuple(itertools.islice(rest, n)) for n in self.counts)


def as_samples(Z: Samples | Tensor) -> Samples:
    """Return samples as they are, and a tensor (N, C, S) as samples in memory."""
    return Z if isinstance(Z, Samples) else InMemory(Z)
