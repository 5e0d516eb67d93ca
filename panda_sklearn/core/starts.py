"""Starting points for the solvers (section 3.4 of the paper).

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.canonical import signed
from panda_sklearn.core.channels import ChannelMoments
from panda_sklearn.core.objective import accumulator_dtype

__all__ = [
    "grown_parts",
    "hosvd",
    "leading_appearances",
    "nearly_hosvd",
    "random_appearances",
    "random_parts",
    "revived",
]

# Subspace iteration: vectors beyond those asked for, and products with the scatter.
SPARE = 8
TURNS = 6


def hosvd(Z: Tensor, n_appearances: int) -> Tensor:
    """Return the leading left singular vectors of the mode-2 unfolding of Z.

    As :func:`leading_appearances`, in the type of Z.
    """
    scatter = ChannelMoments.of_data(Z).about_zero()
    return leading_appearances(scatter, n_appearances).to(Z.dtype)


def leading_appearances(scatter: Tensor, n_appearances: int) -> Tensor:
    """Return the leading eigenvectors of sum_i Z_i Z_i', the scatter (section 3.4).

    Each is signed so that its entry of largest magnitude is positive.

    Returns
    -------
    A : Tensor of shape (C, n_appearances)
        Orthonormal columns, by falling eigenvalue.
    """
    vectors = torch.linalg.eigh(scatter).eigenvectors  # rising eigenvalues
    return signed(vectors.flip(1)[:, :n_appearances]).contiguous()


def nearly_hosvd(Z: Tensor, n_appearances: int, generator: torch.Generator) -> Tensor:
    """Return about what :func:`hosvd` gives, without forming a C x C matrix.

    By subspace iteration: the span of a few more vectors than asked for is multiplied
    by the scatter again and again (Halko, Martinsson, Tropp, "Finding structure with
    randomness", SIAM Review 53(2), 2011).
    """
    C = Z.shape[1]
    rows = Z.transpose(0, 1).flatten(1)  # (C, N S)
    drawn = random_appearances(C, min(n_appearances + SPARE, C), generator)
    basis = drawn.to(Z)
    for _ in range(TURNS):
        basis = torch.linalg.qr(rows @ (rows.T @ basis)).Q
    seen = (rows.T @ basis).to(accumulator_dtype(Z.device))
    vectors = torch.linalg.eigh(seen.T @ seen).eigenvectors.flip(1)
    return signed(basis @ vectors[:, :n_appearances].to(basis)).contiguous()


def random_appearances(
    n_channels: int, n_appearances: int, generator: torch.Generator
) -> Tensor:
    """Draw orthonormal columns that span a uniformly random subspace.

    Returns
    -------
    A : Tensor of shape (n_channels, n_appearances), float64, on the CPU
    """
    shape = n_channels, n_appearances
    draw = torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)
    return torch.linalg.qr(draw).Q.contiguous()


def random_parts(n_positions: int, n_parts: int, generator: torch.Generator) -> Tensor:
    """Draw entries from U(0, 0.01), as in Algorithm 1.

    Returns
    -------
    P : Tensor of shape (n_positions, n_parts), float64, on the CPU
        On the CPU whatever the device of the data, so that a seed means the same
        everywhere.
    """
    shape = n_positions, n_parts
    draw = torch.rand(shape, dtype=torch.float64, device="cpu", generator=generator)
    return 0.01 * draw


def revived(P: Tensor, generator: torch.Generator) -> Tensor:
    """Return P with zero parts drawn anew, since no descent leads away from zero."""
    drawn = random_parts(P.shape[0], P.shape[1], generator).to(P)
    return torch.where(P.any(dim=0), P, drawn)


def grown_parts(
    gram: Tensor, n_parts: int, generator: torch.Generator, eps: float
) -> Tensor:
    """Return parts grown around positions that differ most from each other.

    Anchors are the pivots of the pivoted Cholesky factorisation of ``gram``: first the
    position with the most energy, then again and again the one that the anchors so far
    explain least. Each position belongs to the anchor with which its cosine is largest,
    with the weight sqrt(energy) x cosine. On data in which each part has positions of
    its own, these are the parts.

    Parameters
    ----------
    gram : Tensor of shape (S, S)
        sum_i Z_i' A A' Z_i.

    n_parts : int

    generator : torch.Generator
        Draws the parts beyond the rank of ``gram``, for which no anchor is left, as in
        :func:`random_parts`.

    eps : float
        Relative rounding error of ``gram``.

    Returns
    -------
    P : Tensor of shape (S, n_parts), in the type of ``gram``
        Columns of unit norm.
    """
    S = len(gram)
    energies = gram.diagonal().clamp(min=0)
    residual = energies.clone()
    columns = torch.zeros(S, 0, dtype=gram.dtype, device=gram.device)
    anchors: list[int] = []
    for _ in range(n_parts):
        anchor = int(residual.argmax())
        if not residual[anchor] > 100 * eps * energies.max():
            break
        column = gram[:, anchor] - columns @ columns[anchor]
        column = column / residual[anchor].sqrt()
        residual = residual - column.square()
        residual[anchor] = 0
        columns = torch.cat([columns, column[:, None]], dim=1)
        anchors.append(anchor)
    P = random_parts(S, n_parts, generator).to(gram)
    if anchors:
        weights, owners = (gram[:, anchors] / energies[anchors].sqrt()).max(dim=1)
        weights[anchors] = energies[anchors].sqrt()
        owners[anchors] = torch.arange(len(anchors), device=owners.device)
        alone = torch.zeros(S, len(anchors), dtype=gram.dtype, device=gram.device)
        alone.scatter_(1, owners[:, None], weights[:, None].clamp(min=0))
        P[:, : len(anchors)] = alone
    return P / torch.linalg.vector_norm(P, dim=0)
