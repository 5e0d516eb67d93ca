"""Mean and scatter of the channels, and the first pass of a fit.

At each position of each sample the channels form a vector. The first pass counts the
samples, sums their squares, computes the scatter of these vectors where it is wanted,
and keeps some samples in memory.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_sklearn.core.grams import add_gram, mirror
from panda_sklearn.core.objective import accumulator_dtype, sample_energies
from panda_sklearn.core.samples import (
    InMemory,
    Samples,
    Sums,
    Together,
    as_samples,
    in_one_pass,
)

__all__ = ["ChannelMoments", "ChannelSums", "EnergySums", "Summary", "summarise"]

# Sums are about the mean of the first batch where that is more than this many standard
# deviations from zero.
FAR = 3.0


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and scatter of the vectors of channels, over samples and positions.

    The scatter is about the mean. That about zero of data far from zero would be nearly
    all offset, and single precision would lose the rest.

    Attributes
    ----------
    n : int
        Number of vectors.

    mean : Tensor of shape (C,)

    scatter : Tensor of shape (C, C)
        Sum of (z - mean)(z - mean)'; both in double precision.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of_data(
        cls,
        Z: Samples | Tensor,
        A: Tensor | None = None,
        *,
        products: torch.dtype | None = None,
    ) -> ChannelMoments:
        """Return those of Z (N, C, S), or of A'Z.

        ``products`` is the type of the products, by default that of Z.
        """
        samples = as_samples(Z)
        (moments,) = in_one_pass(samples, ChannelSums(samples, A, products), size=1)
        return moments

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        n = self.n + other.n
        away = other.mean - self.mean
        between = self.n * other.n / n * torch.outer(away, away)
        return ChannelMoments(
            n,
            self.mean + other.n / n * away,
            self.scatter + other.scatter + between,
        )

    def to(self, device: torch.device) -> ChannelMoments:
        """Return the same on a device."""
        return ChannelMoments(self.n, self.mean.to(device), self.scatter.to(device))

    def turned(self, A: Tensor) -> ChannelMoments:
        """Return those of A'z, for A (C, R_C)."""
        A = A.to(self.scatter)
        return ChannelMoments(self.n, A.T @ self.mean, A.T @ self.scatter @ A)

    def tells(self, A: Tensor, eps: float) -> bool:
        """Whether these are exact enough to give the variances of A'z.

        They are not where variances of A'z are small differences of much larger ones of
        z. Sums are good to about ``eps``, so variances below a hundred times that
        fraction are off by a hundredth or more.
        """
        A = A.to(self.scatter)
        left = (A * (self.scatter @ A)).sum(dim=0)
        whole = A.square().T @ self.scatter.diagonal()
        return bool((left >= 100 * eps * whole).all())

    def about_zero(self) -> Tensor:
        """Return the sum of z z', of shape (C, C)."""
        return self.scatter + self.n * torch.outer(self.mean, self.mean)


class ChannelSums:
    """The sums of one pass that :class:`ChannelMoments` of z or of A'z are made of.

    They are about a vector near the mean, taken from the first batch.
    """

    def __init__(
        self,
        samples: Samples,
        A: Tensor | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        self.size = samples.n_channels if A is None else A.shape[1]
        self.n_positions, self.device = samples.n_positions, samples.device
        self.A, self.products = A, products or samples.dtype
        self.shift: Tensor | None = None

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the sums of the vectors and of their outer products, zeros."""
        dtype = accumulator_dtype(self.device)
        total = torch.zeros(self.size, dtype=dtype, device=self.device)
        return total, total.new_zeros(self.size, self.size)

    def begin(self, batch: Tensor) -> None:
        """Let the sums be about the mean of a batch, where that is far from zero."""
        batch = self._vectors(batch)
        mean, spread = batch.mean(dim=(0, 2)), batch.std(dim=(0, 2), correction=0)
        self.shift = torch.where(mean.abs() > FAR * spread, mean, 0)
        self.shifted = bool(self.shift.any())

    def add(self, batch: Tensor, total: Tensor, scatter: Tensor) -> None:
        """Add those of a batch."""
        if self.shift is None:
            self.begin(batch)
        rows = self._vectors(batch).transpose(0, 1).flatten(1)
        if self.shifted:
            assert self.shift is not None
            rows = rows - self.shift[:, None]
        total += rows.sum(dim=1)
        add_gram(scatter, rows.T)

    def _vectors(self, batch: Tensor) -> Tensor:
        """Return Z or A'Z of a batch, (n, size, S)."""
        batch = batch.to(self.products)
        return batch if self.A is None else self.A.T.to(batch) @ batch

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> ChannelMoments:
        """Return the moments, from the sums over all samples."""
        total, scatter = totals
        assert self.shift is not None
        n = n_samples * self.n_positions
        away = total / n
        scatter = mirror(scatter) - n * torch.outer(away, away)
        return ChannelMoments(n, self.shift.to(away) + away, scatter)


class EnergySums:
    """The sum of squares of all samples, as sums of one pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def totals(self) -> tuple[Tensor]:
        """Return the sum, zero."""
        dtype = accumulator_dtype(self.device)
        return (torch.zeros((), dtype=dtype, device=self.device),)

    def begin(self, batch: Tensor) -> None:
        """Do nothing: the sum is about zero."""

    def add(self, batch: Tensor, energy: Tensor) -> None:
        """Add that of a batch."""
        energy += sample_energies(batch).sum()

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> Tensor:
        """Return the sum itself."""
        return totals[0]


@dataclass(frozen=True)
class Summary:
    """What a fit knows of all samples before it begins.

    Attributes
    ----------
    n_samples : int

    energy : scalar Tensor
        sum ||Z_i||^2, in double precision.

    channels : ChannelMoments or None

    kept : InMemory
        Some samples, in memory; all of them if there are no more than asked for.

    energy_of_kept : scalar Tensor
        Their sum of squares.
    """

    n_samples: int
    energy: Tensor
    channels: ChannelMoments | None
    kept: InMemory
    energy_of_kept: Tensor


def summarise(
    samples: Samples,
    n_some: Callable[[int], int],
    generator: torch.Generator,
    *,
    channels: bool,
) -> Summary:
    """Go through all samples, in one pass.

    Parameters
    ----------
    samples : Samples

    n_some : callable
        Returns how many of N samples to keep in memory; for a larger N, no fewer.

    generator : torch.Generator
        Draws them: the same ones, wherever the samples are.

    channels : bool
        Whether to compute the channels' moments, which cost most.
    """
    sums: list[Sums] = [EnergySums(samples.device)]
    if channels:
        sums.append(ChannelSums(samples))
    samples.begin(*sums)
    together = Together(sums)
    found, kept = samples.look(
        together.add, *together.totals(), n_some=n_some, generator=generator
    )
    n_samples = samples.n_samples
    assert n_samples is not None  # a pass has counted them
    energy, *moments = together.moments(found, n_samples)
    return Summary(
        n_samples,
        energy,
        moments[0] if channels else None,
        kept,
        sample_energies(kept.Z).sum(),
    )
