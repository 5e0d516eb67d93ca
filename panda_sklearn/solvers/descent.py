r"""Descent on one factor by spectral projected gradients, and a spectral solution.

Both minimise f(X) = E - 2 <X, M1 X> + <X'X, X'M2X> of
:mod:`panda_sklearn.core.moments`, in which parts and appearances look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import FactoredMoments, Moments

__all__ = [
    "Products",
    "descend",
    "descend_shared",
    "leading_factor",
    "products_of",
    "relative_objective",
]

#: M1 X and M2 X, given X (K, n, r) and the indices (K,) of the problems it belongs to.
Products = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Finished problems are dropped once they are more than this fraction of all.
FINISHED_TO_CARRY = 0.2
# Lengths tried along a direction: from all of it down, a factor of 2^(1/4) apart.
N_LENGTHS = 64


@dataclass
class _Descents:
    """The descents under way: where each is, and where it goes next.

    All fields have K rows, one for each descent. ``which`` (K,) are the indices of the
    problems. X, M1X, M2X, ``gradient`` and ``direction`` are (K, n, r), H = X'X and
    C = X'M2X are (K, r, r). The rest are (K,): the objective f over E, the step
    ``rate``, the ``slope`` along the direction, whether the problem is ``finished``,
    and whether it is ``stuck``: no length of the last step lowered f.
    """

    which: Tensor
    finished: Tensor
    stuck: Tensor
    X: Tensor
    M1X: Tensor
    M2X: Tensor
    f: Tensor = field(init=False)
    H: Tensor = field(init=False)
    C: Tensor = field(init=False)
    gradient: Tensor = field(init=False)
    rate: Tensor = field(init=False)
    direction: Tensor = field(init=False)
    slope: Tensor = field(init=False)

    def keep(self, chosen: Tensor) -> None:
        """Drop all descents but the chosen, given as a mask (K,)."""
        for name, value in vars(self).items():
            setattr(self, name, value[chosen])

    def polynomial(self, M1D: Tensor, M2D: Tensor) -> Tensor:
        """Change of f along the direction D, as a polynomial in the length.

        Returns its coefficients (K, 4), from the first power to the fourth.
        """
        X, D = self.X, self.direction
        XD, DD = X.mT @ D, D.mT @ D
        H1, C1 = XD + XD.mT, X.mT @ M2D
        C1, C2 = C1 + C1.mT, D.mT @ M2D
        return torch.stack(
            [
                self.slope,
                _inner(self.H, C2)
                + _inner(H1, C1)
                + _inner(DD, self.C)
                - 2 * _inner(D, M1D),
                _inner(H1, C2) + _inner(DD, C1),
                _inner(DD, C2),
            ],
            dim=1,
        )


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
    the objective is a polynomial of degree four, whose coefficients follow from the
    products that the next gradient needs anyway. So searching for the length costs
    nothing, and no step raises the objective.

    Parameters
    ----------
    products : callable
        ``products(X, which)`` returns M1 X and M2 X for the problems ``which``, a
        tensor of indices as long as X.

    X : Tensor of shape (K, n, r)
        Starts.

    energy : Tensor of shape (K,)
        E of each problem.

    constraint : Constraint
        What X is kept within.

    max_iter : int
        Largest number of iterations.

    tol : float
        A problem is finished when a full step promises to lower its objective by less
        than this fraction of E.

    rescale : bool, default=True
        Whether to bring the starts to the best scale first.

    linear : Tensor of shape (n, r), default=None
        L, to add <L, X> to each objective.

    Returns
    -------
    X : Tensor of shape (K, n, r)

    f : Tensor of shape (K,)
        The objective over E at X, ``linear`` included; 0 where E is 0.
    """
    K = len(X)
    unit = 1 / torch.where(energy > 0, energy, 1).to(X.dtype)[:, None, None]
    lengths = 2 ** (-torch.arange(N_LENGTHS, dtype=X.dtype, device=X.device) / 4)
    powers = torch.stack([lengths**k for k in (1, 2, 3, 4)])
    which = torch.arange(K, device=X.device)
    none = torch.zeros(K, dtype=torch.bool, device=X.device)
    result, objectives = X.clone(), (energy > 0).to(X.dtype)

    scaled = (M * unit for M in products(X, which))
    at = _Descents(which, none, none, X, *scaled)
    if rescale:
        at.X, at.M1X, at.M2X = _best_scale(at.X, at.M1X, at.M2X)
    at.f = objectives + _value(at.X, at.M1X, at.M2X)
    if linear is not None:
        added = linear * unit
        at.f = at.f + _inner(added, at.X)
    step = before = X
    given_up = none
    for n_iter in range(max_iter + 1):
        at.H, at.C = at.X.mT @ at.X, at.X.mT @ at.M2X
        at.gradient = 2 * (at.X @ at.C + at.M2X @ at.H) - 4 * at.M1X
        if linear is not None:
            at.gradient = at.gradient + added[at.which]
        if n_iter == 0:
            size, steepness = _norm(at.X), _norm(at.gradient)
            at.rate = 0.1 * size / torch.where(steepness > 0, steepness, 1)
        else:
            # Where no length helped the direction was far too long, or there is none.
            fallback = torch.where(at.stuck, lengths[-1], 4) * at.rate
            at.rate = _spectral_rate(
                step, at.gradient - before, fallback, long=n_iter % 2 == 1
            )
        rate = at.rate[:, None, None]
        at.direction = constraint.project(at.X - rate * at.gradient) - at.X
        at.slope = _inner(at.gradient, at.direction)
        ending = ~at.finished & (~(at.slope < -tol) | given_up | (n_iter == max_iter))
        if bool(ending.any()):
            ended = at.which[ending]
            result[ended], objectives[ended] = at.X[ending], at.f[ending]
            at.finished = at.finished | ending
            fraction = float(at.finished.sum()) / len(at.finished)
            if fraction == 1:
                break
            if fraction > FINISHED_TO_CARRY:
                at.keep(~at.finished)
        M1D, M2D = (M * unit[at.which] for M in products(at.direction, at.which))
        change, best = (at.polynomial(M1D, M2D) @ powers).min(dim=1)
        given_up = at.stuck & ~(change < 0)
        at.stuck = ~(change < 0)
        length = torch.where(at.stuck, 0, lengths[best])[:, None, None]
        step, before = length * at.direction, at.gradient
        at.X = at.X + step
        at.M1X, at.M2X = at.M1X + length * M1D, at.M2X + length * M2D
        at.f = torch.where(at.stuck, at.f, at.f + change)
    return result, objectives


def descend_shared(
    moments: Moments | FactoredMoments,
    X: Tensor,
    constraint: Constraint,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Run :func:`descend` on problems that share their moments."""
    return descend(
        lambda X, which: moments.products(X),
        X,
        energy=moments.energy.expand(len(X)),
        constraint=constraint,
        **options,
    )


def leading_factor(moments: Moments, rank: int) -> Tensor:
    r"""Nearly the best unconstrained factor, in closed form.

    In M = XX' the objective is quadratic. Without a limit on the rank its minimum is
    the solution of the Lyapunov equation M M2 + M2 M = 2 M1, which is positive
    semi-definite. With a limit, M is sought in the span of the leading eigenvectors of
    M M2 M, which account for most of the fall of the objective; in a given span the
    best M again solves a Lyapunov equation, of the span's dimension.

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


def products_of(moments: Moments | FactoredMoments, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return M1 X and M2 X for a single X (n, r)."""
    M1X, M2X = moments.products(X[None])
    return M1X[0], M2X[0]


def relative_objective(moments: Moments | FactoredMoments, X: Tensor) -> float:
    """Return f(X) / E, or 0 where E is 0."""
    change = _value(X[None], *moments.products(X[None]))
    energy = float(moments.energy)
    return 1 + float(change[0]) / energy if energy > 0 else 0.0


def _lyapunov(M1: Tensor, M2: Tensor, eps: float) -> Tensor:
    """M with M M2 + M2 M = 2 M1, pulled to zero where M2 is mere rounding error."""
    M, vectors = _in_eigenbasis(M1, M2, eps)
    return _symmetric(vectors @ M @ vectors.T)


def _lyapunov_root(M1: Tensor, M2: Tensor, eps: float) -> Tensor:
    """X with orthogonal columns and XX' = M, which is semi-definite up to rounding."""
    M, vectors = _in_eigenbasis(M1, M2, eps)
    values, turned = torch.linalg.eigh(_symmetric(M))
    return vectors @ (turned.flip(1) * values.flip(0).clamp(min=0).sqrt())


def _in_eigenbasis(M1: Tensor, M2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """M of :func:`_lyapunov` in the eigenbasis of M2, and the eigenvectors of M2."""
    values, vectors = torch.linalg.eigh(M2)
    values = values.clamp(min=0)
    sums = values[:, None] + values + 8 * eps * values[-1]
    return 2 * (vectors.T @ M1 @ vectors) / torch.where(sums > 0, sums, 1), vectors


def _symmetric(M: Tensor) -> Tensor:
    return (M + M.T) / 2


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair of matrices."""
    return (a * b).sum(dim=(1, 2))


def _norm(X: Tensor) -> Tensor:
    return torch.linalg.vector_norm(X, dim=(1, 2))


def _value(X: Tensor, M1X: Tensor, M2X: Tensor) -> Tensor:
    """f(X) - E of each problem."""
    return _inner(X.mT @ X, X.mT @ M2X) - 2 * _inner(X, M1X)


def _best_scale(X: Tensor, M1X: Tensor, M2X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X times the c at which f(cX) - E = -2 a c^2 + b c^4 is least."""
    a, b = _inner(X, M1X), _inner(X.mT @ X, X.mT @ M2X)
    c = (a.clamp(min=0) / torch.where(b > 0, b, 1)).sqrt()[:, None, None]
    c = torch.where(c > 0, c, 1)  # else X is orthogonal to the data, or zero
    return c * X, c * M1X, c * M2X


def _spectral_rate(
    step: Tensor, change: Tensor, fallback: Tensor, *, long: bool
) -> Tensor:
    """Barzilai-Borwein rate, from the last step and the change of the gradient."""
    curvature = _inner(step, change)
    numerator, denominator = (
        (_inner(step, step), curvature) if long else (curvature, _inner(change, change))
    )
    usable = (curvature > 0) & (denominator > 0)
    return torch.where(
        usable, numerator / torch.where(usable, denominator, 1), fallback
    )
