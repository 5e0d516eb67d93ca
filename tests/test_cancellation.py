"""Data far from zero, or with one channel that dwarfs the others, in single precision.

What is reported must agree, to a hundredth, with double precision at the same factors:
the share of the sum of squares that is left is down to 1e-10 here.
"""

import numpy as np
import pytest

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.metrics import heldout_reconstruction

BASE, *_ = make_parts_appearances(
    40, 3, 4, n_channels=8, spatial_shape=(5, 6), snr_db=15, random_state=0
)
BASE = BASE / BASE.std()


def with_offset(size):
    return BASE + size


def with_a_constant_channel(size):
    return np.where(np.arange(8)[:, None, None] == 5, size, BASE)


def with_a_large_channel(size):
    return np.where(np.arange(8)[:, None, None] == 5, max(size, 1) * BASE, BASE)


def with_offset_samples(size):
    return BASE + size * (np.arange(40) > 5)[:, None, None, None]


def fitted(way, X):
    panda = PartsAppearanceDecomposition(
        3, 4, solver="pgd" if way == "pgd" else "spg", max_iter=40, random_state=0
    )
    if way == "stream":
        return panda.partial_fit(X[:20]).partial_fit(X[20:])
    return panda.set_params(tol=0).fit(X)


def errors_by_hand(panda, X, parts=None):
    A = panda.appearances_.T.astype(float)
    P = (panda.parts_ if parts is None else parts).astype(float)
    P = np.swapaxes(P.reshape(*P.shape[:-2], 30), -1, -2)
    Z = X.reshape(len(X), 8, 30).astype(float)
    rest = Z - A @ (A.T @ Z @ P) @ np.swapaxes(P, -1, -2)
    return (rest**2).sum(axis=(1, 2))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("way", ["spg", "pgd", "stream"])
@pytest.mark.parametrize("size", [0, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize(
    "make",
    [with_offset, with_a_constant_channel, with_a_large_channel, with_offset_samples],
)
def test_figures_agree_with_double_precision(make, size, way):
    X = make(size).astype(np.float32)
    panda = fitted(way, X)
    errors, energy = errors_by_hand(panda, X), float((X.astype(float) ** 2).sum())
    near = {"rtol": 0.01, "atol": 1e-12 * energy / len(X)}
    np.testing.assert_allclose(panda.reconstruction_errors(X), errors, **near)
    assert 1 - panda.score(X) == pytest.approx(errors.sum() / energy, rel=0.01)
    if way != "stream":
        np.testing.assert_allclose(panda.reconstruction_err_, errors.mean(), **near)
    saliency = np.einsum("kc,nchw->knhw", panda.appearances_.astype(float), X)
    saliency = saliency.reshape(len(saliency), -1)
    std = saliency.std(axis=1)
    # Where an appearance is rounded at the large channel its own saliency moves.
    some = std > 1e-6 * abs(X).max()
    assert some.sum() > 1
    np.testing.assert_allclose(panda.saliency_std_[some], std[some], rtol=0.01)
    rounding = 1e-6 * abs(X).max()
    np.testing.assert_allclose(
        panda.saliency_mean_, saliency.mean(axis=1), rtol=1e-4, atol=rounding
    )
    refined = panda.refine(X[:9])
    after = errors_by_hand(panda, X[:9], refined)
    found = panda.reconstruction_errors(X[:9], refined)
    np.testing.assert_allclose(found, after, **near)
    assert (after <= 1.001 * errors[:9] + near["atol"]).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make", [with_offset, with_a_constant_channel])
@pytest.mark.parametrize("size", [1e3, 1e4])
def test_single_precision_finds_what_double_precision_does(make, size):
    X = make(size)
    single, double = (fitted("spg", X.astype(t)) for t in (np.float32, np.float64))
    # Rounding may lead to another of the minima, which are a few per cent apart.
    assert single.reconstruction_err_ < 1.05 * double.reconstruction_err_
    assert abs(single.appearances_).max(axis=1).all()  # none is beyond the rank


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_a_stream_that_moves_away_from_zero(size):
    X = BASE + size * (np.arange(40) >= 20)[:, None, None, None]
    single, double = (fitted("stream", X.astype(t)) for t in (np.float32, np.float64))
    assert abs(single.appearances_).max(axis=1).all()
    errors = (p.reconstruction_errors(X[20:]).mean() for p in (single, double))
    assert next(errors) < 1.05 * next(errors)


@pytest.mark.parametrize("size", [0, 1e3, 1e4])
def test_held_out_positions_of_data_far_from_zero(size):
    X = with_a_constant_channel(size).astype(np.float32)
    panda = fitted("stream", X)
    single = 1 - heldout_reconstruction(panda, X)
    double = 1 - heldout_reconstruction(panda, X.astype(np.float64))
    assert single == pytest.approx(double, rel=0.01)


def test_scores_of_extreme_scales():
    X = BASE.astype(np.float32)
    panda = fitted("stream", X)
    for scale in (1e-10, 1e10):
        assert panda.score(X * np.float32(scale)) == pytest.approx(panda.score(X))
    for scale in (1e-25, 1e22):
        for call in (panda.score, panda.reconstruction_errors, panda.fit):
            with pytest.raises(ValueError, match="magnitude in X"):
                call(X * np.float32(scale))
    assert np.isfinite(panda.transform(X * np.float32(1e22))).all()
    with pytest.raises(ValueError, match="magnitude in X"):
        panda.transform(X * np.float32(1e37))


@pytest.mark.parametrize("solver", ["spg", "pgd", "adam"])
@pytest.mark.parametrize("scale", [1e-200, 1e10, 1e200])
@pytest.mark.parametrize("which", ["appearances", "parts"])
def test_starts_of_extreme_scales(solver, scale, which):
    random = np.random.RandomState(0)
    A, P = random.randn(4, 8), random.rand(3, 5, 6)
    init = (A * scale, P) if which == "appearances" else (A, P * scale)
    panda = PartsAppearanceDecomposition(3, 4, solver=solver, init=init, max_iter=3)
    with pytest.raises(ValueError, match=f"magnitude in {which} of init"):
        panda.fit(BASE.astype(np.float32))
