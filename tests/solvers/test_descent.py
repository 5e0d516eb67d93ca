"""Descent on one factor."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core import FREE, NONNEGATIVE, Moments
from panda_sklearn.solvers import alternation
from panda_sklearn.solvers.alternation import solve_appearances, solve_parts
from panda_sklearn.solvers.descent import descend, leading_factor, relative_objective


def make_moments(n, seed=0, commuting=False):
    """Moments of random data, whose energy is half as much again."""
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(3 * n, n, dtype=torch.float64, generator=generator)
    Y = Y * torch.linspace(1, 3, n, dtype=torch.float64)
    M1 = Y.T @ Y
    weights = torch.rand(3 * n, 1, dtype=torch.float64, generator=generator) + 0.5
    M2 = M1 if commuting else Y.T @ (weights * Y)
    return Moments(M1, M2, 1.5 * M1.trace(), torch.finfo(torch.float64).eps)


def run(moments, X, **options):
    return descend(
        lambda X, which: moments.products(X),
        X,
        energy=moments.energy.expand(len(X)),
        **{"constraint": NONNEGATIVE, "max_iter": 2000, "tol": 1e-14, **options},
    )


def starts(k, n, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(k, n, r, dtype=torch.float64, generator=generator)


@given(st.integers(1, 8), st.integers(0, 20), st.booleans())
def test_ends_at_a_stationary_point(n, seed, nonnegative):
    moments = make_moments(n, seed)
    constraint = NONNEGATIVE if nonnegative else FREE
    X, f = run(
        moments, starts(1, n, min(2, n), seed), constraint=constraint, max_iter=5000
    )
    M1X, M2X = moments.products(X)
    gradient = 2 * (X @ (X.mT @ M2X) + M2X @ (X.mT @ X)) - 4 * M1X
    gradient = gradient / moments.energy
    if nonnegative:
        assert (X >= 0).all()
        assert (gradient[X == 0] > -1e-4).all()
        gradient = gradient[X > 0]
    assert gradient.abs().max() < 1e-4
    assert float(f[0]) == pytest.approx(relative_objective(moments, X[0]), abs=1e-10)


def test_no_step_raises_the_objective():
    moments = make_moments(10)
    X = starts(4, 10, 3)
    values = [run(moments, X, max_iter=k)[1] for k in range(60)]
    assert np.all(np.diff(torch.stack(values), axis=0) <= 1e-13)  # roundings of 1
    assert torch.all(values[-1] < values[0] - 1e-3)


def test_each_problem_goes_its_own_way():
    moments = make_moments(10)
    X = torch.cat([starts(3, 10, 3), run(moments, starts(1, 10, 3, seed=1))[0]])
    together, _ = run(moments, X, tol=1e-9)
    alone = torch.cat([run(moments, x[None], tol=1e-9)[0] for x in X])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


def test_starts_of_any_scale_and_no_energy():
    moments = make_moments(6)
    X = starts(1, 6, 2)
    results = [run(moments, c * X)[1] for c in (1e-12, 1.0, 1e12)]
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=0)
    torch.testing.assert_close(results[2], results[1], atol=1e-9, rtol=0)
    zero = Moments(0 * moments.M1, 0 * moments.M2, 0 * moments.energy, moments.eps)
    X_zero, f = run(zero, X)
    assert torch.equal(X_zero, X) and float(f[0]) == 0


def test_without_limit_of_rank_the_leading_factor_is_the_minimum():
    moments = make_moments(7)
    best = relative_objective(moments, leading_factor(moments, 7))
    descended = run(moments, starts(5, 7, 7) - 0.5, constraint=FREE)[1]
    assert best <= float(descended.min()) + 1e-12
    assert float(descended.min()) == pytest.approx(best, abs=1e-6)


def test_with_one_metric_the_leading_factor_spans_the_leading_eigenvectors():
    moments = make_moments(7, commuting=True)
    X = leading_factor(moments, 3)
    vectors = torch.linalg.eigh(moments.M1).eigenvectors[:, -3:]
    torch.testing.assert_close(X @ X.T, vectors @ vectors.T, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_with_limited_rank_the_leading_factor_is_nearly_the_minimum(seed):
    moments = make_moments(8, seed)
    best = float(run(moments, starts(20, 8, 3, seed) - 0.5, constraint=FREE)[1].min())
    value = relative_objective(moments, leading_factor(moments, 3))
    assert best - 1e-9 <= value < best + 2e-3


def test_a_problem_that_no_step_helps_ends():
    """In single precision, at the minimum, with no other reason to end."""
    moments = make_moments(6)
    exact = leading_factor(moments, 6).float()
    single = Moments(moments.M1.float(), moments.M2.float(), moments.energy, 1e-7)
    X, f = run(single, exact[None], constraint=FREE, tol=0, max_iter=3000)
    assert X.isfinite().all() and f.isfinite().all()
    torch.testing.assert_close(X[0] @ X[0].T, exact @ exact.T, rtol=1e-3, atol=1e-3)


def value_and_gradient(moments, X, linear):
    """Of f(X) + <L, X>, from the matrices."""
    H = X.T @ X
    f = moments.energy - 2 * (X * (moments.M1 @ X)).sum()
    f = f + (H * (X.T @ moments.M2 @ X)).sum() + (linear * X).sum()
    gradient = 2 * (X @ X.T @ moments.M2 @ X + moments.M2 @ X @ H) - 4 * moments.M1 @ X
    return f, gradient + linear


@given(st.integers(1, 8), st.integers(0, 20), st.booleans())
def test_with_a_linear_term_it_ends_at_a_stationary_point_of_the_sum(
    n, seed, nonnegative
):
    moments = make_moments(n, seed)
    r = min(2, n)
    generator = torch.Generator().manual_seed(seed)
    linear = torch.randn(n, r, dtype=torch.float64, generator=generator)
    linear = linear * moments.energy / 10
    X, f = run(
        moments,
        starts(1, n, r, seed),
        constraint=NONNEGATIVE if nonnegative else FREE,
        max_iter=5000,
        rescale=False,
        linear=linear,
    )
    expected, gradient = value_and_gradient(moments, X[0], linear)
    gradient = gradient / moments.energy
    assert float(f[0]) == pytest.approx(float(expected / moments.energy), abs=1e-10)
    if nonnegative:
        assert (X >= 0).all()
        assert (gradient[X[0] == 0] > -1e-4).all()
        gradient = gradient[X[0] > 0]
    assert gradient.numel() == 0 or gradient.abs().max() < 1e-4


def test_a_linear_term_that_is_minus_the_gradient_holds_its_point():
    moments = make_moments(8)
    point = starts(1, 8, 3)[0]
    linear = -value_and_gradient(moments, point, 0 * point)[1]
    X, f = run(moments, point[None], rescale=False, linear=linear)
    there = value_and_gradient(moments, point, linear)[0] / moments.energy
    assert float(f[0]) <= float(there) + 1e-12
    X, _ = run(moments, point[None], rescale=False, linear=linear, max_iter=1)
    torch.testing.assert_close(X[0], point, atol=1e-7, rtol=0)


def test_each_problem_has_the_linear_term_as_others_finish():
    moments = make_moments(8)
    linear = starts(1, 8, 2, seed=3)[0] * moments.energy
    done = run(moments, starts(1, 8, 2), rescale=False, linear=linear, tol=1e-9)[0]
    X = torch.cat([done, starts(3, 8, 2, seed=1)])
    options = {"rescale": False, "linear": linear, "tol": 1e-9}
    together, f = run(moments, X, **options)
    alone = [run(moments, x[None], **options) for x in X]
    torch.testing.assert_close(
        together, torch.cat([x for x, _ in alone]), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(f, torch.cat([f for _, f in alone]))


@pytest.mark.parametrize("constraint", [FREE, NONNEGATIVE])
def test_parts_with_and_without_a_linear_term(constraint):
    moments = make_moments(8)
    start = starts(1, 8, 3)[0]
    P, f = solve_parts(moments, start, constraint)
    assert constraint.allows(P)
    assert f == pytest.approx(relative_objective(moments, P), abs=1e-12)
    if constraint is FREE:
        return
    linear = starts(1, 8, 3, seed=1)[0] * moments.energy / 10
    P, f = solve_parts(moments, start, constraint, linear=linear)
    expected = value_and_gradient(moments, P, linear)[0] / moments.energy
    assert f == pytest.approx(float(expected), abs=1e-12)
    assert f < float(value_and_gradient(moments, start, linear)[0] / moments.energy)


def moments_of_channels(C, seed=0):
    """Moments with falling eigenvalues, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(3 * C, C, dtype=torch.float64, generator=generator)
    Y = Y * 0.97 ** torch.arange(C, dtype=torch.float64)
    weights = torch.rand(3 * C, 1, dtype=torch.float64, generator=generator) + 0.5
    M1, M2 = Y.T @ Y, Y.T @ (weights * Y)
    return Moments(M1, M2, 1.2 * M1.trace(), torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("R_C", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_few_appearances_of_many_channels(monkeypatch, R_C, seed):
    """In a space that grows from them, and nearly as good as among all channels."""
    C = 270
    assert C > alternation.SMALL and 3 * R_C < C
    moments = moments_of_channels(C, seed)
    start = torch.eye(C, dtype=torch.float64)[:, :R_C] + 0.1 * starts(1, C, R_C)[0]
    A, f = solve_appearances(moments, start)
    assert A.shape == start.shape
    assert f == pytest.approx(relative_objective(moments, A), abs=1e-12)
    assert f < relative_objective(moments, start)
    values = [f]
    for _ in range(15):  # as from pass to pass
        A, f = solve_appearances(moments, A)
        values.append(f)
    assert (np.diff(values) <= 1e-13).all()
    monkeypatch.setattr(alternation, "SMALL", C)
    among_all = solve_appearances(moments, start)[1]
    assert values[0] < among_all + 1e-3
    assert values[-1] < among_all + 1e-6
