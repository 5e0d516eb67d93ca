"""Starting points for the solvers (section 3.4 of the paper).

Floor 0: torch only. Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.objective import accumulator_dtype, batches_of

__all__ = ["channel_scatter", "hosvd", "random_appearances", "random_parts"]


def channel_scatter(Z: Tensor) -> Tensor:
    """Uncentred channel scatter sum_i Z_i Z_i', of shape (C, C).

    Accumulated in double precision batch by batch: squaring the singular values in
    single precision would lose those below 3e-4 of the largest. Z is never copied
    whole.
    """
    C = Z.shape[1]
    total = torch.zeros(C, C, dtype=accumulator_dtype(Z.device), device=Z.device)
    for batch in batches_of(Z):
        rows = batch.to(total.dtype).transpose(0, 1).reshape(C, -1)  # (C, batch * S)
        total += rows @ rows.T
    return total


def hosvd(Z: Tensor, n_appearances: int) -> Tensor:
    """Leading eigenvectors of the channel scatter (section 3.4).

    These are the leading left singular vectors of the mode-2 unfolding of Z. Each
    is signed so that its entry of largest magnitude is positive.

    Returns
    -------
    A : Tensor of shape (C, n_appearances)
        Orthonormal columns, by falling eigenvalue.
    """
    vectors = torch.linalg.eigh(channel_scatter(Z)).eigenvectors  # rising eigenvalues
    A = vectors.flip(1)[:, :n_appearances]
    peaks = A.gather(0, A.abs().argmax(dim=0, keepdim=True))  # (1, n_appearances)
    return torch.where(peaks < 0, -A, A).to(Z.dtype).contiguous()


def random_appearances(
    n_channels: int, n_appearances: int, generator: torch.Generator
) -> Tensor:
    """Orthonormal columns spanning a uniformly random subspace.

    Returns
    -------
    A : Tensor of shape (n_channels, n_appearances), float64, on the CPU
    """
    draw = torch.randn(
        n_channels, n_appearances, dtype=torch.float64, generator=generator
    )
    return torch.linalg.qr(draw).Q.contiguous()


def random_parts(n_positions: int, n_parts: int, generator: torch.Generator) -> Tensor:
    """Entries from U(0, 0.01), as in Algorithm 1.

    Returns
    -------
    P : Tensor of shape (n_positions, n_parts), float64, on the CPU
        On the CPU whatever the data's device, so that a seed means the same
        everywhere.
    """
    draw = torch.rand(n_positions, n_parts, dtype=torch.float64, generator=generator)
    return 0.01 * draw
