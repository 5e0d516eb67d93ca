r"""The objective of PandA and its gradients.

Oldfield et al., *PandA: Unsupervised Learning of Parts and Appearances in the
Feature Maps of GANs* (ICLR 2023), equations (3) to (5).

Notation
--------
====  ==============  ============================================================
Z     (N, C, S)       activations: N samples, C channels, S positions
A     (C, R_C)        appearances, free
P     (S, R_S)        parts; here of any sign, which is the solvers' concern
W     (N, C, R_S)     Z_i P
Y     (N, R_C, S)     A' Z_i
L     (N, R_C, R_S)   coefficients A' Z_i P = A' W_i = Y_i P
G     (R_C, R_C)      A' A
H     (R_S, R_S)      P' P
X     (N, R_C, R_S)   G L_i H - 2 L_i
====  ==============  ============================================================

Everything follows from X: with E = sum ||Z_i||^2,

.. math::

    f &= E + \sum_i \langle L_i, X_i \rangle, \\
    \nabla_P f &= 2 \bigl( P \sum_i L_i' G L_i + \sum_i Z_i' A X_i \bigr), \\
    \nabla_A f &= 2 \bigl( A \sum_i L_i H L_i' + \sum_i Z_i P X_i' \bigr),

which are (3), (4) and (5) with the products associated so that no S x S matrix is
formed, and a C x C one only where R_C is near C and it saves work. There are three
ways to compute them, and each function takes the cheapest for the shapes at hand:

- "positions" sums over positions first: W, then L = A'W;
- "channels" sums over channels first: Y, then L = YP;
- "projector" needs no L: with B = AA'W, (4) is P sum B'B + sum Z'(AA'BH - 2B), and
  (5) is A (A'K A) + K A G - 2 M A with K = sum W H W' and M = sum W W'.

Multiplications per sample (w = C S R_S, or 0 where the caller gives W):

=========== ================================== ===================================
way         gradient in P                      gradient in A
=========== ================================== ===================================
positions   w + C S R_S + 2 C R_C R_S + R_C^2  w + 2 C R_C R_S + 2 R_C^2 R_S +
            R_S + 2 R_C R_S^2                  R_C R_S^2
channels    C S R_C + 2 S R_C R_S + R_C^2 R_S  2 C S R_C + 2 S R_C R_S + 2 R_C^2
            + 2 R_C R_S^2                      R_S + R_C R_S^2
projector   w + C S R_S + 2 C^2 R_S +          w + 2 C^2 R_S + C R_S^2
            2 C R_S^2
=========== ================================== ===================================

and each sample's share of the products that involve no samples, such as A'A. A test
counts them all: no more than twice what the costliest term of (3), (4) or (5) takes on
its own in its best order; three times for R_C = C with few positions or R_S = S.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.samples import Samples, as_samples

__all__ = [
    "accumulator_dtype",
    "batches_of",
    "cancels",
    "gradient_appearances",
    "gradient_parts",
    "objective_of",
    "sample_energies",
    "sample_objectives",
    "sum_over_rows",
    "total_objective",
]

# Elements of Z that may be copied into double precision at a time (16 MB).
BATCH_ELEMENTS = 2**21

# An objective below this fraction of the sum of squares is a small difference of large
# numbers. Single precision, good to about 1e-6 of the sum of squares, gives it to no
# better than a thousandth. It is then computed from the residuals, in double precision.
CANCELLED = 1e-3


def batches_of(Z: Tensor, per_sample: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return views of a few samples each, small enough to be copied.

    They are of Z or of ``per_sample``, a tensor with an entry for each sample of Z.
    """
    size = max(1, BATCH_ELEMENTS // Z[0].numel())
    return (Z if per_sample is None else per_sample).split(size)


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating type of a device, in which long sums are kept."""
    return torch.float32 if device.type == "mps" else torch.float64


def cancels(f: Tensor | float, energy: Tensor | float, like: Tensor | Samples) -> Any:
    """Whether f is too small a fraction of E for products in the type of ``like``.

    Elementwise where f or E is a tensor. Never where the type is the widest already.
    """
    narrow = like.dtype != accumulator_dtype(like.device)
    return (f < CANCELLED * energy) & narrow


def sample_energies(Z: Tensor) -> Tensor:
    """Return ||Z_i||^2 of each sample, of shape (N,), in double precision.

    The norms of its rows are in Z's own type: their rounding errors are small and
    cancel.
    """
    rows = torch.linalg.vector_norm(Z, dim=2).to(accumulator_dtype(Z.device))
    return rows.square_().sum(dim=1)


def objective_of(
    Z: Tensor,
    A: Tensor,
    P: Tensor,
    *,
    W: Tensor | None = None,
    energy: Tensor | None = None,
) -> Tensor:
    """Return the sum over samples of the squared reconstruction error, equation (3).

    Parameters
    ----------
    Z, A, P : Tensor
        Shapes (N, C, S), (C, R_C) and (S, R_S).

    W : Tensor of shape (N, C, R_S), default=None
        Z @ P, where the caller has it already.

    energy : scalar Tensor, default=None
        ``sample_energies(Z).sum()``, where the caller has it already.

    Returns
    -------
    f : scalar Tensor
        In double precision, since it is a small difference of large numbers. If it is
        very small, it is computed from the residuals; see ``CANCELLED``.
    """
    if energy is None:
        energy = sample_energies(Z).sum()
    C, R_C = A.shape
    S, R_S = P.shape
    if W is None and R_C * S * (C + R_S) < C * R_S * (S + R_C):
        L = A.T @ Z @ P
    else:
        L = torch.einsum("cr,nck->nrk", A, Z @ P if W is None else W)
    GL = torch.einsum("rq,nqk->nrk", A.T @ A, L)
    f = energy + (L * (GL @ (P.T @ P) - 2 * L)).sum(dtype=energy.dtype)
    if Z.dtype != f.dtype and float(f.detach()) < CANCELLED * float(energy):
        parts = [_squared_residuals(batch, A, P).sum() for batch in batches_of(Z)]
        return torch.stack(parts).sum()
    return f


def total_objective(Z: Samples | Tensor, A: Tensor, P: Tensor) -> Tensor:
    """Return :func:`objective_of` batch by batch: no product is as long as Z."""
    samples = as_samples(Z)
    dtype, device = accumulator_dtype(samples.device), samples.device
    total = torch.zeros((), dtype=dtype, device=device)
    (total,) = samples.accumulate(partial(_add_objective, A, P), total)
    return total


def _add_objective(A: Tensor, P: Tensor, batch: Tensor, total: Tensor) -> None:
    total += objective_of(batch, A, P)


def sample_objectives(Z: Tensor, A: Tensor, P: Tensor) -> Tensor:
    """Return the objective (6) of each sample, (N,), at its own parts P (N, S, R_S).

    In double precision, and batch by batch: no product is as long as Z.
    """
    dtype = accumulator_dtype(Z.device)
    G = A.T @ A
    errors = []
    for batch, energy, parts in zip(
        batches_of(Z),
        batches_of(Z, sample_energies(Z)),
        batches_of(Z, P),
        strict=True,
    ):
        L = A.T @ (batch @ parts)
        LH = L @ (parts.mT @ parts)
        products = L.to(dtype) * (torch.einsum("rq,nqk->nrk", G, LH) - 2 * L)
        found = energy + products.sum(dim=(1, 2))
        low = cancels(found, energy, Z)
        if bool(low.any()):
            found[low] = _squared_residuals(batch[low], A, parts[low])
        errors.append(found.clamp(min=0))
    return torch.cat(errors)


def _squared_residuals(Z: Tensor, A: Tensor, P: Tensor) -> Tensor:
    """Return ||Z_i - A L_i P'||^2 of each sample, (N,), in double precision.

    P is (S, R_S), or (N, S, R_S).
    """
    Z, A, P = (T.to(accumulator_dtype(Z.device)) for T in (Z, A, P))
    residuals = Z - A @ (A.T @ (Z @ P)) @ P.mT
    return residuals.square().sum(dim=(1, 2))


def gradient_parts(
    Z: Tensor, A: Tensor, P: Tensor, *, W: Tensor | None = None
) -> Tensor:
    """Return the gradient of the objective (3) with respect to P, equation (4).

    Parameters
    ----------
    Z, A, P, W
        As in :func:`objective_of`.

    Returns
    -------
    gradient : Tensor of shape (S, R_S)
    """
    C, R_C = A.shape
    S, R_S = P.shape
    w = C * S * R_S if W is None else 0
    ranks = R_C * R_S * (R_C + 2 * R_S)
    gram, projector = (C * R_C * n // len(Z) for n in (R_C, C))
    way = _cheapest(
        positions=w + C * S * R_S + 2 * C * R_C * R_S + ranks + gram,
        channels=C * S * R_C + 2 * S * R_C * R_S + ranks + gram,
        projector=w + C * S * R_S + 2 * C * R_S * (C + R_S) + projector,
    )
    H = P.T @ P
    if way == "channels":
        Y = A.T @ Z
        L = Y @ P
        GL = torch.einsum("rq,nqk->nrk", A.T @ A, L)
        cubic = torch.einsum("nrk,nrl->kl", L, GL)
        return 2 * (P @ cubic + sum_over_rows(Y, GL @ H - 2 * L))

    W = Z @ P if W is None else W
    if way == "positions":
        L = torch.einsum("cr,nck->nrk", A, W)
        GL = torch.einsum("rq,nqk->nrk", A.T @ A, L)
        cubic = torch.einsum("nrk,nrl->kl", L, GL)
        AX = torch.einsum("cr,nrk->nck", A, GL @ H - 2 * L)
    else:
        AAt = A @ A.T
        B = torch.einsum("cd,ndk->nck", AAt, W)
        cubic = torch.einsum("nck,ncl->kl", B, B)
        AX = torch.einsum("cd,ndk->nck", AAt, B @ H) - 2 * B
    return 2 * (P @ cubic + sum_over_rows(Z, AX))


def gradient_appearances(
    Z: Tensor, A: Tensor, P: Tensor, *, W: Tensor | None = None
) -> Tensor:
    """Return the gradient of the objective (3) with respect to A, equation (5).

    Parameters
    ----------
    Z, A, P, W
        As in :func:`objective_of`.

    Returns
    -------
    gradient : Tensor of shape (C, R_C)
    """
    C, R_C = A.shape
    S, R_S = P.shape
    w = C * S * R_S if W is None else 0
    ranks = R_C * R_S * (2 * R_C + R_S)
    # Products without samples in them count by their share.
    last = C * R_C * R_C // len(Z)
    metrics = 2 * C * R_C * (C + R_C) // len(Z)
    way = _cheapest(
        positions=w + 2 * C * R_C * R_S + ranks + last,
        channels=2 * C * S * R_C + 2 * S * R_C * R_S + ranks + last,
        projector=w + C * R_S * (2 * C + R_S) + metrics,
    )
    G, H = A.T @ A, P.T @ P
    if way == "channels":
        L = A.T @ Z @ P
        LH = L @ H
        X = torch.einsum("rq,nqk->nrk", G, LH) - 2 * L
        PX = torch.einsum("sk,nrk->nsr", P, X)
        linear = (Z @ PX).sum(dim=0)
        return 2 * (A @ torch.einsum("nrk,nqk->rq", L, LH) + linear)

    W = Z @ P if W is None else W
    if way == "positions":
        L = torch.einsum("cr,nck->nrk", A, W)
        LH = L @ H
        X = torch.einsum("rq,nqk->nrk", G, LH) - 2 * L
        linear = torch.einsum("nck,nrk->cr", W, X)
        return 2 * (A @ torch.einsum("nrk,nqk->rq", L, LH) + linear)

    K = torch.einsum("nck,ndk->cd", W @ H, W)
    M = torch.einsum("nck,ndk->cd", W, W)
    KA = K @ A
    return 2 * (A @ (A.T @ KA) + KA @ G - 2 * M @ A)


def sum_over_rows(M: Tensor, X: Tensor) -> Tensor:
    """Return sum_i M_i' X_i for M (N, a, b) and X (N, a, c), without a copy of M.

    The narrow factor comes first, which takes half the time.
    """
    return (X.flatten(0, 1).T @ M.flatten(0, 1)).T


def _cheapest(**costs: int) -> str:
    """Return the name of the smallest cost, the first of equal ones."""
    return min(costs, key=costs.__getitem__)
