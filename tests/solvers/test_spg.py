"""The solver "spg": what the others do not promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from panda_sklearn.core import FREE, NONNEGATIVE, hosvd, objective_of, random_parts
from panda_sklearn.core.samples import InMemory
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.solvers import alternation, fit_pgd, fit_spg


def start(Z, r_c, r_s, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return hosvd(Z, r_c), random_parts(Z.shape[2], r_s, generator).to(Z)


def solve(Z, r_c, r_s, init="hosvd", seed=0, **options):
    """With ``init="hosvd"`` the first start is grown, with a pair there is one."""
    generator = torch.Generator().manual_seed(seed)
    constraint = NONNEGATIVE if options.pop("nonnegative", True) else FREE
    samples = InMemory(Z, batch_size=options.pop("batch_size", None))
    options = {"max_iter": 200, "tol": 1e-9, "constraint": constraint, **options}
    options = {"n_init": None, "generator": generator, **options}
    return fit_spg(samples, r_c, r_s, init=init, **options)


def solve_from(Z, A, P, **options):
    return solve(Z, A.shape[1], P.shape[1], (A, P), **options)


def planted(n=60, r_s=3, r_c=5, *, c=8, side=6, snr_db=10, seed=0):
    X, parts, appearances = make_parts_appearances(
        n,
        r_s,
        r_c,
        n_channels=c,
        spatial_shape=(side, side),
        snr_db=snr_db,
        random_state=seed,
    )
    P = torch.from_numpy(parts.reshape(r_s, -1).T.copy())
    return torch.from_numpy(X).flatten(2), torch.from_numpy(appearances.T.copy()), P


def rough(n=60, c=12, s=35, seed=0):
    """Clipped noise: no structure to find, many minima."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, s, dtype=torch.float64, generator=generator).clamp(min=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ranks", [(4, 3), (12, 3), (12, 35)])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_never_raises_the_objective(dtype, ranks, nonnegative):
    Z = rough().to(dtype)
    options = {"tol": 0, "max_iter": 15, "nonnegative": nonnegative}
    result = solve_from(Z, *start(Z, *ranks), **options)
    history = np.array(result.objective_history)
    # The last value is that of the factors once they are rounded.
    energy = float((Z**2).sum()) / len(Z)
    assert np.all(np.diff(history) <= 10 * torch.finfo(dtype).eps ** 2 * energy)
    total = objective_of(Z.double(), result.A.double(), result.P.double())
    mean = float(total) / len(Z)
    assert history[-1] == pytest.approx(mean, rel=1e-4, abs=1e-7 * energy)


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 7),
    st.data(),
    st.sampled_from(["normal", "positive", "low rank", "dead", "zero", "repeated"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_ends_with_finite_canonical_factors(n, c, s, data, kind, dtype):
    r_c, r_s = data.draw(st.integers(1, c)), data.draw(st.integers(1, s))
    nonnegative = data.draw(st.booleans())
    init = data.draw(st.sampled_from(["hosvd", "random"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    Z = draw(n, c, s)
    if kind == "positive":
        Z = Z.abs()
    elif kind == "low rank":
        Z = draw(n, 1, 1) * draw(c, 1) * draw(1, s)
    elif kind == "dead":
        Z[:, 0] = 0
        Z[:, :, -1] = 0
    elif kind == "zero":
        Z = 0 * Z
    elif kind == "repeated":
        Z = Z[:1].repeat(n, 1, 1)
    Z = Z.to(dtype)
    n_init = data.draw(st.integers(1, 3))
    result = solve(Z, r_c, r_s, init, n_init=n_init, nonnegative=nonnegative)
    assert result.A.shape == (c, r_c) and result.P.shape == (s, r_s)
    assert result.A.dtype == result.P.dtype == dtype
    assert result.A.isfinite().all() and result.P.isfinite().all()
    assert not nonnegative or (result.P >= 0).all()
    assert np.isfinite(result.objective_history).all()
    # Never worse than no factors at all; and with all appearances and parts, exact.
    energy = float((Z.double() ** 2).sum())
    f = float(objective_of(Z.double(), result.A.double(), result.P.double()))
    assert f <= (1 + 1e-5) * energy
    if r_c == c and r_s == s and not nonnegative:
        assert f <= 1e-5 * energy
    # The dead channel is in no appearance.
    if kind == "dead":
        assert result.A[0].abs().max() <= 1e-3 * max(float(result.A.abs().max()), 1e-9)


@pytest.mark.parametrize("data", ["rough", "planted"])
@pytest.mark.parametrize("ranks", [(4, 3), (8, 3)])
def test_single_precision_loses_little(data, ranks):
    Z = rough(c=8) if data == "rough" else planted()[0]
    A, P = start(Z, *ranks)
    energy = float((Z**2).sum())
    exact = solve_from(Z, A, P).objective_history[-1]
    single = solve_from(Z.float(), A, P)
    f = float(objective_of(Z, single.A.double(), single.P.double()))
    assert f / energy <= exact * len(Z) / energy + 1e-4


@pytest.mark.parametrize("ranks", [(4, 3), (8, 3)])
@pytest.mark.parametrize("make, slack", [(planted, 1e-6), (rough, 1e-3)])
def test_is_no_worse_than_long_descent(make, slack, ranks):
    """Where there are many minima, on average."""
    excesses = []
    for seed in range(3):
        Z = make(c=8, seed=seed)
        Z = Z[0] if make is planted else Z
        reference = fit_pgd(
            Z,
            *start(Z, *ranks, seed=seed),
            learning_rate=None,
            max_iter=5_000,
            tol=1e-7,
            batch_size=None,
            constraint=NONNEGATIVE,
            generator=torch.Generator(),
        )
        result = solve(Z, *ranks, seed=seed)
        excess = result.objective_history[-1] - reference.objective_history[-1]
        excesses.append(excess * len(Z) / float((Z**2).sum()))
    assert np.mean(excesses) <= slack


@pytest.mark.parametrize("snr_db, cosine", [(None, 0.99), (10, 0.95)])
@pytest.mark.parametrize("seed", range(3))
def test_recovers_planted_factors(snr_db, cosine, seed):
    Z, A, P = planted(200, 6, 8, c=16, side=8, snr_db=snr_db, seed=seed)
    result = solve(Z, 8, 6, n_init=5, seed=seed)

    def unit(X):
        return X / X.norm(dim=0)

    cosines = (unit(result.P).T @ unit(P)).numpy()
    rows, columns = linear_sum_assignment(-cosines)
    assert cosines[rows, columns].mean() > cosine
    # The appearances' span, and in it their order.
    overlap = torch.linalg.svdvals(unit(result.A).T @ A)
    assert overlap.mean() > cosine
    cosines = (unit(result.A).T @ A).abs().numpy()
    assert cosines[linear_sum_assignment(-cosines)].mean() > 0.9


@pytest.mark.parametrize("r_c", [5, 8])
def test_seeds_that_reach_the_same_minimum_agree(r_c):
    Z, *_ = planted()
    results = [
        solve(Z, r_c, 3, "random", n_init=5, seed=seed, tol=1e-6) for seed in range(4)
    ]
    lowest = min(r.objective_history[-1] for r in results)
    same = [r for r in results if r.objective_history[-1] < lowest * (1 + 1e-5)]
    assert len(same) >= 3
    for other in same[1:]:
        torch.testing.assert_close(other.A, same[0].A, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.P, same[0].P, atol=1e-3, rtol=0)


def test_order_of_samples_and_positions_does_not_matter():
    Z, *_ = planted()
    generator = torch.Generator().manual_seed(0)
    samples = torch.randperm(len(Z), generator=generator)
    positions = torch.randperm(Z.shape[2], generator=generator)
    results = [solve(X, 5, 3, n_init=1) for X in (Z, Z[samples], Z[:, :, positions])]
    for other, order in zip(results[1:], (slice(None), positions), strict=True):
        torch.testing.assert_close(other.A, results[0].A, atol=1e-5, rtol=0)
        torch.testing.assert_close(other.P, results[0].P[order], atol=1e-5, rtol=0)


def test_channels_of_one_value_and_a_thousand():
    """The same answer at all scales, even near the limits of single precision."""
    Z, *_ = planted()
    A, P = start(Z, 5, 3)
    plain = solve_from(Z, A, P)
    for scale in (1e-12, 1000.0, 1e12):
        scaled = solve_from((scale * Z).float(), A.float(), P.float())
        torch.testing.assert_close(scaled.P.double(), plain.P, atol=1e-3, rtol=0)


@pytest.mark.parametrize("ranks", [(4, 3), (12, 3), (4, 35)])
def test_unconstrained_is_the_tucker_optimum(ranks):
    """Against higher-order orthogonal iteration, run to the end from its best start."""
    Z = rough()
    r_c, r_s = ranks
    A = hosvd(Z, r_c)
    for _ in range(500):
        Y = A.T @ Z
        P = torch.linalg.eigh((Y.mT @ Y).sum(dim=0)).eigenvectors[:, -r_s:]
        W = Z @ P
        A = torch.linalg.eigh((W @ W.mT).sum(dim=0)).eigenvectors[:, -r_c:]
    tucker = float(objective_of(Z, A, P))
    result = solve_from(Z, *start(Z, r_c, r_s), nonnegative=False)
    f = float(objective_of(Z, result.A, result.P))
    assert f == pytest.approx(tucker, rel=1e-4)
    for factor in (result.A, result.P):
        torch.testing.assert_close(
            factor.T @ factor, torch.eye(factor.shape[1]).double(), atol=1e-6, rtol=0
        )


def test_the_best_of_several_starts_is_taken():
    """Single random starts often merge two of many parts and split a third."""
    Z, A, P = planted(100, 12, 6, side=8)
    noise = 1.02 * float(objective_of(Z, A, P)) / len(Z)
    found = []
    for seed in range(4, 8):
        ends = [
            solve(Z, 6, 12, "random", n_init=n, seed=seed).objective_history[-1]
            for n in (1, 20)
        ]
        found.append([end < noise for end in ends])
    single, several = zip(*found, strict=True)
    assert not all(single) and all(several)


def test_the_grown_start_needs_no_luck():
    Z, A, P = planted(100, 16, 6, side=8)
    noise = 1.02 * float(objective_of(Z, A, P)) / len(Z)
    result = solve(Z, 6, 16, n_init=1)
    assert result.objective_history[-1] < noise


@pytest.mark.parametrize("factored", [True, False])
def test_factored_moments_lead_to_the_same_minimum(monkeypatch, factored):
    Z, *_ = planted()
    A, P = start(Z, 5, 3)
    plain = solve_from(Z, A, P)
    monkeypatch.setattr(alternation, "is_cheaper_factored", lambda *shape: factored)
    result = solve_from(Z, A, P, batch_size=7)
    torch.testing.assert_close(result.P, plain.P, atol=1e-3, rtol=0)


def test_stopping_rule():
    Z = rough()
    begun = start(Z, 6, 5)
    loose, tight = (solve_from(Z, *begun, tol=tol) for tol in (1e-3, 1e-7))
    short = solve_from(Z, *begun, max_iter=2, tol=1e-7)
    assert loose.converged and tight.converged and not short.converged
    assert loose.n_iter < tight.n_iter < 200 and short.n_iter == 2
    assert "tol" in tight.reason and "max_iter" in short.reason
    energy = float((Z**2).sum()) / len(Z)
    falls = -np.diff(tight.objective_history) / energy
    assert falls[-1] < 1e-7 and np.all(falls[:-1] >= 1e-7)
