"""What ``fit`` and ``partial_fit`` learn, and the fitted attributes that it makes.

Beside the estimator, :mod:`panda_sklearn.decomposition`, which checks and converts.

Imports numpy and torch, and the solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn._watching import FitWatcher
from panda_sklearn.core.channels import ChannelMoments, ChannelSums
from panda_sklearn.core.coefficients import CoefficientMoments, CoefficientSums
from panda_sklearn.core.constraint import FREE, NONNEGATIVE, Constraint
from panda_sklearn.core.factors import Factors
from panda_sklearn.core.objective import accumulator_dtype
from panda_sklearn.core.samples import Samples, Sums, in_one_pass
from panda_sklearn.solvers import (
    SOLVERS,
    Past,
    SolverResult,
    best_fit,
    learn,
)
from panda_sklearn.utils.arrays import MapLayout, Origin, as_tensor, randomness
from panda_sklearn.utils.callbacks import Task
from panda_sklearn.utils.starts import Start
from panda_sklearn.utils.validation import check_random_state

__all__ = [
    "Found",
    "Learnt",
    "attributes_of_batch",
    "attributes_of_fit",
    "batch_size_of",
    "constraint_of",
    "factors_of",
    "fit_samples",
    "learn_batch",
    "n_tasks_of",
]

# How often partial_fit solves for parts and for appearances, at most.
STEPS_PER_BATCH = 10


@dataclass(frozen=True)
class Found:
    """What a fit finds: factors, statistics of the samples there, and its course."""

    A: Tensor
    P: Tensor
    saliencies: ChannelMoments
    coefficients: CoefficientMoments
    n_passes: int
    history: list[float]
    converged: bool
    reason: str


@dataclass(frozen=True)
class Learnt:
    """What is known after a batch of a stream; ``n_before`` samples came before it."""

    A: Tensor
    P: Tensor
    past: Past
    channels: ChannelMoments
    coefficients: CoefficientMoments
    n_before: int
    objective: float


def constraint_of(panda: Any) -> Constraint:
    """The constraint on parts."""
    return NONNEGATIVE if panda.nonnegative else FREE


def batch_size_of(panda: Any) -> int | None:
    """The parameter as an int that torch takes: not numpy's, nor too long."""
    return None if panda.batch_size is None else min(int(panda.batch_size), 2**62)


def n_tasks_of(panda: Any) -> int:
    """Number of tasks of a fit, at most: its starts, or the iterations of one."""
    if SOLVERS[panda.solver].chooses_starts or panda.n_init in ("auto", 1):
        return int(panda.max_iter)
    return int(panda.n_init)


def factors_of(panda: Any, like: Tensor | Samples) -> Factors:
    """The fitted factors, of the type and on the device of a tensor or samples."""
    A, P = as_tensor(panda.appearances_).T, as_tensor(panda.parts_).flatten(1).T
    return Factors(A, P, constraint_of(panda)).to(like.device, like.dtype)


def fit_samples(
    panda: Any,
    samples: Samples,
    start: Start,
    layout: MapLayout,
    origin: Origin,
    task: Task | None,
) -> Found:
    """Fit to samples, and tell the callbacks of the task, if there is one.

    ``layout`` and ``origin`` are of the attributes that callbacks are told of.
    """

    def attributes(result: Callable[[], SolverResult]) -> dict[str, Any]:
        n_passes = samples.n_passes
        try:
            return attributes_of_fit(_found(samples, result()), layout, origin)
        finally:
            samples.n_passes = n_passes  # the fit's own

    with torch.inference_mode(False):
        watcher = FitWatcher(panda, task, attributes)
        return _found(samples, _best_fit(panda, samples, start, watcher))


def _best_fit(
    panda: Any, samples: Samples, start: Start, watcher: FitWatcher
) -> SolverResult:
    """The best result of all starts."""
    R_C, R_S, given = start
    solver = SOLVERS[panda.solver]
    options: dict[str, Any] = {}
    if solver.takes_rate:
        options["learning_rate"] = panda.learning_rate
        options["batch_size"] = batch_size_of(panda)
    with watcher:
        return best_fit(
            samples,
            R_C,
            R_S,
            solver=solver,
            init=panda.init if given is None else given,
            n_init=None if panda.n_init == "auto" else panda.n_init,
            generator=randomness(check_random_state(panda.random_state)),
            watcher=watcher,
            max_iter=panda.max_iter,
            tol=panda.tol,
            constraint=constraint_of(panda),
            **options,
        )


def _found(samples: Samples, result: SolverResult) -> Found:
    """A solver's result, with the statistics of the samples at its factors."""
    A, P, channels = result.A, result.P, result.channels
    sums: list[Sums] = [CoefficientSums(A, P)]
    if channels is None or not channels.tells(A, torch.finfo(A.dtype).eps):
        sums.append(ChannelSums(samples, A))
    coefficients, *others = in_one_pass(samples, *sums)
    return Found(
        A,
        P,
        channels.turned(A) if channels and not others else others[0],
        coefficients,
        n_passes=samples.n_passes,
        history=result.objective_history,
        converged=result.converged,
        reason=result.reason,
    )


def learn_batch(panda: Any, samples: Samples, start: Start) -> Learnt:
    """Learn from a batch, the first or another of a stream."""
    with torch.inference_mode(False):
        state, device = vars(panda), samples.device
        past, earlier = state.get("_past"), state.get("_channels")
        coefficients = state.get("_coefficients")
        if "parts_" in state:
            factors = factors_of(panda, samples)
            before = factors.A, factors.P
        else:
            result = _best_fit(panda, samples, start, FitWatcher(panda))
            before = result.A, result.P
        A, P, past, objective = learn(
            samples,
            *before,
            past.to(device) if past is not None else None,
            max_iter=STEPS_PER_BATCH,
            tol=panda.tol,
            constraint=constraint_of(panda),
            generator=randomness(check_random_state(panda.random_state)),
        )
        wide = accumulator_dtype(device)  # later batches turn it, unseen
        channels = ChannelMoments.of_data(samples, products=wide)
        if earlier is not None:
            channels = earlier.to(device) + channels
        A, P = A.to(samples.dtype), P.to(samples.dtype)
        (of_batch,) = in_one_pass(samples, CoefficientSums(A, P))
        if coefficients is not None:
            of_batch = coefficients.to(device).turned(before, (A, P)) + of_batch
        assert samples.n_samples is not None  # it has been gone through
        n_before = past.n_samples - samples.n_samples
        return Learnt(A, P, past, channels, of_batch, n_before, objective)


def attributes_of_fit(
    found: Found, layout: MapLayout, origin: Origin
) -> dict[str, Any]:
    """The attributes that ``fit`` sets."""
    with torch.inference_mode(False):
        factors = found.A, found.P, found.saliencies, found.coefficients
        return _attributes(*factors, layout, origin) | {
            "n_iter_": len(found.history),
            "n_passes_": found.n_passes,
            "objective_history_": np.array(found.history),
            "reconstruction_err_": found.history[-1],
        }


def attributes_of_batch(
    panda: Any, learnt: Learnt, layout: MapLayout, origin: Origin
) -> dict[str, Any]:
    """The attributes that ``partial_fit`` sets."""
    earlier = panda.objective_history_ if learnt.n_before else []
    history = np.append(earlier, learnt.objective)
    with torch.inference_mode(False):
        A, P, coefficients = learnt.A, learnt.P, learnt.coefficients
        saliencies = learnt.channels.turned(A)
        return _attributes(A, P, saliencies, coefficients, layout, origin) | {
            "_past": learnt.past.to(origin.device),
            "_channels": learnt.channels.to(origin.device),
            "_coefficients": coefficients.to(origin.device),
            "n_samples_seen_": learnt.past.n_samples,
            "n_iter_": len(history),
            "n_passes_": 1,
            "objective_history_": history,
            "reconstruction_err_": learnt.objective,
        }


def _attributes(
    A: Tensor,
    P: Tensor,
    saliencies: ChannelMoments,
    coefficients: CoefficientMoments,
    layout: MapLayout,
    origin: Origin,
) -> dict[str, Any]:
    """The attributes of the layout, the factors, and the statistics of A'z and L."""
    n = coefficients.n
    covariance = saliencies.scatter / saliencies.n
    arrays = {
        "appearances_": A.T.contiguous(),
        "parts_": P.T.reshape(-1, *layout.spatial).contiguous(),
        "saliency_mean_": saliencies.mean.to(A),
        "saliency_covariance_": covariance.to(A),
        "coefficient_mean_": coefficients.mean.T.to(A).contiguous(),
        "coefficient_covariance_": (coefficients.own / n).to(A),
        "coefficient_cross_covariance_": (coefficients.cross / n).to(A),
    }
    return {name: origin.give(array) for name, array in arrays.items()} | {
        "n_features_in_": layout.sample_shape[0]
        if len(layout.sample_shape) == 1
        else layout.n_channels,
        "map_shape_": layout.map_shape,
        "_flattened": layout.flattened,
    }
