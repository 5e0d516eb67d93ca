r"""Second moments: all that the problem of one factor needs to know of the data.

With A held, and a rotation of its columns that makes A'A = diag(g), let Y_i = A'Z_i.
As a function of X = P the objective (3) of the paper is

.. math::

    f(X) = E - 2 \langle X, M_1 X \rangle + \langle X'X, X' M_2 X \rangle,
    \qquad M_1 = \sum_i Y_i' Y_i, \quad M_2 = \sum_i Y_i' \,\mathrm{diag}(g)\, Y_i,

with the gradient -4 M1 X + 2 (X X'M2X + M2X X'X), which is equation (4). With P held
instead and P'P = diag(g), the same holds of X = A with Y_i = (Z_i P)', and the
gradient is equation (5). M1 and M2 are sums over samples: they add over batches,
processes and machines, and once they are known a step costs nothing in N.

Floor 0: torch only. Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_sklearn.core.objective import (
    accumulator_dtype,
    batches_of,
    sum_over_rows,
)

__all__ = [
    "ChannelMoments",
    "FactoredMoments",
    "Moments",
    "add_gram",
    "appearance_moments",
    "diagonalised",
    "factored_part_moments",
    "is_cheaper_factored",
    "mirror",
    "part_moments",
]

# Numbers of Z in a batch, so few that its products stay in the cache; and the number
# of batches that a pass takes at least, so that they need little memory beside Z,
# unless they have fewer numbers than the last.
BATCH_ELEMENTS = 2**21
BATCHES_AT_LEAST = 16
SMALLEST_BATCH = 2**16
# Measured on two cores: a descent takes about this many products, and one product of
# FactoredMoments takes this many times longer than its multiplications say.
PRODUCTS = 30
SLOWNESS = 5
# A'Z is kept where it takes at most this share of the memory of Z.
SHARE_TO_KEEP = 1 / 8


@dataclass(frozen=True)
class Moments:
    """M1 and M2 as matrices.

    Attributes
    ----------
    M1, M2 : Tensor of shape (n, n)
        In double precision, whatever the data's.

    energy : scalar Tensor
        sum ||Z_i||^2.

    eps : float
        Relative rounding error of the sums, or of squares of the data if that is more.
    """

    M1: Tensor
    M2: Tensor
    energy: Tensor
    eps: float

    def __add__(self, other: Moments) -> Moments:
        energy = self.energy + other.energy
        # Each is off by its own share of its own energy.
        off = float(self.eps * self.energy + other.eps * other.energy)
        eps = off / float(energy) if float(energy) > 0 else max(self.eps, other.eps)
        return Moments(self.M1 + other.M1, self.M2 + other.M2, energy, eps)

    def to(self, device: torch.device) -> Moments:
        """The same, on a device."""
        M1, M2, energy = (x.to(device) for x in (self.M1, self.M2, self.energy))
        return Moments(M1, M2, energy, self.eps)

    def rescaled(self, c: float) -> Moments:
        """The moments if the factor that was held is multiplied by c."""
        return Moments(c**2 * self.M1, c**4 * self.M2, self.energy, self.eps)

    def products(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """M1 X and M2 X, for X (K, n, r)."""
        return _times(self.M1, X), _times(self.M2, X)


@dataclass(frozen=True)
class FactoredMoments:
    """M1 = sum Y_i' Q1 Y_i and M2 = sum Y_i' Q2 Y_i, never formed.

    For n so large that n x n matrices cost more to fill than they save.

    Attributes
    ----------
    Y : Tensor of shape (N, r, n)

    Q1, Q2 : Tensor of shape (r, r)
        Symmetric.

    energy : scalar Tensor
        sum ||Z_i||^2.

    batch_size : int
        Number of samples whose products are formed at a time.

    dtype : torch.dtype
        Type of the products.
    """

    Y: Tensor
    Q1: Tensor
    Q2: Tensor
    energy: Tensor
    batch_size: int
    dtype: torch.dtype

    def products(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """M1 X and M2 X, for X (K, n, r)."""
        K, n, r = X.shape
        columns = X.transpose(0, 1).reshape(n, K * r).to(self.dtype)
        Q = torch.cat([self.Q1, self.Q2]).to(self.dtype)
        total = torch.zeros(n, 2 * K * r, dtype=X.dtype, device=X.device)
        for batch in self.Y.split(self.batch_size):
            Y = batch.to(self.dtype)
            rows = Y.shape[1]
            YX = (Y.flatten(0, 1) @ columns).reshape(-1, rows, K * r)
            QYX = torch.einsum("qr,nrk->nqk", Q, YX)  # Q1 YX above Q2 YX
            both = torch.cat([QYX[:, :rows], QYX[:, rows:]], dim=2)
            total += sum_over_rows(Y, both)
        M1X, M2X = total.reshape(n, 2, K, r).permute(1, 2, 0, 3)
        return M1X, M2X


def diagonalised(X: Tensor) -> tuple[Tensor, Tensor]:
    """X R and g >= 0 with R orthogonal and (X R)'(X R) = diag(g).

    The objective does not change when a factor is rotated so.
    """
    g, R = torch.linalg.eigh(X.T @ X)
    return X @ R, g.clamp(min=0)


def part_moments(
    Z: Tensor,
    A: Tensor,
    *,
    energy: Tensor,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Moments:
    """Moments of the problem of the parts, at given appearances.

    Parameters
    ----------
    Z, A : Tensor
        Shapes (N, C, S) and (C, R_C).

    energy : scalar Tensor
        sum ||Z_i||^2.

    batch_size : int, default=None
        Number of samples whose products are formed at a time.

    dtype : torch.dtype, default=None
        Type of the products; ``None`` is that of Z.

    Returns
    -------
    moments : Moments
        Of size n = S.
    """
    _, C, S = Z.shape
    dtype = dtype or Z.dtype
    A, g = diagonalised(A)
    eps = _rounding(Z, dtype)
    orthonormal = bool(torch.allclose(g, torch.ones_like(g), rtol=0, atol=8 * eps))
    identity = orthonormal and len(g) == C
    M1 = torch.zeros(S, S, dtype=accumulator_dtype(Z.device), device=Z.device)
    M2 = torch.zeros_like(M1)
    roots = g.sqrt()[:, None].to(dtype)
    for batch in Z.split(batch_size or _samples_of_a_batch(Z, len(g), S)):
        Y = batch.to(dtype) if identity else A.T.to(dtype) @ batch.to(dtype)
        add_gram(M1, Y.flatten(0, 1))
        if not orthonormal:
            add_gram(M2, (roots * Y).flatten(0, 1))
    M1 = mirror(M1)
    M2 = M1 if orthonormal else mirror(M2)
    return Moments(M1, M2, energy, eps)


def factored_part_moments(
    Z: Tensor,
    A: Tensor,
    *,
    energy: Tensor,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> FactoredMoments:
    """The same as :func:`part_moments`, with the S x S matrices left unformed.

    A'Z is kept where that takes little memory beside Z; else each product goes through
    Z itself.
    """
    N, C, S = Z.shape
    dtype = dtype or Z.dtype
    A, g = diagonalised(A)
    R_C = len(g)
    size = batch_size or _samples_of_a_batch(Z, R_C, S)
    if R_C > SHARE_TO_KEEP * C:
        B = A @ A.T
        return FactoredMoments(Z, B, B @ B, energy, size, dtype)
    Y = torch.empty(N, R_C, S, dtype=dtype, device=Z.device)
    for into, batch in zip(Y.split(size), Z.split(size), strict=True):
        torch.matmul(A.T.to(dtype), batch.to(dtype), out=into)
    identity = torch.eye(R_C, dtype=A.dtype, device=A.device)
    return FactoredMoments(Y, identity, g.diag(), energy, size, dtype)


def appearance_moments(
    Z: Tensor,
    P: Tensor,
    *,
    energy: Tensor,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Moments:
    """Moments of the problem of the appearances, at given parts.

    Parameters
    ----------
    Z, P : Tensor
        Shapes (N, C, S) and (S, R_S).

    energy, batch_size, dtype
        As in :func:`part_moments`.

    Returns
    -------
    moments : Moments
        Of size n = C.
    """
    C = Z.shape[1]
    dtype = dtype or Z.dtype
    P, g = diagonalised(P)
    roots = g.sqrt().to(dtype)
    M1 = torch.zeros(C, C, dtype=accumulator_dtype(Z.device), device=Z.device)
    M2 = torch.zeros_like(M1)
    for batch in Z.split(batch_size or _samples_of_a_batch(Z, P.shape[1], C)):
        W = batch.flatten(0, 1).to(dtype) @ P.to(dtype)
        W = W.reshape(len(batch), C, -1)
        add_gram(M1, W.transpose(0, 1).reshape(C, -1).T)
        add_gram(M2, (W * roots).transpose(0, 1).reshape(C, -1).T)
    return Moments(mirror(M1), mirror(M2), energy, _rounding(Z, dtype))


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and scatter of the vectors that channels form, over samples and positions.

    About the mean: of data far from zero the scatter about zero is nearly all offset,
    and in single precision nothing is left of the rest.

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
        cls, Z: Tensor, A: Tensor | None = None, *, products: torch.dtype | None = None
    ) -> ChannelMoments:
        """Those of Z (N, C, S), or of A'Z; batch by batch.

        ``products`` is their type, by default that of Z.
        """
        C = Z.shape[1] if A is None else A.shape[1]
        dtype = accumulator_dtype(Z.device)
        n = 0
        mean = torch.zeros(C, dtype=dtype, device=Z.device)
        scatter = torch.zeros(C, C, dtype=dtype, device=Z.device)
        for batch in batches_of(Z):
            batch = batch.to(products or Z.dtype)
            if A is not None:
                batch = A.T.to(batch) @ batch
            shift = batch.mean(dim=(0, 2))
            rows = batch.new_empty(C, len(batch), batch.shape[2])
            torch.sub(batch.transpose(0, 1), shift[:, None, None], out=rows)
            rows = rows.flatten(1)
            add_gram(scatter, rows.T)
            # What the shift is off by, and how far this batch is from those before.
            rest = rows.mean(dim=1).to(dtype)
            scatter -= rows.shape[1] * torch.outer(rest, rest)
            away = shift.to(dtype) + rest - mean
            n += rows.shape[1]
            share = rows.shape[1] / n
            scatter += (n - rows.shape[1]) * share * torch.outer(away, away)
            mean += share * away
        return cls(n, mean, mirror(scatter))

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
        """The same, on a device."""
        return ChannelMoments(self.n, self.mean.to(device), self.scatter.to(device))

    def turned(self, A: Tensor) -> ChannelMoments:
        """Those of A'z, for A (C, R_C)."""
        A = A.to(self.scatter)
        return ChannelMoments(self.n, A.T @ self.mean, A.T @ self.scatter @ A)

    def tells(self, A: Tensor, eps: float) -> bool:
        """Whether the variances of A'z can be had from these.

        Not if they are what is left of much larger ones of z, whose sums are good to
        about ``eps``: below a hundred times that they are off by a hundredth.
        """
        A = A.to(self.scatter)
        left = (A * (self.scatter @ A)).sum(dim=0)
        whole = A.square().T @ self.scatter.diagonal()
        return bool((left >= 100 * eps * whole).all())

    def about_zero(self) -> Tensor:
        """Sum of z z', of shape (C, C)."""
        return self.scatter + self.n * torch.outer(self.mean, self.mean)


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rows' rows to ``total``, but for the blocks that :func:`mirror` fills.

    In strips of a quarter of the rows, of which each begins at the diagonal.
    """
    for strip in _quarters(len(total)):
        total[strip, strip.start :] += rows[:, strip].T @ rows[:, strip.start :]


def mirror(total: Tensor) -> Tensor:
    """Fill in, in place, what :func:`add_gram` left out."""
    for strip in _quarters(len(total)):
        total[strip.stop :, strip] = total[strip, strip.stop :].T
    return total


def _quarters(n: int) -> list[slice]:
    size = -(-n // 4)
    return [slice(i, i + size) for i in range(0, n, size)]


def is_cheaper_factored(C: int, S: int, R_C: int, R_S: int) -> bool:
    """Whether a descent on the parts costs less with the S x S matrices unformed.

    Per sample, forming them takes 2 R_C S^2 multiplications, and a product without
    them 2 R S R_S, where R is R_C, or C where A'Z is not kept.
    """
    R = R_C if R_C <= SHARE_TO_KEEP * C else C
    return R_C * S > PRODUCTS * SLOWNESS * R * R_S


def _rounding(Z: Tensor, dtype: torch.dtype) -> float:
    """Share of the energy that rounding may have put anywhere, for a type of products.

    By the sums of products; or by the values themselves, whose errors are squared.
    """
    return max(torch.finfo(dtype).eps, torch.finfo(Z.dtype).eps ** 2)


def _samples_of_a_batch(Z: Tensor, rows: int, n: int) -> int:
    """Number of samples whose products are formed at a time.

    Each has ``rows`` rows of n x n sums to add, and sums are the slower to add to the
    fewer rows at a time there are.
    """
    size = max(BATCH_ELEMENTS // Z[0].numel(), n // rows)
    small = max(len(Z) // BATCHES_AT_LEAST, SMALLEST_BATCH // Z[0].numel())
    return max(1, min(size, small))


def _times(M: Tensor, X: Tensor) -> Tensor:
    """M X_k for each X_k of X (K, n, r), in one product."""
    K, n, r = X.shape
    return (M @ X.transpose(0, 1).reshape(n, K * r)).reshape(n, K, r).transpose(0, 1)
