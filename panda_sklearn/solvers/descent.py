r"""Descent on one factor: the spectral projected gradient and a spectral solution.

Both minimise f(X) = E - 2 <X, M1 X> + <X'X, X'M2X> of
:mod:`panda_sklearn.core.moments`, in which parts and appearances look alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import FactoredMoments, Moments

__all__ = ["Products", "descend", "leading_factor", "relative_objective"]

#: X (K, n, r) -> M1 X and M2 X; which problems X belongs to is given beside it.
Products = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Problems that are finished are dropped once they are more than this share of all.
FINISHED_TO_CARRY = 0.2
# Lengths tried along a direction: from all of it down, a factor of 2^(1/4) apart.
N_LENGTHS = 64


def descend(
    products: Products,
    X: Tensor,
    *,
    energy: Tensor,
    constraint: Constraint,
    max_iter: int,
    tol: float,
    rescale: bool = True,
    linear: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise K objectives of one factor at once, by spectral projected gradients.

    Barzilai-Borwein steps, the long and the short one by turns, give a direction that
    ends inside the constraint (Birgin, Martinez and Raydan, "Nonmonotone spectral
    projected gradient methods on convex sets", SIAM J. Optim. 10(4), 2000). Along it
    the objective is a polynomial of degree four whose coefficients are known from the
    products that the next gradient needs anyway, so the length is searched at no cost
    and no step raises the objective.

    Parameters
    ----------
    products : callable
        ``products(X, which)`` -> M1 X and M2 X for the problems ``which``, an index
        tensor as long as X.

    X : Tensor of shape (K, n, r)
        Starts.

    energy : Tensor of shape (K,)
        E of each problem.

    constraint : Constraint
        What X is kept within.

    max_iter : int
        Number of iterations, at most.

    tol : float
        A problem is finished when a full step promises to lower its objective by less
        than this share of E.

    rescale : bool, default=True
        Whether to bring the starts to the best scale first.

    linear : Tensor of shape (n, r), default=None
        L, where <L, X> is to be added to each objective.

    Returns
    -------
    X : Tensor of shape (K, n, r)

    f : Tensor of shape (K,)
        The objective over E at X, ``linear`` included; 0 where E is.
    """
    K = len(X)
    unit = 1 / torch.where(energy > 0, energy, 1).to(X.dtype)[:, None, None]
    lengths = 2 ** (-torch.arange(N_LENGTHS, dtype=X.dtype, device=X.device) / 4)
    powers = torch.stack([lengths**k for k in (1, 2, 3, 4)])
    active = torch.arange(K, device=X.device)
    finished = torch.zeros(K, dtype=torch.bool, device=X.device)
    result, objectives = X.clone(), (energy > 0).to(X.dtype)

    M1X, M2X = (M * unit for M in products(X, active))
    if rescale:
        X, M1X, M2X = _best_scale(X, M1X, M2X)
    f = objectives + _value(X, M1X, M2X)
    if linear is not None:
        added = linear * unit
        f = f + _inner(added, X)
    step = before = X
    stuck = given_up = finished
    rate = torch.full_like(f, 0.1)
    for n_iter in range(max_iter + 1):
        H, C = X.mT @ X, X.mT @ M2X
        gradient = 2 * (X @ C + M2X @ H) - 4 * M1X
        if linear is not None:
            gradient = gradient + added[active]
        if n_iter == 0:
            sizes = [torch.linalg.vector_norm(x, dim=(1, 2)) for x in (X, gradient)]
            rate = 0.1 * sizes[0] / torch.where(sizes[1] > 0, sizes[1], 1)
        else:
            # Where no length helped the direction was far too long, or there is none.
            fallback = torch.where(stuck, lengths[-1], 4) * rate
            rate = _spectral_rate(
                step, gradient - before, fallback, long=n_iter % 2 == 1
            )
        direction = constraint.project(X - rate[:, None, None] * gradient) - X
        slope = _inner(gradient, direction)
        ending = ~finished & (~(slope < -tol) | given_up | (n_iter == max_iter))
        if bool(ending.any()):
            result[active[ending]], objectives[active[ending]] = X[ending], f[ending]
            finished = finished | ending
            share = float(finished.sum()) / len(finished)
            if share == 1:
                break
            if share > FINISHED_TO_CARRY:
                going = ~finished
                active, finished, stuck, X, M1X, M2X, f = (
                    t[going] for t in (active, finished, stuck, X, M1X, M2X, f)
                )
                H, C, gradient, direction, slope, rate = (
                    t[going] for t in (H, C, gradient, direction, slope, rate)
                )
        M1D, M2D = (M * unit[active] for M in products(direction, active))
        XD, DD = X.mT @ direction, direction.mT @ direction
        H1, C1 = XD + XD.mT, X.mT @ M2D
        C1, C2 = C1 + C1.mT, direction.mT @ M2D
        coefficients = torch.stack(
            [
                slope,
                _inner(H, C2)
                + _inner(H1, C1)
                + _inner(DD, C)
                - 2 * _inner(direction, M1D),
                _inner(H1, C2) + _inner(DD, C1),
                _inner(DD, C2),
            ],
            dim=1,
        )
        change, best = (coefficients @ powers).min(dim=1)
        given_up = stuck & ~(change < 0)
        stuck = ~(change < 0)
        length = torch.where(stuck, 0, lengths[best])[:, None, None]
        step, before = length * direction, gradient
        X = X + step
        M1X, M2X = M1X + length * M1D, M2X + length * M2D
        f = torch.where(stuck, f, f + change)
    return result, objectives


def leading_factor(moments: Moments, rank: int) -> Tensor:
    r"""Nearly the best unconstrained factor, in closed form.

    In M = XX' the objective is quadratic, and without a limit on the rank its minimum
    is the solution of the Lyapunov equation M M2 + M2 M = 2 M1, which is positive
    semi-definite. With a limit, M is sought in the span of the leading eigenvectors of
    M M2 M, which hold most of what M lowers the objective by; in a given span the best
    M is again the solution of a Lyapunov equation, of the span's dimension.

    With the other factor's columns orthonormal, M2 = M1 and the answer is exact: the
    leading eigenvectors of M1.

    Returns
    -------
    X : Tensor of shape (n, rank)
    """
    if rank == len(moments.M1):
        return _lyapunov_root(moments.M1, moments.M2, moments.eps)
    M = _lyapunov(moments.M1, moments.M2, moments.eps)
    span = torch.linalg.eigh(_symmetric(M @ moments.M2 @ M)).eigenvectors[:, -rank:]
    M1, M2 = (_symmetric(span.T @ M @ span) for M in (moments.M1, moments.M2))
    return span @ _lyapunov_root(M1, M2, moments.eps)


def relative_objective(moments: Moments | FactoredMoments, X: Tensor) -> float:
    """f(X) / E."""
    change = _value(X[None], *moments.products(X[None]))
    energy = float(moments.energy)
    return 1 + float(change[0]) / energy if energy > 0 else 0.0


def _lyapunov(M1: Tensor, M2: Tensor, eps: float) -> Tensor:
    """M with M M2 + M2 M = 2 M1, drawn to zero where M2 is below its rounding error."""
    M, vectors = _in_eigenbasis(M1, M2, eps)
    return _symmetric(vectors @ M @ vectors.T)


def _lyapunov_root(M1: Tensor, M2: Tensor, eps: float) -> Tensor:
    """X with orthogonal columns and XX' that M, which is semi-definite but rounding."""
    M, vectors = _in_eigenbasis(M1, M2, eps)
    values, turned = torch.linalg.eigh(_symmetric(M))
    return vectors @ (turned.flip(1) * values.flip(0).clamp(min=0).sqrt())


def _in_eigenbasis(M1: Tensor, M2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """That M in the basis of the eigenvectors of M2, and these."""
    values, vectors = torch.linalg.eigh(M2)
    values = values.clamp(min=0)
    sums = values[:, None] + values + 8 * eps * values[-1]
    return 2 * (vectors.T @ M1 @ vectors) / torch.where(sums > 0, sums, 1), vectors


def _symmetric(M: Tensor) -> Tensor:
    return (M + M.T) / 2


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair of matrices."""
    return (a * b).sum(dim=(1, 2))


def _value(X: Tensor, M1X: Tensor, M2X: Tensor) -> Tensor:
    """f(X) - E of each problem."""
    return _inner(X.mT @ X, X.mT @ M2X) - 2 * _inner(X, M1X)


def _best_scale(X: Tensor, M1X: Tensor, M2X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X times the c at which f(cX) - E = -2 a c^2 + b c^4 is least."""
    a, b = _inner(X, M1X), _inner(X.mT @ X, X.mT @ M2X)
    c = (a.clamp(min=0) / torch.where(b > 0, b, 1)).sqrt()[:, None, None]
    c = torch.where(c > 0, c, 1)  # X is orthogonal to the data, or zero
    return c * X, c * M1X, c * M2X


def _spectral_rate(
    step: Tensor, change: Tensor, fallback: Tensor, *, long: bool
) -> Tensor:
    """Barzilai-Borwein step from the last step and what it did to the gradient."""
    curvature = _inner(step, change)
    numerator, denominator = (
        (_inner(step, step), curvature) if long else (curvature, _inner(change, change))
    )
    usable = (curvature > 0) & (denominator > 0)
    return torch.where(
        usable, numerator / torch.where(usable, denominator, 1), fallback
    )
