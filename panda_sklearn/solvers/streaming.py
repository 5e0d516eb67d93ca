"""Learning from one batch of samples after another, in memory that does not grow.

What the problem of one factor needs to know of earlier samples is in their moments,
which add (:mod:`panda_sklearn.core.moments`). They were taken at earlier factors, so
they are a little out of date; the less so, the less the factors still change.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.channels import ChannelMoments
from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import Moments
from panda_sklearn.core.objective import accumulator_dtype, sample_energies
from panda_sklearn.core.samples import Samples
from panda_sklearn.core.starts import leading_appearances, random_parts, revived
from panda_sklearn.solvers.alternation import Alternation, Past, canonical_pair
from panda_sklearn.solvers.base import StoppingRule, iterate

__all__ = ["learn"]


def learn(
    samples: Samples,
    A: Tensor,
    P: Tensor,
    past: Past | None,
    *,
    max_iter: int,
    tol: float,
    constraint: Constraint,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Past, float]:
    """Alternate on the moments of the past and of a new batch together.

    Parameters
    ----------
    samples : Samples
        The new batch.

    A, P : Tensor
        The factors so far, of shapes (C, R_C) and (S, R_S).

    past : Past or None
        What the last call returned.

    max_iter, tol, constraint
        As for every solver.

    generator : torch.Generator
        Draws parts that are still zero anew; no descent would lead away from zero.

    Returns
    -------
    A, P : Tensor
        The new factors, in canonical form.

    past : Past

    f : float
        Mean of the objective over all samples so far; that of earlier ones is by their
        moments.
    """
    device, wide = samples.device, accumulator_dtype(samples.device)
    A, P = (factor.to(wide) for factor in (A, P))
    P = revived(P, generator)
    energy, seen = torch.zeros((), dtype=wide, device=device), P.new_zeros(len(P))
    energy, seen = samples.accumulate(_look, energy, seen)
    new = _new_positions(seen, past) if past is not None else None
    if new is not None:
        drawn = random_parts(len(P), P.shape[1], generator).to(P) * P.max()
        P = torch.where(new[:, None], drawn, P)
    if not A.any():
        scatter = ChannelMoments.of_data(samples).about_zero()
        A = leading_appearances(scatter, A.shape[1]).to(P)
    fit = Alternation(
        samples,
        A,
        P,
        energy=energy,
        constraint=constraint,
        dtype=samples.dtype,
        tol=tol,
        past=past,
        factored=False,
    )
    if new is not None:
        fit.begin_with_appearances()
    iterate(fit.step, rule=StoppingRule(tol), max_iter=max_iter)
    A, P, c = canonical_pair(fit)
    assert isinstance(fit.of_parts, Moments)
    assert isinstance(fit.of_appearances, Moments)
    assert samples.n_samples is not None  # a pass has counted them
    n_samples = samples.n_samples + (past.n_samples if past is not None else 0)
    of_appearances = fit.of_appearances
    past = Past(fit.of_parts.rescaled(c), of_appearances.rescaled(1 / c), n_samples)
    return A, P, past, max(fit.f, 0.0) * float(of_appearances.energy) / n_samples


def _look(batch: Tensor, energy: Tensor, seen: Tensor) -> None:
    """Add the sum of squares, and how often each position is not zero."""
    energy += sample_energies(batch).sum()
    seen += (batch != 0).sum(dim=(0, 1))


def _new_positions(seen: Tensor, past: Past) -> Tensor | None:
    """Return a mask of the positions that are not zero for the first time, if any.

    Parts are near zero there, and no descent leads away from zero; neither do the
    appearances of channels that come with these positions.
    """
    before = past.of_parts.M1.diagonal()
    nothing = before <= past.of_parts.eps * before.max()
    new = nothing & (seen > 0).to(before.device)
    return new if bool(new.any()) else None
