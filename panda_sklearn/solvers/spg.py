r"""The package's own solver: curvature from some samples, gradients from all.

A fit begins on some samples, kept in memory, by the alternation of
:mod:`panda_sklearn.solvers.alternation`. Each iteration then goes once through all
samples, at a pair of factors (A, P), and takes only what thin products tell:

- the appearances' moments at P, so that the best appearances there are known exactly;
- the gradient in the parts.

Where to look next is found on the kept samples alone, of which s times as many would
have the energy of all: their objective, corrected to first order,

.. math::

    s f_{some}(A, P) + \langle \nabla_P f - s \nabla_P f_{some}, P \rangle,

is descended from by turns with the appearances, whose moments are corrected likewise.
So the kept samples lend their curvature, and all samples say where the minimum is
(as in DANE: Shamir, Srebro, Zhang, "Communication-efficient distributed optimization
using an approximate Newton-type method", ICML 2014). Both corrections depend on A
through AA' alone: a linear one in A would not, while the objective does, and the fit
would run off along rotations of A.

Floor 1: torch and :mod:`panda_sklearn.core` alone. Notation as in
:mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from panda_sklearn.core.channels import Summary, summarise
from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    appearance_moments,
    factored_part_moments,
    part_moments,
    thin_products,
)
from panda_sklearn.core.objective import (
    accumulator_dtype,
    cancels,
    sample_energies,
    total_objective,
)
from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.core.starts import (
    grown_parts,
    hosvd,
    nearly_hosvd,
    random_appearances,
    random_parts,
    revived,
)
from panda_sklearn.core.threads import with_threads_for
from panda_sklearn.solvers.alternation import (
    Alternation,
    canonical_pair,
    descend_shared,
    one_of,
    solve_appearances,
    solve_parts,
)
from panda_sklearn.solvers.base import (
    STUCK,
    Callback,
    Iteration,
    SolverResult,
    StoppingRule,
    iterate,
)
from panda_sklearn.solvers.descent import relative_objective

# Samples that are kept: one of so many, but from so few to so many; fewer where their
# moments take more multiplications; and no more than have so many numbers (256 MB).
SHARE_KEPT = 8
MULTIPLICATIONS = 2**33
FEWEST, MOST = 128, 512
KEPT_ELEMENTS = 2**26
# The fall, as a share of the energy, that ends the fit on kept samples: how far their
# minimum is from that of all is more.
TOL_OF_SOME = 1e-4
# How often the parts and appearances are solved for by turns between two passes.
TURNS = 3
# Another turn, unless the last brought less than this share of what all have brought.
HELPFUL = 0.1
# Passes are slow if one brings more than this share of what the last brought. Then
# steps go further than the kept samples lead, by a multiple that grows.
SLOW = 0.4
FURTHER, GROWTH = 0.7, 1.5
# Shorter steps in a row that may fail to lower the objective.
FAILURES = 3
# The descent between passes ends where a step promises less than this share of tol.
SHARE_OF_TOL = 5e-2

# Starts are descended from roughly, the best few of them further.
N_STARTS = 10
COMPARISON = {"max_iter": 60, "tol": 1e-5}
FINALISTS = 4
FINAL = {"max_iter": 60, "tol": 1e-5}
# Of these, the ones whose objectives differ by more than one share of the energy and
# are within another of the best are alternated from, roughly and for a few steps.
SAME = 1e-5
PROMISING = 1e-2
ROUGH, ROUGHLY = 1e-3, 2
# Channels up to which the eigenvectors of their scatter take no time.
LARGEST_SCATTER = 512
# Positions, at most, of which the S x S moments are formed for that (512 MB). Beyond,
# a few random starts are compared on a few samples.
LARGEST_FORMED = 8192


def spg(
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
    callback: Callback | None = None,
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
        Number of starts, of which the best is that with the lowest objective once each
        is descended from, with A held. ``None`` is ten.

    max_iter, tol, constraint, generator, callback
        As for every solver.
    """
    C, S = samples.n_channels, samples.n_positions
    dtype = accumulator_dtype(samples.device)
    in_memory = isinstance(samples, InMemory)
    # Where reading is what costs, and where the appearances are nearly the channels.
    wants_channels = not in_memory or 4 * R_C > C
    known = summarise(
        samples, lambda n: _n_kept(n, C, S, R_C), generator, channels=wants_channels
    )
    if not known.energy > 0:
        zeros = (
            torch.zeros(n, r, dtype=samples.dtype, device=samples.device)
            for n, r in ((C, R_C), (S, R_S))
        )
        return SolverResult(
            *zeros, [0.0], True, "the data are all zero", known.channels
        )
    products = samples.dtype
    lightly = partial(with_threads_for, _work(known.some, R_C, R_S))
    if isinstance(init, str):
        A, starts = _starts(known, R_C, R_S, init, n_init or N_STARTS, generator)
        options = generator, init == "hosvd", constraint
        P, f = lightly(_promising_starts, known.some, A, starts, *options, products)
        if cancels(f.min(), 1.0, samples):
            products = dtype
            P, f = lightly(_promising_starts, known.some, A, starts, *options, products)
    else:
        A, P = (factor.to(samples.device, dtype) for factor in init)
        P = P[None]

    def begin(P: Tensor) -> Alternation:
        return Alternation(
            known.some,
            A,
            revived(P, generator),
            energy=known.energy_of_some,
            constraint=constraint,
            products=products,
        )

    fits = [begin(start) for start in P]
    if len(fits) > 1:
        for fit in fits:
            lightly(iterate, fit.step, rule=StoppingRule(ROUGH), max_iter=ROUGHLY)
    fit: Alternation | _Passes = min(fits, key=lambda fit: fit.f)
    if known.some.n_samples < known.n_samples:
        rule = StoppingRule(max(tol, TOL_OF_SOME))
        fit.worth = rule.tol
        lightly(iterate, fit.step, rule=rule, max_iter=max_iter)
        if not constraint.rotatable and known.energy_of_some > 0:
            fit = _Passes(samples, known, fit, tol)
        else:
            fit = fit.continued(samples, known.energy)
    step = fit.step
    if isinstance(fit, Alternation) and fit.samples is known.some:
        step = partial(lightly, step)
    course = iterate(step, rule=StoppingRule(tol), max_iter=max_iter, callback=callback)
    A, P, _ = canonical_pair(fit, constraint)
    A, P = A.to(samples.dtype), P.to(samples.dtype)
    if cancels(fit.f, 1.0, samples):  # that of the factors as they are rounded
        f = float(total_objective(samples, A, P))
        course.objective_history[-1] = max(f, 0.0) / known.n_samples
    return SolverResult(A, P, *course, known.channels)


def _n_kept(n_samples: int, C: int, S: int, R_C: int) -> int:
    """Number of samples that are kept in memory."""
    n = min(max(n_samples // SHARE_KEPT, FEWEST), MOST)
    n = min(n, max(MULTIPLICATIONS // (R_C * S * (C + S)), FEWEST // 2))
    return max(1, min(n, KEPT_ELEMENTS // (C * S), n_samples))


def _work(some: InMemory, R_C: int, R_S: int) -> int:
    """Multiplications of the longest operations between passes."""
    C, S = some.n_channels, some.n_positions
    moments = (some.n_samples or 1) * R_C * S * (C + S)
    return max(moments, C * C * min(C, 3 * R_C), N_STARTS * S * S * R_S)


class _Passes:
    """Factors that get better with each pass over all samples.

    Attributes
    ----------
    A, P : Tensor
        The best appearances at the best parts so far.

    f : float
        Their objective as a share of the energy.
    """

    def __init__(
        self, samples: Samples, known: Summary, begun: Alternation, tol: float
    ) -> None:
        self.samples, self.some = samples, known.some
        self.energy, self.energy_of_some = known.energy, known.energy_of_some
        self.n_samples = known.n_samples
        self.share = float(known.energy / known.energy_of_some)
        self.products, self.factored = begun.products, begun.factored
        self.constraint = begun.constraint
        self.tol, self.inner_tol = tol, SHARE_OF_TOL * tol
        self.f = float("inf")
        self.next = begun.A, begun.P  # where to look next
        self.own_products: tuple[Tensor, Tensor] | None = None  # of the kept, there
        C, S = samples.n_channels, samples.n_positions
        R_C, R_S = self.next[0].shape[1], self.next[1].shape[1]
        self.work = known.n_samples * R_S * C * (3 * S + 2 * C + 2 * R_C)
        self.lightly = partial(with_threads_for, _work(known.some, R_C, R_S))
        self.n_failures = 0
        self.fall, self.further = float("inf"), FURTHER
        self.safe: tuple[Tensor, Tensor] | None = None  # if that was too far

    def step(self, n_iter: int) -> Iteration:
        """Look at the next factors, and choose those to look at then."""
        A, P = self.next
        of_appearances, part_products = with_threads_for(
            self.work,
            thin_products,
            self.samples,
            A,
            P,
            energy=self.energy,
            dtype=self.products,
        )
        best, f = self.lightly(solve_appearances, of_appearances, A)
        if self.products == self.samples.dtype and cancels(f, 1.0, self.samples):
            self.products = accumulator_dtype(self.samples.device)
            self.f, self.own_products = float("inf"), None  # no measure any longer
            return self.step(n_iter)
        end = ""
        if f < self.f:
            fall, self.f, self.n_failures = self.f - f, f, 0
            slow = fall > SLOW * self.fall
            self.fall, self.further = fall, GROWTH * self.further if slow else FURTHER
            self.A, self.P = best, P
            self.of_appearances, self.part_products = of_appearances, part_products
            if not fall < self.tol:  # else it is the last
                promised = self.lightly(self._look_ahead, A)
                if not promised > self.tol:
                    end = "no step promises to lower the objective by more than tol"
                if slow:
                    self._go_further()
        elif self.n_failures < FAILURES:
            self.n_failures += 1
            self.own_products, self.further = None, FURTHER
            if self.safe is not None:
                self.next, self.safe = self.safe, None
            else:
                self.next = self.A, self.P + (P - self.P) / 4
        else:
            end = STUCK
        energy = float(self.energy)
        return Iteration(self.f * energy, energy, self.n_samples, end)

    def _go_further(self) -> None:
        """Beyond what the kept samples lead to, where passes bring ever the same."""
        self.safe = A, P = self.next
        move = self.further * (P - self.P)
        self.next, self.own_products = (A, self.constraint.project(P + move)), None

    def _look_ahead(self, A: Tensor) -> float:
        """Choose where to look next, by the kept samples; returns the fall promised.

        The last pass was at A and the best parts.
        """
        P, options = self.P, {"energy": self.energy_of_some, "dtype": self.products}
        own_products = self.own_products
        if own_products is None:
            _, own_products = thin_products(self.some, A, P, **options)
        linear = _gradient(P, self.part_products) / self.share
        linear -= _gradient(P, own_products)
        then = None
        A, promised = self.A, 0.0
        for turn in range(TURNS):
            if turn:
                if then is None:
                    then = appearance_moments(self.some, self.P, **options)
                now = appearance_moments(self.some, P, **options)
                corrected = self._corrected(now, then)
                before = relative_objective(corrected, A)
                A, f = solve_appearances(corrected, A)
                if not before - f > self.tol / 2:
                    break
            P, fall = self._descend(A, P, linear)
            promised += fall
            if not fall > max(self.tol, HELPFUL * promised):
                break
        self.next = A, P
        return promised

    def _corrected(self, now: Moments, then: Moments) -> Moments:
        """The appearances' moments of all, by what became of those of the kept."""
        known, s = self.of_appearances, self.share
        M1 = known.M1 + s * (now.M1 - then.M1)
        return Moments(M1, known.M2 + s * (now.M2 - then.M2), self.energy, known.eps)

    def _descend(self, A: Tensor, P: Tensor, linear: Tensor) -> tuple[Tensor, float]:
        """Parts at which the corrected objective of the kept is least, and its fall."""
        options = {"energy": self.energy_of_some, "dtype": self.products}
        form = factored_part_moments if self.factored else part_moments
        moments = form(self.some.Z, A, **options)
        before = _value(P, one_of(moments.products(P[None])), linear)
        P, _ = solve_parts(moments, P, self.constraint, self.inner_tol, linear=linear)
        self.own_products = one_of(moments.products(P[None]))
        after = _value(P, self.own_products, linear)
        return P, float((before - after) / self.energy_of_some)


def _gradient(P: Tensor, products: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient (4), from M1 P and M2 P."""
    M1P, M2P = products
    return 2 * (P @ (P.T @ M2P) + M2P @ (P.T @ P)) - 4 * M1P


def _value(P: Tensor, products: tuple[Tensor, Tensor], linear: Tensor) -> Tensor:
    """The objective less the energy, with a linear term."""
    M1P, M2P = products
    return ((P.T @ P) * (P.T @ M2P)).sum() + (P * (linear - 2 * M1P)).sum()


def _starts(
    known: Summary,
    R_C: int,
    R_S: int,
    init: str,
    n_init: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Appearances to start from, and parts (K, S, R_S); one is to be grown still."""
    some = known.some
    C, S = some.n_channels, some.n_positions
    dtype = accumulator_dtype(some.device)
    if init == "random":
        A = random_appearances(C, R_C, generator)
    elif R_C == C:  # their space has no start to choose
        A = torch.eye(C, dtype=dtype, device="cpu")
    elif C > LARGEST_SCATTER and 4 * R_C <= C:
        A = nearly_hosvd(some.Z, R_C, generator)
    else:
        A = hosvd(some.Z, R_C, scatter=known.scatter())
    n_drawn = n_init - 1 if init == "hosvd" else n_init
    P = torch.empty(n_drawn, S, R_S, dtype=dtype, device="cpu")
    for start in P:
        start[:] = random_parts(S, R_S, generator)
    return A.to(some.device, dtype), P.to(some.device, dtype)


def _promising_starts(
    some: InMemory,
    A: Tensor,
    P: Tensor,
    generator: torch.Generator,
    grow: bool,
    constraint: Constraint,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The best of the starts, and of one grown from the data, once descended from.

    Also their objectives, as shares of the energy, by which they rise.
    """
    _, S, R_S = P.shape
    if constraint.rotatable:  # the parts' problem is solved without a start
        return P.new_ones(1, S, R_S), P.new_ones(1)
    moments: Moments | FactoredMoments
    if S <= LARGEST_FORMED:
        energy = sample_energies(some.Z).sum()
        formed = moments = part_moments(some, A, energy=energy, dtype=dtype)
        if grow:
            grown = grown_parts(formed.M1, R_S, generator, formed.eps)
            P = torch.cat([grown[None], P])
    else:
        if len(P) == 0:
            P = random_parts(S, R_S, generator).to(P)[None]
        P = P[:FINALISTS]
        few = some.Z[:: -(-len(some.Z) // 16)]
        energy = sample_energies(few).sum()
        moments = factored_part_moments(few, A, energy=energy, dtype=dtype)
    P, f = descend_shared(moments, P, constraint, **COMPARISON)
    P, f = descend_shared(moments, P[f.argsort()[:FINALISTS]], constraint, **FINAL)
    f, order = f.sort()
    others = (f < f[0] + PROMISING) & (f.diff(prepend=f[:1] - 1) > SAME)
    return P[order][others], f[others]
