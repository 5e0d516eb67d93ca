r"""How the coefficients of each part vary over samples, and what that looks like.

Let :math:`l_{ik}`, a column of :math:`L_i = A^\top Z_i P` (equation (2)), be the
coefficients of sample i at part k. What the part shows of the sample is the vector of
channels :math:`A l_{ik}`. The principal components of these vectors are the part's
variations.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_sklearn.core.canonical import signed
from panda_sklearn.core.objective import accumulator_dtype

__all__ = [
    "CoefficientMoments",
    "CoefficientSums",
    "Distances",
    "principal_variations",
    "without_others",
]

# The ridge added to variances of coefficients before dividing by them, as a fraction of
# their mean: those of the other parts, where these explain a part's variance; and those
# of a part, where distances are measured.
RIDGE = 1e-2


@dataclass(frozen=True)
class CoefficientMoments:
    """Mean and scatter of the coefficients of each part, over samples.

    Attributes
    ----------
    n : int
        Number of samples.

    mean : Tensor of shape (R_S, R_C)

    own : Tensor of shape (R_S, R_C, R_C)
        Sum over samples of (l_k - mean)(l_k - mean)'.

    cross : Tensor of shape (R_S, R_C, R_C)
        Likewise of l_k and the sum of l over all parts; all in double precision.
    """

    n: int
    mean: Tensor
    own: Tensor
    cross: Tensor

    def __add__(self, other: CoefficientMoments) -> CoefficientMoments:
        n = self.n + other.n
        away = other.mean - self.mean
        weight = self.n * other.n / n
        return CoefficientMoments(
            n,
            self.mean + other.n / n * away,
            self.own + other.own + weight * _outer(away, away),
            self.cross + other.cross + weight * _outer(away, away.sum(dim=0)),
        )

    def to(self, device: torch.device) -> CoefficientMoments:
        """Return the same on a device."""
        arrays = (T.to(device) for T in (self.mean, self.own, self.cross))
        return CoefficientMoments(self.n, *arrays)

    def turned(
        self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
    ) -> CoefficientMoments:
        """Return those at other factors (A, P), as far as these determine them.

        Each new appearance counts as the nearest combination of the old ones, each new
        part as a multiple, of either sign, of the old part most similar to it, and the
        sum over parts as the mean multiple of the old sum.
        """
        (A, P), (new_A, new_P) = (
            tuple(factor.to(self.own) for factor in pair) for pair in (before, after)
        )
        turn = torch.linalg.pinv(A) @ new_A  # (R_C, R_C)
        products = P.T @ new_P
        sizes = P.square().sum(dim=0)
        tiny = torch.finfo(P.dtype).tiny
        alike = products / sizes.sqrt().clamp(min=tiny)[:, None]
        nearest = alike.abs().argmax(dim=0)
        scale = products.gather(0, nearest[None])[0] / sizes[nearest].clamp(min=tiny)
        scales = scale[:, None, None]
        own = scales.square() * (turn.T @ self.own[nearest] @ turn)
        cross = scales * scale.abs().mean() * (turn.T @ self.cross[nearest] @ turn)
        mean = scale[:, None] * (self.mean[nearest] @ turn)
        return CoefficientMoments(self.n, mean, own, cross)


class CoefficientSums:
    """The sums of one pass that :class:`CoefficientMoments` are made of.

    They are about the mean of the first samples, which is near that of all.
    """

    def __init__(self, A: Tensor, P: Tensor) -> None:
        self.A, self.P = A, P
        self.shift: Tensor | None = None

    def totals(self) -> tuple[Tensor, ...]:
        """Return the sums of the coefficients and of their products, zeros."""
        R_C, R_S, device = self.A.shape[1], self.P.shape[1], self.A.device
        total = torch.zeros(R_S, R_C, dtype=accumulator_dtype(device), device=device)
        return total, total.new_zeros(R_S, R_C, R_C), total.new_zeros(R_S, R_C, R_C)

    def begin(self, batch: Tensor) -> None:
        """Let the sums be about the mean of a batch."""
        self.shift = self._coefficients(batch).mean(dim=1)

    def _coefficients(self, batch: Tensor) -> Tensor:
        """Return the coefficients of a batch, (R_S, n, R_C)."""
        W = (batch @ self.P.to(batch)).permute(2, 0, 1)  # (R_S, n, C)
        rows = W.flatten(0, 1) @ self.A.to(batch)
        return rows.unflatten(0, W.shape[:2])

    def add(self, batch: Tensor, total: Tensor, own: Tensor, cross: Tensor) -> None:
        """Add those of a batch."""
        rows = self._coefficients(batch)
        if self.shift is None:
            self.shift = rows.mean(dim=1)
        rows = rows - self.shift[:, None]
        of_sum = rows.sum(dim=0)
        total += rows.sum(dim=1)
        own += rows.mT @ rows
        cross += (rows.permute(0, 2, 1).flatten(0, 1) @ of_sum).unflatten(
            0, cross.shape[:2]
        )

    def moments(self, totals: tuple[Tensor, ...], n_samples: int) -> CoefficientMoments:
        """Return the moments, from the sums over all samples."""
        total, own, cross = totals
        assert self.shift is not None
        away = total / n_samples
        return CoefficientMoments(
            n_samples,
            self.shift.to(away) + away,
            own - n_samples * _outer(away, away),
            cross - n_samples * _outer(away, away.sum(dim=0)),
        )


def without_others(own: Tensor, cross: Tensor, of_sum: Tensor) -> Tensor:
    """Return covariances of parts' coefficients, less what the other parts explain.

    That is the partial covariance C - B (O + ridge)^-1 B', with B the covariance of the
    part with the sum of the others, and O the covariance of this sum.

    Parameters
    ----------
    own, cross : Tensor of shape (n, R_C, R_C)
        Covariances of the coefficients of each of these parts, and their covariances
        with the sum over all parts.

    of_sum : Tensor of shape (R_C, R_C)
        Covariance of the sum over all parts.

    Returns
    -------
    covariances : Tensor of shape (n, R_C, R_C)
    """
    explaining = of_sum - cross - cross.mT + own
    # Those of a stream are approximate, and may not be positive semi-definite.
    variances, V = torch.linalg.eigh((explaining + explaining.mT) / 2)
    variances = variances.clamp(min=0)
    level = variances.mean(dim=1, keepdim=True)
    # Where nothing else varies, nothing is explained.
    ridge = torch.where(level > 0, RIDGE * level, 1.0)
    B = (cross - own) @ V
    return own - (B / (variances + ridge)[:, None]) @ B.mT


@dataclass(frozen=True)
class Distances:
    """How far coefficients of a part are from those of the samples.

    That is the Mahalanobis distance, with a ridge in the covariance, over its root mean
    square among the samples.

    Attributes
    ----------
    mean : Tensor of shape (R_C,)
    axes : Tensor of shape (R_C, R_C) or None
        Principal axes, each divided by its standard deviation and by the root mean
        square; ``None`` where samples do not vary.
    """

    mean: Tensor
    axes: Tensor | None

    @classmethod
    def about(cls, mean: Tensor, covariance: Tensor) -> Distances:
        """Return those about a mean (R_C,) with a covariance (R_C, R_C)."""
        variances, V = torch.linalg.eigh((covariance + covariance.T) / 2)
        variances = variances.clamp(min=0)
        level = variances.mean()
        if level == 0:
            return cls(mean, None)
        widths = variances + RIDGE * level
        return cls(mean, V / (widths * (variances / widths).sum()).sqrt())

    def of(self, L: Tensor) -> Tensor:
        """Return those of coefficients (..., R_C).

        They are infinite off the mean where samples do not vary.
        """
        away = L - self.mean
        if self.axes is None:
            return torch.where(away.any(dim=-1), torch.inf, 0.0)
        return (away @ self.axes).norm(dim=-1)


def principal_variations(A: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal components of the vectors A l, from the covariance of l.

    Parameters
    ----------
    A : Tensor of shape (C, R_C)

    covariance : Tensor of shape (R_C, R_C)

    Returns
    -------
    vectors : Tensor of shape (C, n)
        Orthonormal, as many as A has independent columns; the entry of largest
        magnitude of each is positive.

    stds : Tensor of shape (n,)
        Standard deviations along them, falling.
    """
    U, sizes, Vh = torch.linalg.svd(A, full_matrices=False)
    eps = torch.finfo(A.dtype).eps * max(A.shape)
    rank = int((sizes > eps * sizes[:1]).sum())
    T = sizes[:rank, None] * Vh[:rank]
    M = T @ covariance @ T.T
    variances, W = torch.linalg.eigh((M + M.T) / 2)
    vectors = U[:, :rank] @ W.flip(1)
    return signed(vectors), variances.flip(0).clamp(min=0).sqrt()


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return the outer products of rows."""
    return x[..., :, None] * y[..., None, :]
