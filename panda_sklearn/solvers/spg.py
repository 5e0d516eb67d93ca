"""The package's own solver: a fit to some samples, then passes over all.

It begins with the alternation of :mod:`panda_sklearn.solvers.alternation` on some
samples, kept in memory. If there are more, each further iteration is one pass over all
of them (:mod:`panda_sklearn.solvers.passes`), and few passes are enough.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from panda_sklearn.core.channels import Summary, summarise
from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.objective import accumulator_dtype, cancels, total_objective
from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.core.starts import revived
from panda_sklearn.core.threads import ThreadsFor
from panda_sklearn.solvers.alternation import Alternation, canonical_pair
from panda_sklearn.solvers.base import (
    Course,
    SolverResult,
    StoppingRule,
    Watcher,
    iterate,
)
from panda_sklearn.solvers.choosing import (
    N_STARTS,
    draw_starts,
    promising_starts,
    takes_all_channels,
)
from panda_sklearn.solvers.passes import Passes

# Samples that are kept: one in eight, within limits; fewer where their moments would
# take more multiplications than this, and never more elements than this (256 MB).
ONE_IN = 8
MULTIPLICATIONS = 2**33
FEWEST, MOST = 128, 512
KEPT_ELEMENTS = 2**26
# Promising starts are compared by a few rough steps of the alternation.
ROUGH, ROUGHLY = 1e-3, 2
# The fall, as a fraction of the energy, that ends the fit to the kept samples: their
# minimum is further than this from that of all samples.
TOL_OF_KEPT = 1e-4


def fit_spg(
    samples: Samples,
    R_C: int,
    R_S: int,
    *,
    init: str | tuple[Tensor, Tensor],
    n_init: int | None,
    max_iter: int,
    tol: float,
    constraint: Constraint,
    generator: torch.Generator,
    watcher: Watcher | None = None,
) -> SolverResult:
    """Minimise the objective, in few passes over the samples.

    Parameters
    ----------
    samples : Samples

    R_C, R_S : int
        Ranks.

    init : {"hosvd", "random"} or pair of Tensor
        Where to start from; with "hosvd" one start is grown from the data.

    n_init : int or None
        Number of starts. Each is descended from, and the one with the lowest objective
        is the best. ``None`` is ten.

    max_iter, tol, constraint, generator, watcher
        As for every solver.
    """
    C, S = samples.n_channels, samples.n_positions
    # The channels' moments are wanted at the end. They are taken now where reading is
    # what costs, or where starts need them.
    channels = not isinstance(samples, InMemory) or takes_all_channels(C, R_C)
    known = summarise(
        samples, lambda n: _n_kept(n, C, S, R_C), generator, channels=channels
    )
    if not known.energy > 0:
        return _nothing(samples, known, R_C, R_S)
    lightly = ThreadsFor(_work(known.kept, R_C, R_S))
    dtype = samples.dtype
    if isinstance(init, str):
        A, starts = draw_starts(known, R_C, R_S, init, n_init or N_STARTS, generator)
        given = known.kept, A, starts, generator, init == "hosvd", constraint
        P, objectives = lightly(promising_starts, *given, dtype)
        if cancels(objectives.min(), 1.0, samples):
            dtype = accumulator_dtype(samples.device)
            P, objectives = lightly(promising_starts, *given, dtype)
    else:
        wide = accumulator_dtype(samples.device)
        A, P = (factor.to(samples.device, wide) for factor in init)
        P, objectives = P[None], A.new_tensor([float("inf")])

    begun = [
        Alternation(
            known.kept,
            A,
            revived(start, generator),
            energy=known.energy_of_kept,
            constraint=constraint,
            dtype=dtype,
        )
        for start in P
    ]
    if len(begun) > 1:
        for start in begun:
            start.tol = ROUGH
            rule = StoppingRule(ROUGH)
            lightly(iterate, start.step, rule=rule, max_iter=ROUGHLY)
    best = min(begun, key=lambda start: start.f)
    best.tol = tol
    fit: Alternation | Passes = best
    if known.kept.n_samples < known.n_samples:
        tells = bool(known.energy_of_kept > 0)
        if tells:
            best.tol = max(tol, TOL_OF_KEPT)
            rule = StoppingRule(best.tol)
            rule.met(best.iteration(min(best.f, float(objectives[0]))))
            lightly(iterate, best.step, rule=rule, max_iter=max_iter)
        if tells and not constraint.rotatable:
            fit = Passes(samples, known, best, tol=tol, lightly=lightly)
        else:
            fit = best.continued(samples, known.energy, tol)
    threads = lightly if fit is best else ThreadsFor(float("inf"))

    def result(course: Course) -> SolverResult:
        ended = copy.copy(fit)  # whose appearances may become better
        A, P, _ = canonical_pair(ended)
        A, P = A.to(samples.dtype), P.to(samples.dtype)
        if cancels(ended.f, 1.0, samples):  # then rounding of A and P counts
            error = float(total_objective(samples, A, P))
            course.objective_history[-1] = max(error, 0.0) / known.n_samples
        return SolverResult(A, P, *course, known.channels)

    course = threads(
        iterate,
        fit.step,
        rule=StoppingRule(tol),
        max_iter=max_iter,
        watcher=watcher,
        result=result,
    )
    return result(course)


def _n_kept(n_samples: int, C: int, S: int, R_C: int) -> int:
    """Return the number of samples to keep in memory."""
    n = min(max(n_samples // ONE_IN, FEWEST), MOST)
    n = min(n, max(MULTIPLICATIONS // (R_C * S * (C + S)), FEWEST // 2))
    return max(1, min(n, KEPT_ELEMENTS // (C * S), n_samples))


def _work(kept: InMemory, R_C: int, R_S: int) -> int:
    """Return the multiplications of the longest operations between passes."""
    C, S = kept.n_channels, kept.n_positions
    moments = kept.n_samples * R_C * S * (C + S)
    return max(moments, C * C * min(C, 3 * R_C), N_STARTS * S * S * R_S)


def _nothing(samples: Samples, known: Summary, R_C: int, R_S: int) -> SolverResult:
    """Return zero factors, for data that are all zero."""
    A = torch.zeros(samples.n_channels, R_C, dtype=samples.dtype, device=samples.device)
    P = A.new_zeros(samples.n_positions, R_S)
    return SolverResult(A, P, [0.0], True, "the data are all zero", known.channels)
