"""Saliency, localisation and refinement."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from tests.allocations import LargestResult
from tests.nearness import assert_thresholded


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(0).normal(size=(30, 6, 5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def panda(maps):
    return PartsAppearanceDecomposition(3, 4, max_iter=20, tol=0, random_state=0).fit(
        maps
    )


@pytest.mark.parametrize("solver", ["spg", "pgd", "adam"])
@pytest.mark.parametrize("init", ["hosvd", "random"])
@pytest.mark.parametrize("n_appearances", [3, 6])
def test_covariance_of_the_saliencies(maps, solver, init, n_appearances):
    shifted = maps + 3
    panda = PartsAppearanceDecomposition(
        2, n_appearances, solver=solver, init=init, max_iter=3, tol=0, random_state=0
    ).fit(shifted)
    saliency = panda.saliency(shifted).swapaxes(0, 1).reshape(n_appearances, -1)
    expected = np.cov(saliency, bias=True)
    np.testing.assert_allclose(panda.saliency_covariance_, expected, atol=2e-4)
    np.testing.assert_allclose(panda.saliency_std_, saliency.std(axis=1), rtol=1e-3)
    assert panda.saliency_covariance_.dtype == maps.dtype


def test_covariance_of_a_stream(maps):
    panda = PartsAppearanceDecomposition(2, 3, random_state=0)
    for batch in (maps[:20], maps[20:25], maps[25:]):
        panda.partial_fit(batch + 1)
    saliency = panda.saliency(maps + 1).swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(
        panda.saliency_covariance_, np.cov(saliency, bias=True), atol=2e-4
    )


def test_saliency_at_other_sizes(panda, maps):
    own = panda.saliency(maps)
    big = panda.saliency(maps, size=(20, 16))
    expected = F.interpolate(
        torch.from_numpy(own), size=(20, 16), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(big, expected, atol=1e-5)
    np.testing.assert_allclose(panda.saliency(maps, size=(5, 4)), own, atol=1e-5)
    small = panda.saliency(maps, size=(1, 2))
    halves = own[..., :2].mean((2, 3)), own[..., 2:].mean((2, 3))
    np.testing.assert_allclose(small[:, :, 0], np.stack(halves, axis=2), atol=1e-5)


@pytest.mark.parametrize("spatial", [(9,), (3, 4), (2, 3, 2)])
def test_any_number_of_axes(spatial):
    X = np.random.default_rng(1).normal(size=(7, 4, *spatial))
    panda = PartsAppearanceDecomposition(2, 3, max_iter=3, tol=0).fit(X)
    size = tuple(2 * n for n in spatial)
    assert panda.saliency(X, size=size).shape == (7, 3, *size)
    assert panda.localize(X, 0, size=size).shape == (7, *size)
    assert panda.localize(X, 0, size=6).shape == (7, *[6] * len(spatial))


def test_thresholds(panda, maps):
    own = panda.saliency(maps)[:, 1]
    assert_thresholded(panda.localize(maps, 1, 0.5), own, 0.5)
    top = panda.localize(maps, 1, ("quantile", 0.75))
    assert (top.sum(axis=(1, 2)) == 5).all()  # a quarter of 20 positions each
    for sample, mask in zip(own, top, strict=True):
        assert sample[mask].min() > sample[~mask].max()
    assert panda.localize(maps, 1, ("quantile", 0)).all()
    assert (panda.localize(maps, 1, ("quantile", 1.0)).sum(axis=(1, 2)) == 1).all()


def test_before_and_after_upsampling(panda, maps):
    mean = panda.saliency_mean_[2]
    own = panda.saliency(maps)[:, 2]
    blocks = panda.localize(maps, 2, size=(10, 8), upsample_first=False)
    assert_thresholded(blocks, own.repeat(2, axis=1).repeat(2, axis=2), mean)
    smooth = panda.localize(maps, 2, size=(10, 8))
    assert_thresholded(smooth, panda.saliency(maps, size=(10, 8))[:, 2], mean)
    assert (smooth != blocks).any()


def test_masks_of_many_large_samples(panda, maps, monkeypatch):
    saliency = panda.saliency(maps, size=(40, 30))[:, 2]
    monkeypatch.setattr("panda_sklearn.utils.thresholds.BATCH_ELEMENTS", 3000)
    found = panda.localize(maps, 2, size=(40, 30))
    assert_thresholded(found, saliency, panda.saliency_mean_[2])


@pytest.mark.parametrize(
    "threshold",
    ["median", np.nan, np.inf, None, True, ("quantile", 1.5), ("quantile",), (1, 2)],
)
def test_bad_thresholds(panda, maps, threshold):
    with pytest.raises(ValueError, match="threshold must be 'mean', a finite number"):
        panda.localize(maps, 0, threshold)


@pytest.mark.parametrize(
    "size, kind",
    [((4,), ValueError), (0, ValueError), ("8", TypeError), ((4.0, 4), TypeError)],
)
def test_bad_sizes(panda, maps, size, kind):
    with pytest.raises(kind, match="size must be"):
        panda.localize(maps, 0, size=size)
    with pytest.raises(kind, match="size must be"):
        panda.saliency(maps, size=size)


def test_planted_masks_are_found():
    """Where an appearance was planted it is localized with IoU > 0.8."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(16, 4)))[0].T
    truth = np.zeros((60, 12, 12), dtype=bool)
    for mask in truth:  # an object that is somewhere else in each sample
        top, left = rng.integers(0, 7, 2)
        mask[top : top + 5, left : left + 5] = True
    X = rng.normal(scale=0.3, size=(60, 16, 12, 12))
    X += 4 * directions[0][:, None, None] * truth[:, None]
    X += 2 * directions[1][:, None, None] * (~truth)[:, None]
    panda = PartsAppearanceDecomposition(6, 4, random_state=0).fit(X[:40])
    cosines = panda.appearances_ @ directions[0]
    j = int(abs(cosines).argmax())
    found = panda.localize(X[40:], j)
    found = found if cosines[j] > 0 else ~found
    union = (found | truth[40:]).sum(axis=(1, 2))
    overlap = (found & truth[40:]).sum(axis=(1, 2)) / union
    assert overlap.min() > 0.8


def test_refinement_lowers_each_samples_error(panda, maps):
    parts = panda.refine(maps)
    before = panda.reconstruction_errors(maps)
    after = panda.reconstruction_errors(maps, parts)
    assert (after <= before * (1 + 1e-6)).all() and after.sum() < 0.95 * before.sum()
    assert before.shape == (30,) and before.dtype == np.float64


def test_errors_are_those_of_the_reconstruction(panda, maps):
    whole = panda.inverse_transform(panda.transform(maps))
    expected = ((maps - whole) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(panda.reconstruction_errors(maps), expected, rtol=1e-5)
    parts = panda.refine(maps).reshape(30, 3, -1)
    Z, A = maps.reshape(30, 6, -1), panda.appearances_.T
    expected = [
        np.square(z - A @ (A.T @ z @ p.T) @ p).sum()
        for z, p in zip(Z, parts, strict=True)
    ]
    errors = panda.reconstruction_errors(maps, parts.reshape(30, 3, 5, 4))
    np.testing.assert_allclose(errors, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"as from refine, got \(30, 3, 20\)"):
        panda.reconstruction_errors(maps, parts)
    with pytest.raises(ValueError, match="the 30 samples of X, got 2"):
        panda.reconstruction_errors(maps, panda.refine(maps[:2]))


def test_many_samples_are_refined_some_at_a_time(capsys):
    X, *_ = make_parts_appearances(40, 3, 4, spatial_shape=(6, 6), random_state=0)
    panda = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    expected = panda.refine(X, max_iter=5)  # more would magnify roundings
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["panda_sklearn.core.objective"]
        patch.setattr(module, "BATCH_ELEMENTS", 4 * X[0].size)
        with LargestResult() as seen:
            found = panda.refine(X, max_iter=5)
        assert seen.numel <= max(X.size, 4 * 36 * 36)
        panda.verbose = 1
        panda.refine(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert "40/40" in capsys.readouterr().err
