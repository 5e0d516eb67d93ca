"""What a fit knows of its data, wherever they are: a shape, and sums over samples.

Samples are gone through in passes, batch by batch, and nobody but a kind of samples
loops over batches: what is asked of all of them is a sum that a function adds to, or
something of each one. So data may be in memory, on disk, made anew in each pass or,
since sums add, on many machines. Kinds other than "in memory" are in
:mod:`panda_sklearn.sources`.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "Check",
    "InMemory",
    "Kept",
    "Picked",
    "Samples",
    "Sums",
    "Together",
    "as_samples",
    "draw_numbers",
    "drawn_places",
    "in_one_pass",
]

# Numbers in a batch, so few that its products stay in the cache, and how often as many
# a batch may have. The same wherever the samples are, so that all sums are.
BATCH_ELEMENTS = 2**21
LARGEST_BATCH = 8

# Numbers that are drawn at a time.
DRAWN_AT_ONCE = 2**20

# Samples in a batch of several sums, where that is not too many numbers.
IN_A_BATCH = 256


class Check(Protocol):
    """What looks at all values once, in the first pass, before anything is done."""

    def see(self, batch: Tensor, start: int) -> None:
        """Raise if something is wrong with samples (n, C, S), from ``start`` on."""

    def join(self, other: Any) -> None:
        """Take what another has seen, of other samples."""

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
        """All samples in order, as tensors (n, C, S) with any n of 1 or more."""

    def _check_pass(self, n_samples: int) -> None:
        """What there is to check, or to say, at the end of a pass over so many."""
        self.n_samples = n_samples

    def accumulate(
        self, add: Callable[..., Any], *totals: Tensor, size: int = 1
    ) -> tuple[Tensor, ...]:
        """Add something of each batch to totals, in one pass.

        Parameters
        ----------
        add : callable
            ``add(batch, *totals)`` adds in place; batches are of shape (n, C, S). One
            that can be pickled and keeps nothing goes where the samples are.

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

    def begin(self, *sums: Sums) -> None:  # noqa: B027
        """Have sums begun with the first samples, where ``add`` itself cannot.

        That is where samples are in several places, and the sums are to be about the
        same in all.
        """

    def look(
        self,
        add: Callable[..., None],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """Like :meth:`accumulate`; and keep some samples in memory.

        Parameters
        ----------
        n_some : callable
            How many of N samples to keep; of more samples, no fewer.

        generator : torch.Generator
            Draws them, the same ones wherever the samples are.

        Returns
        -------
        totals : tuple of Tensor

        kept : InMemory
            All samples, if they are not more than asked for.
        """
        passing = Kept(n_some, generator)

        def see(batch: Tensor, *totals: Tensor) -> None:
            add(batch, *totals)
            passing.see(batch)

        found = self.accumulate(see, *totals)
        return found, InMemory(passing.samples())

    def first(self) -> Tensor:
        """The first batch alone; it counts as no pass."""
        n_passes = self.n_passes
        with contextlib.closing(self._pass(self.batch_size or self._size())) as batches:
            batch = next(batches)
        self.n_passes = n_passes
        return batch

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

    def look(
        self,
        add: Callable[..., None],
        *totals: Tensor,
        n_some: Callable[[int], int],
        generator: torch.Generator,
    ) -> tuple[tuple[Tensor, ...], InMemory]:
        """As of all samples; those that :class:`Kept` would keep."""
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


class Kept:
    """Some of the samples that pass by: those with the largest of numbers drawn.

    However many there will be, each is as likely to be kept, and it does not matter in
    which batches they come.
    """

    def __init__(
        self, n_some: Callable[[int], int], generator: torch.Generator
    ) -> None:
        self.n_some, self.generator = n_some, generator
        self.most = n_some(sys.maxsize)
        self.heap: list[tuple[float, int, Tensor]] = []  # the smallest number first
        self.n_seen = 0

    def see(self, batch: Tensor) -> None:
        """Look at the next samples."""
        numbers = draw_numbers(len(batch), self.generator).tolist()
        for number, row in zip(numbers, batch, strict=True):
            if len(self.heap) < self.most:
                heapq.heappush(self.heap, (number, self.n_seen, row.clone()))
            elif number > self.heap[0][0]:
                heapq.heapreplace(self.heap, (number, self.n_seen, row.clone()))
            self.n_seen += 1

    def samples(self) -> Tensor:
        """Those that are kept, in their order."""
        kept = heapq.nlargest(self.n_some(self.n_seen), self.heap)
        kept.sort(key=lambda item: item[1])
        return torch.stack([row for _, _, row in kept])


class Picked:
    """Samples that pass by, at given places.

    Parameters
    ----------
    places : Tensor of shape (n,)
        Rising.
    """

    def __init__(self, places: Tensor) -> None:
        self.places, self.rows = places, list[Tensor]()
        self.n_seen = 0

    def see(self, batch: Tensor) -> None:
        """Look at the next samples."""
        end = self.n_seen + len(batch)
        here = self.places[(self.places >= self.n_seen) & (self.places < end)]
        self.rows.append(batch[(here - self.n_seen).to(batch.device)].clone())
        self.n_seen = end


def drawn_places(n_samples: int, n: int, generator: torch.Generator) -> Tensor:
    """Places of those that :class:`Kept` would keep of so many, rising."""
    numbers = torch.empty(0, dtype=torch.float64, device="cpu")
    places = torch.empty(0, dtype=torch.int64, device="cpu")
    for start in range(0, n_samples, DRAWN_AT_ONCE):
        more = draw_numbers(min(DRAWN_AT_ONCE, n_samples - start), generator)
        numbers = torch.cat([numbers, more])
        places = torch.cat([places, start + torch.arange(len(more), device="cpu")])
        best = numbers.topk(min(n, len(numbers))).indices
        numbers, places = numbers[best], places[best]
    return places.sort().values


def draw_numbers(n: int, generator: torch.Generator) -> Tensor:
    """A number for each of the next n samples; the same, one by one or together."""
    return torch.rand(n, dtype=torch.float64, device="cpu", generator=generator)


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
    samples.begin(*sums)
    together = Together(sums)
    # Few large batches: products of coefficients are small, and their sums are not.
    found = samples.accumulate(together.add, *together.totals(), size=IN_A_BATCH)
    assert samples.n_samples is not None  # a pass has told
    return together.moments(found, samples.n_samples)


class Together:
    """Several sums as one."""

    def __init__(self, sums: Sequence[Sums]) -> None:
        self.sums = list(sums)
        self.counts = [len(some.totals()) for some in sums]

    def totals(self) -> tuple[Tensor, ...]:
        """Those of all, one after the other."""
        return tuple(itertools.chain(*(some.totals() for some in self.sums)))

    def add(self, batch: Tensor, *totals: Tensor) -> None:
        """Add a batch to each."""
        for some, own in zip(self.sums, self._shared(totals), strict=True):
            some.add(batch, *own)

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> list[Any]:
        """What each makes of its totals."""
        each = zip(self.sums, self._shared(totals), strict=True)
        return [some.moments(own, n_samples) for some, own in each]

    def _shared(self, totals: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        rest = iter(totals)
        return (tuple(itertools.islice(rest, n)) for n in self.counts)


def as_samples(Z: Samples | Tensor) -> Samples:
    """Samples as they are; a tensor (N, C, S) as samples in memory."""
    return Z if isinstance(Z, Samples) else InMemory(Z)
