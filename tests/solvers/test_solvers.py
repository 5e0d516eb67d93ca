"""The solvers, without the estimator."""

import numpy as np
import pytest
import torch

from panda_sklearn.core import (
    FREE,
    NONNEGATIVE,
    Factors,
    hosvd,
    objective_of,
    random_parts,
)
from panda_sklearn.core.samples import InMemory
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.solvers import SOLVERS, DivergenceError, refine_parts
from panda_sklearn.solvers.base import draw_batches
from tests.solvers.watchers import Listener

DEFAULTS = {"max_iter": 100, "tol": 0, "constraint": NONNEGATIVE}


def solve(name, Z, A, P, seed=0, batch_size=None, learning_rate=None, **options):
    """From a given start; ``batch_size`` is what each solver has for it."""
    options = {**DEFAULTS, **options}
    options["generator"] = torch.Generator().manual_seed(seed)
    solver = SOLVERS[name]
    if solver.takes_rate:
        options |= {"learning_rate": learning_rate, "batch_size": batch_size}
        return solver.run(Z, A, P, **options)
    samples = InMemory(Z, batch_size=batch_size)
    ranks = A.shape[1], P.shape[1]
    return solver.run(samples, *ranks, init=(A, P), n_init=1, **options)


@pytest.fixture(scope="module")
def problem():
    """Noisy planted maps with a start: Z (60, 8, 36), A (8, 5), P (36, 3)."""
    X, *_ = make_parts_appearances(
        60, 3, 5, n_channels=8, spatial_shape=(6, 6), snr_db=10, random_state=0
    )
    Z = torch.from_numpy(X).flatten(2)
    return Z, hosvd(Z, 5), random_parts(36, 3, torch.Generator().manual_seed(1))


def literal_algorithm_1(Z, A, P, learning_rate, n_iter):
    """Algorithm 1 in numpy, with P P' and A A' formed."""
    Z, A, P = (t.numpy() for t in (Z, A, P))
    for _ in range(n_iter):
        Pb, Ab = P @ P.T, A @ A.T
        gradient = 0
        for z in Z:
            gradient = gradient + 2 * (
                Pb @ z.T @ Ab @ Ab @ z @ P
                + z.T @ Ab @ Ab @ z @ Pb @ P
                - 2 * z.T @ Ab @ z @ P
            )
        P = np.maximum(0, P - learning_rate * gradient)
        Pb = P @ P.T
        gradient = 0
        for z in Z:
            gradient = gradient + 2 * (
                Ab @ z @ Pb @ Pb @ z.T @ A
                + z @ Pb @ Pb @ z.T @ Ab @ A
                - 2 * z @ Pb @ z.T @ A
            )
        A = A - learning_rate * gradient
    return A, P


def test_pgd_is_algorithm_1(problem):
    Z, A, P = problem
    rate = 0.2 / float((Z**2).sum())
    result = solve("pgd", Z, A, P, learning_rate=rate, max_iter=50)
    A_literal, P_literal = literal_algorithm_1(Z, A, P, rate, 50)
    assert result.n_iter == 50
    # The start must have been left behind, or the comparison would say nothing.
    assert np.linalg.norm(P_literal) > 10 * torch.linalg.norm(P)
    assert (P_literal == 0).any()
    np.testing.assert_allclose(result.A, A_literal, atol=1e-8, rtol=0)
    np.testing.assert_allclose(result.P, P_literal, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_automatic_pgd_never_raises_the_objective(problem, dtype, scale):
    Z, A, P = (t.to(dtype) for t in problem)
    result = solve("pgd", scale * Z, A, P, max_iter=200)
    history = np.array(result.objective_history)
    assert np.all(np.diff(history) <= 0)
    assert history[-1] < 0.3 * history[0]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_result_does_not_depend_on_scale(problem, name, batch_size, scale):
    Z, A, P = problem
    options = {"batch_size": batch_size, "max_iter": 60}
    plain, scaled = (solve(name, c * Z, A, P, **options) for c in (1.0, scale))
    # Powers of two scale without rounding errors, which decide where a descent stops;
    # both products are new tensors, so that kernels find the same alignment.
    np.testing.assert_allclose(plain.A, scaled.A, atol=1e-9)
    np.testing.assert_allclose(plain.P, scaled.P, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_solvers_reach_the_noise(problem, name, batch_size):
    Z, A, P = problem
    result = solve(name, Z, A, P, max_iter=600, batch_size=batch_size)
    # At 10 dB a model that finds the planted factors leaves nearly the noise's 1/11.
    share = float(objective_of(Z, result.A, result.P)) / float((Z**2).sum())
    assert share < 1 / 11
    assert result.P.min() == 0
    assert not result.A.requires_grad and not result.P.requires_grad


@pytest.mark.parametrize("name", SOLVERS)
def test_batches_go_through_all_samples(name):
    """Samples that share nothing are all learnt from."""
    Z = torch.eye(4, dtype=torch.float64)[:, None, :].repeat(1, 3, 1)  # (4, 3, 4)
    start = hosvd(Z, 1), random_parts(4, 4, torch.Generator().manual_seed(0))
    # Without the constraint, under which two positions may get stuck on one part.
    options = {"batch_size": 1, "max_iter": 1000, "constraint": FREE}
    result = solve(name, Z, *start, **options)
    errors = [float(objective_of(z[None], result.A, result.P)) for z in Z]
    assert max(errors) < 0.1 * 3


@pytest.mark.parametrize("name", SOLVERS)
def test_history_ends_with_the_objective_of_the_result(problem, name):
    Z, A, P = problem
    result = solve(name, Z, A, P, max_iter=3)
    assert 1 < len(result.objective_history) == result.n_iter <= 3
    mean = float(objective_of(Z, result.A, result.P)) / len(Z)
    assert result.objective_history[-1] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_without_the_constraint_parts_may_be_negative(problem, name):
    result = solve(name, *problem, constraint=FREE)
    assert result.P.min() < 0


@pytest.mark.parametrize("name", SOLVERS)
def test_start_and_data_are_left_alone(problem, name):
    before = [t.clone() for t in problem]
    solve(name, *problem, max_iter=3)
    assert all(torch.equal(*pair) for pair in zip(before, problem, strict=True))


@pytest.mark.parametrize("name", ["pgd", "adam"])
def test_too_large_a_learning_rate_says_so(problem, name):
    with pytest.raises(DivergenceError, match="Lower learning_rate"):
        solve(name, *problem, learning_rate=1e3)


def test_a_start_of_large_objective_is_no_divergence(problem):
    Z, A, P = problem
    result = solve("pgd", Z, A, 300 * P, learning_rate=1e-9, max_iter=5)
    first = float(objective_of(Z, A, 300 * P)) / len(Z)
    assert first > 20 * float((Z**2).sum()) / len(Z)
    assert result.objective_history[-1] < first


@pytest.mark.parametrize("batch_size", [1, 4])
def test_small_batches_settle_where_the_full_gradient_does(problem, batch_size):
    Z, A, P = problem
    options = {"max_iter": 3000, "tol": 1e-5}
    whole = solve("pgd", Z, A, P, **options)
    small = solve("pgd", Z, A, P, batch_size=batch_size, **options)
    assert small.converged
    energy = float((Z**2).sum())
    difference = objective_of(Z, small.A, small.P) - objective_of(Z, whole.A, whole.P)
    assert float(difference) < 2e-3 * energy


def test_start_that_is_worse_than_nothing_is_scaled_down():
    """On large maps entries from U(0, 0.01) add up to such a start."""
    generator = torch.Generator().manual_seed(0)
    Z = torch.rand(2, 3, 200 * 200, generator=generator)
    A, P = hosvd(Z, 3), random_parts(200 * 200, 8, generator).float()
    energy = float((Z**2).sum())
    assert float(objective_of(Z, A, P)) > energy
    result = solve("pgd", Z, A, P, max_iter=20)
    assert result.P.any(dim=0).all()
    assert result.objective_history[0] < energy / 2
    assert result.objective_history[-1] < 0.5 * energy / 2
    given = solve("pgd", Z, A, P.clone(), max_iter=1, learning_rate=1e-30)
    assert torch.equal(given.P, P)  # with a rate of the user's: to the letter


def test_inference_tensors():
    with torch.inference_mode():
        Z = torch.rand(6, 3, 8)
    start = torch.eye(3), torch.rand(8, 2)
    for name in SOLVERS:
        solve(name, Z, *start, max_iter=3)
        solve(name, Z, *start, max_iter=3, batch_size=2)


def test_parts_that_all_vanish_are_no_result(problem):
    Z, A, P = problem
    with pytest.raises(DivergenceError, match="Every part became zero"):
        solve("pgd", Z, -A, P - 0.02, learning_rate=1e-12)


@pytest.mark.parametrize("name", ["pgd", "adam"])
def test_stopping_rule(problem, name):
    loose = solve(name, *problem, max_iter=2000, tol=1e-4)
    tight = solve(name, *problem, max_iter=2000, tol=1e-6)
    short = solve(name, *problem, max_iter=3, tol=1e-6)
    assert loose.converged and tight.converged and not short.converged
    assert loose.n_iter < tight.n_iter < 2000
    assert "tol" in tight.reason and "max_iter" in short.reason
    mean_10 = np.convolve(tight.objective_history, np.ones(10) / 10, "valid")
    energy = float((problem[0] ** 2).sum()) / len(problem[0])
    falls = (mean_10[:-10] - mean_10[10:]) / energy
    assert falls[-1] < 1e-5 and np.all(falls[:-1] >= 1e-5)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_watcher_can_stop(problem, name, batch_size):
    stop = 1 if name == "spg" else 4
    listener = Listener(stop_at=stop)
    options = {"batch_size": batch_size}
    result = solve(name, *problem, watcher=listener, **options)
    assert result.n_iter == stop and not result.converged
    assert "callback" in result.reason
    assert listener.n_begun == len(listener.objectives) == stop
    if batch_size is None:
        assert listener.objectives == result.objective_history


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_watcher_gets_what_a_shorter_fit_would_return(problem, name, batch_size):
    """And asking for it changes nothing."""
    options = {"batch_size": batch_size, "tol": 0}
    listener = Listener(keep=True)
    watched = solve(name, *problem, max_iter=4, watcher=listener, **options)
    for n_iter, found in enumerate(listener.results, start=1):
        alone = solve(name, *problem, max_iter=n_iter, **options)
        assert torch.equal(found.A, alone.A) and torch.equal(found.P, alone.P)
        assert found.objective_history == alone.objective_history
    assert n_iter == watched.n_iter
    assert torch.equal(watched.A, alone.A) and torch.equal(watched.P, alone.P)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_zero_data_end_at_once_with_finite_factors(name, batch_size):
    Z = torch.zeros(5, 4, 6)
    A, P = hosvd(Z, 2), random_parts(6, 3, torch.Generator().manual_seed(0)).float()
    result = solve(name, Z, A, P, max_iter=100, tol=1e-4, batch_size=batch_size)
    assert result.converged and result.n_iter < 100
    assert result.A.isfinite().all() and result.P.isfinite().all()
    assert result.objective_history == [0.0] * result.n_iter


def test_a_pass_of_batches_sees_every_sample_once():
    Z = torch.arange(10.0)[:, None, None]
    batches = draw_batches(Z, 4, torch.Generator().manual_seed(0))
    one_pass = [next(batches) for _ in range(3)]
    assert [batch.size for batch in one_pass] == [4, 4, 2]
    seen = torch.cat([batch.Z.flatten() for batch in one_pass])
    assert seen.sort().values.tolist() == list(range(10))
    assert seen.tolist() != list(range(10))


def test_refinement_descends_each_sample_on_its_own(problem):
    Z, A, _ = problem
    P = solve("pgd", *problem).P
    factors = Factors(A, P, NONNEGATIVE)
    alone = torch.cat([refine_parts(z[None], factors, max_iter=20) for z in Z])
    together = refine_parts(Z, factors, max_iter=20)
    np.testing.assert_allclose(together, alone, atol=1e-9)
    before = np.array([float(objective_of(z[None], A, P)) for z in Z])
    after = np.array(
        [float(objective_of(z[None], A, p.T)) for z, p in zip(Z, together, strict=True)]
    )
    assert np.all(after <= before) and np.mean(after) < 0.9 * np.mean(before)
    assert together.min() >= 0
