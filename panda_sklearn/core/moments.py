r"""Second moments: all that the problem of one factor needs to know of the data.

With A held, and a rotation of its columns that makes A'A = diag(g), let Y_i = A'Z_i.
As a function of X = P the objective (3) of the paper is

.. math::

    f(X) = E - 2 \langle X, M_1 X \rangle + \langle X'X, X' M_2 X \rangle,
    \qquad M_1 = \sum_i Y_i' Y_i, \quad M_2 = \sum_i Y_i' \,\mathrm{diag}(g)\, Y_i,

with the gradient -4 M1 X + 2 (X X'M2X + M2X X'X), which is equation (4). With P held
instead and P'P = diag(g), the same holds of X = A with Y_i = (Z_i P)', and the
gradient is equation (5). M1 and M2 are sums over samples. So they add over batches,
processes and machines, and once they are known the cost of a step does not depend on N.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_sklearn.core.grams import add_gram, mirror
from panda_sklearn.core.objective import accumulator_dtype, sum_over_rows
from panda_sklearn.core.samples import Samples, as_samples

__all__ = [
    "FactoredMoments",
    "Moments",
    "appearance_moments",
    "diagonalised",
    "factored_appearance_moments",
    "factored_part_moments",
    "is_cheaper_factored",
    "part_moments",
    "thin_products",
]

# Measured on two cores: a descent takes about this many products, and a product of
# FactoredMoments takes this many times longer than its multiplications suggest.
PRODUCTS = 15
SLOWNESS = 3
# A'Z is kept where it takes at most this fraction of the memory of Z.
FRACTION_TO_KEEP = 1 / 2


@dataclass(frozen=True)
class Moments:
    """M1 and M2 as matrices.

    Attributes
    ----------
    M1, M2 : Tensor of shape (n, n)
        In double precision, whatever the type of the data.

    energy : scalar Tensor
        sum ||Z_i||^2.

    eps : float
        Relative rounding error of the sums, or of the squares of the data if larger.
    """

    M1: Tensor
    M2: Tensor
    energy: Tensor
    eps: float

    def __add__(self, other: Moments) -> Moments:
        energy = self.energy + other.energy
        # The error of each is a fraction of its own energy.
        off = float(self.eps * self.energy + other.eps * other.energy)
        eps = off / float(energy) if float(energy) > 0 else max(self.eps, other.eps)
        return Moments(self.M1 + other.M1, self.M2 + other.M2, energy, eps)

    def to(self, device: torch.device) -> Moments:
        """Return the same on a device."""
        M1, M2, energy = (x.to(device) for x in (self.M1, self.M2, self.energy))
        return Moments(M1, M2, energy, self.eps)

    def rescaled(self, c: float) -> Moments:
        """Return the moments for the held factor multiplied by c."""
        return Moments(c**2 * self.M1, c**4 * self.M2, self.energy, self.eps)

    def products(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return M1 X and M2 X, for X (K, n, r)."""
        return _times(self.M1, X), _times(self.M2, X)


@dataclass(frozen=True)
class FactoredMoments:
    """M1 = sum Y_i' Q1 Y_i and M2 = sum Y_i' Q2 Y_i, never formed.

    For n so large that filling n x n matrices costs more than it saves.

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

    eps : float
        As in :class:`Moments`.
    """

    Y: Tensor
    Q1: Tensor
    Q2: Tensor
    energy: Tensor
    batch_size: int
    dtype: torch.dtype
    eps: float

    def products(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return M1 X and M2 X, for X (K, n, r)."""
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
    """Return X R and g >= 0, with R orthogonal and (X R)'(X R) = diag(g).

    Such a rotation of a factor does not change the objective.
    """
    G = X.T @ X
    g = G.diagonal()
    rounding = torch.finfo(G.dtype).eps * len(G) * g.max()
    if bool((G - g.diag()).abs().max() <= rounding):  # G is diagonal already
        return X, g.clone()
    g, R = torch.linalg.eigh(G)
    return X @ R, g.clamp(min=0)


def part_moments(
    Z: Samples | Tensor,
    A: Tensor,
    *,
    energy: Tensor,
    dtype: torch.dtype | None = None,
) -> Moments:
    """Return the moments of the problem of the parts, at given appearances.

    Parameters
    ----------
    Z : Samples, or Tensor of shape (N, C, S)

    A : Tensor of shape (C, R_C)

    energy : scalar Tensor
        sum ||Z_i||^2.

    dtype : torch.dtype, default=None
        Type of the products; ``None`` is that of Z.

    Returns
    -------
    moments : Moments
        Of size n = S.
    """
    samples = as_samples(Z)
    C, S = samples.n_channels, samples.n_positions
    dtype = dtype or samples.dtype
    A, g = diagonalised(A)
    eps = _rounding(samples, dtype)
    orthonormal = bool(torch.allclose(g, torch.ones_like(g), rtol=0, atol=8 * eps))
    identity = orthonormal and len(g) == C
    add = _AddOfParts(
        columns=None if identity else A.T.to(dtype),
        roots=None if orthonormal else g.sqrt()[:, None].to(dtype),
        dtype=dtype,
    )
    M1, M2 = samples.accumulate(add, *_zeros(samples, S), size=S // len(g))
    M1 = mirror(M1)
    return Moments(M1, M1 if orthonormal else mirror(M2), energy, eps)


@dataclass(frozen=True)
class _AddOfParts:
    """Adds a batch's moments of the problem of the parts.

    ``columns`` is A', or ``None`` for the identity. With A'A = diag(g), ``roots`` are
    the square roots of g, or ``None`` if all are 1, where M2 is M1.
    """

    columns: Tensor | None
    roots: Tensor | None
    dtype: torch.dtype

    def __call__(self, batch: Tensor, M1: Tensor, M2: Tensor) -> None:
        Y = batch.to(self.dtype)
        if self.columns is not None:
            Y = self.columns @ Y
        add_gram(M1, Y.flatten(0, 1))
        if self.roots is not None:
            add_gram(M2, (self.roots * Y).flatten(0, 1))


def factored_part_moments(
    Z: Tensor,
    A: Tensor,
    *,
    energy: Tensor,
    dtype: torch.dtype | None = None,
) -> FactoredMoments:
    """Return the moments of :func:`part_moments` without forming S x S matrices.

    For samples in memory. A'Z is kept where it takes little memory beside Z. Elsewhere
    each product goes through Z itself.
    """
    N, C, S = Z.shape
    dtype = dtype or Z.dtype
    A, g = diagonalised(A)
    R_C = len(g)
    size, eps = max(1, 2**21 // (C * S)), _rounding(Z, dtype)
    if R_C > FRACTION_TO_KEEP * C:
        B = A @ A.T
        return FactoredMoments(Z, B, B @ B, energy, size, dtype, eps)
    Y = torch.empty(N, R_C, S, dtype=dtype, device=Z.device)
    for into, batch in zip(Y.split(size), Z.split(size), strict=True):
        torch.matmul(A.T.to(dtype), batch.to(dtype), out=into)
    identity = torch.eye(R_C, dtype=A.dtype, device=A.device)
    return FactoredMoments(Y, identity, g.diag(), energy, size, dtype, eps)


def appearance_moments(
    Z: Samples | Tensor,
    P: Tensor,
    *,
    energy: Tensor,
    dtype: torch.dtype | None = None,
) -> Moments:
    """Return the moments of the problem of the appearances, at given parts (S, R_S).

    As :func:`part_moments`, with n = C.
    """
    samples = as_samples(Z)
    rows = _Rows(samples, P, dtype)
    totals = _zeros(samples, samples.n_channels)
    M1, M2 = samples.accumulate(rows.add, *totals, size=rows.size)
    return Moments(mirror(M1), mirror(M2), energy, _rounding(samples, rows.dtype))


def factored_appearance_moments(
    Z: Tensor,
    P: Tensor,
    *,
    energy: Tensor,
    dtype: torch.dtype | None = None,
) -> FactoredMoments:
    """Return those of :func:`appearance_moments` without forming C x C matrices.

    For samples in memory, so few that the rows of all W_i' are fewer than channels.
    """
    dtype = dtype or Z.dtype
    P, g = diagonalised(P)
    W = (Z.to(dtype) @ P.to(dtype)).mT.contiguous()
    identity = torch.eye(len(g), dtype=P.dtype, device=P.device)
    eps = _rounding(Z, dtype)
    return FactoredMoments(W, identity, g.diag(), energy, len(W), dtype, eps)


def thin_products(
    Z: Samples | Tensor,
    A: Tensor,
    P: Tensor,
    *,
    energy: Tensor,
    dtype: torch.dtype | None = None,
) -> tuple[Moments, tuple[Tensor, Tensor]]:
    """Return what one pass tells at a pair of factors without an S x S product.

    Returns
    -------
    of_appearances : Moments
        As :func:`appearance_moments` at P.

    part_products : tuple of Tensor of shape (S, R_S)
        M1 P and M2 P, with the moments of :func:`part_moments` at A.
    """
    samples = as_samples(Z)
    rows = _Rows(samples, P, dtype)
    C, R_C = A.shape
    if 2 * R_C > C:
        add = _AddThin(rows, (A @ A.T).to(rows.dtype), None, None)
    else:
        factors = (x.to(rows.dtype) for x in (A, A.T, A.T @ A))
        add = _AddThin(rows, *factors)
    products = torch.zeros(
        2 * P.shape[1],
        samples.n_positions,
        dtype=accumulator_dtype(samples.device),
        device=samples.device,
    )
    M1, M2, products = samples.accumulate(
        add, *_zeros(samples, C), products, size=rows.size
    )
    moments = Moments(mirror(M1), mirror(M2), energy, _rounding(samples, rows.dtype))
    M1P, M2P = (rows.back @ products.view(2, P.shape[1], -1)).mT
    return moments, (M1P, M2P)


@dataclass(frozen=True)
class _AddThin:
    """Adds what :func:`thin_products` sums of a batch.

    ``first`` is A, ``last`` A' and ``metric`` A'A; or ``first`` is AA' and the others
    are ``None``.
    """

    rows: _Rows
    first: Tensor
    last: Tensor | None
    metric: Tensor | None

    def __call__(self, batch: Tensor, M1: Tensor, M2: Tensor, products: Tensor) -> None:
        W = self.rows.add(batch, M1, M2)  # (R_S n, C): rows of W_i', part by part
        L = W @ self.first
        if self.last is None or self.metric is None:
            one, two = L, L @ self.first
        else:
            one, two = L @ self.last, (L @ self.metric) @ self.last
        both = torch.cat([one, two]).view(len(products), -1)
        products += both @ batch.flatten(0, 1).to(both)


class _Rows:
    """The rows of all W_i' = P'Z_i' and their sums of outer products.

    P is rotated so that P'P is diagonal. ``back`` undoes the rotation in what is linear
    in P.
    """

    def __init__(self, samples: Samples, P: Tensor, dtype: torch.dtype | None) -> None:
        self.dtype = dtype or samples.dtype
        g, self.back = torch.linalg.eigh(P.T @ P)
        self.columns = (P @ self.back).T.to(self.dtype)
        self.roots = g.clamp(min=0).sqrt()[:, None].to(self.dtype)
        self.size = samples.n_channels // P.shape[1]

    def add(self, batch: Tensor, M1: Tensor, M2: Tensor) -> Tensor:
        """Add those of a batch, and return its rows (R_S n, C), part by part."""
        _, C, S = batch.shape
        W = self.columns @ batch.reshape(-1, S).T.to(self.dtype)
        add_gram(M1, W.view(-1, C))
        add_gram(M2, (self.roots * W).view(-1, C))
        return W.view(-1, C)


def _zeros(samples: Samples, n: int) -> tuple[Tensor, Tensor]:
    """Return totals for M1 and M2, zero."""
    dtype = accumulator_dtype(samples.device)
    both = torch.zeros(2, n, n, dtype=dtype, device=samples.device)
    return both[0], both[1]


def is_cheaper_factored(C: int, S: int, R_C: int, R_S: int) -> bool:
    """Whether a descent on the parts costs less without forming S x S matrices.

    Per sample, forming them takes 2 R_C S^2 multiplications, and a product without
    them 2 R S R_S, where R is R_C, or C where A'Z is not kept.
    """
    R = R_C if R_C <= FRACTION_TO_KEEP * C else C
    return R_C * S > PRODUCTS * SLOWNESS * R * R_S


def _rounding(Z: Samples | Tensor, dtype: torch.dtype) -> float:
    """Return the fraction of the energy by which rounding may change any sum.

    Either that of products of type ``dtype``, or the squared one of the values of Z.
    """
    return max(torch.finfo(dtype).eps, torch.finfo(Z.dtype).eps ** 2)


def _times(M: Tensor, X: Tensor) -> Tensor:
    """Return M X_k for each X_k of X (K, n, r), by one product."""
    K, n, r = X.shape
    return (M @ X.transpose(0, 1).reshape(n, K * r)).reshape(n, K, r).transpose(0, 1)
