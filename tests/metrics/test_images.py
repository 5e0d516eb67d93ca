"""Measures of edited images."""

import builtins

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, ndimage
from torch import nn

from panda_sklearn.metrics import (
    frechet_distance,
    outside_psnr,
    outside_ssim,
    roi_ratio,
    sliced_wasserstein_distance,
)

BLACK, WHITE = np.zeros((2, 3, 4, 4)), np.ones((2, 3, 4, 4))
DARK, LIGHT = np.zeros((2, 3, 8, 8)), np.ones((2, 3, 8, 8))


def rng(seed=0):
    return np.random.default_rng(seed)


def literal_roi_ratio(mask, images, edited):
    """Equation (7), one sample at a time."""
    total = 0
    for before, after in zip(images, edited, strict=True):
        M = np.repeat(mask[None], before.shape[0], axis=0)
        total += np.linalg.norm((1 - M) * (before - after)) / np.linalg.norm(
            M * (before - after)
        )
    return total / len(images)


@given(st.integers(0, 2**31), st.sampled_from([(6,), (3, 4), (2, 3, 4)]))
def test_roi_ratio_is_equation_7(seed, spatial):
    random = rng(seed)
    images, edited = random.normal(size=(2, 5, 3, *spatial))
    mask = random.uniform(size=spatial)
    expected = literal_roi_ratio(mask, images, edited)
    assert roi_ratio(mask, images, edited) == pytest.approx(expected, rel=1e-12)
    tensors = [torch.from_numpy(x) for x in (mask, images, edited)]
    assert roi_ratio(*tensors) == pytest.approx(expected, rel=1e-12)
    each = roi_ratio(mask, images, edited, average=False)
    assert each.mean() == pytest.approx(expected, rel=1e-12)


def test_known_values():
    """Changes a inside and b outside: b / a times the root of the sizes' ratio."""
    images = rng().normal(size=(4, 3, 8, 8))
    mask = np.zeros((8, 8), dtype=bool)
    mask[:2] = True  # a quarter
    change = np.where(mask, 2.0, 0.5)
    expected = 0.5 / 2.0 * np.sqrt(48 / 16)
    assert roi_ratio(mask, images, images + change) == pytest.approx(expected)
    assert roi_ratio(mask, images, images + mask) == 0.0
    # Ratios are averaged, not changes.
    edited = images + change
    edited[0] = images[0] + 10 * mask
    assert roi_ratio(mask, images, edited) == pytest.approx(0.75 * expected)


def test_masks_of_single_samples():
    images = np.zeros((2, 1, 4, 4))
    masks = np.zeros((2, 4, 4))
    masks[0, :2], masks[1, 2:] = 1, 1
    edited = images.copy()
    edited[:, :, :2] = 3.0
    assert roi_ratio(masks[0], images, edited) == 0
    each = roi_ratio(masks, images, edited, average=False)
    np.testing.assert_array_equal(each, [0, np.inf])


def test_when_nothing_changes_inside():
    images = np.zeros((3, 3, 4, 4))
    mask = np.eye(4)
    edited = images.copy()
    edited[0] += 1 - mask
    edited[1] += 2 * mask
    np.testing.assert_array_equal(
        roi_ratio(mask, images, edited, average=False), [np.inf, 0, np.nan]
    )
    with pytest.warns(UserWarning, match="1 of 3 images do not change at all"):
        assert roi_ratio(mask, images, edited) == np.inf
    with pytest.warns(UserWarning, match="3 of 3 images"):
        assert np.isnan(roi_ratio(mask, images, images))


def test_many_images_are_measured_in_batches(monkeypatch):
    images, edited = rng().normal(size=(2, 7, 3, 4, 4))
    masks = rng(1).uniform(size=(7, 4, 4))
    expected = roi_ratio(masks, images, edited)
    monkeypatch.setattr("panda_sklearn.metrics._images.BATCH_SIZE", 3)
    assert roi_ratio(masks, images, edited) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "mask, images, edited, match",
    [
        (
            np.ones((4, 5)),
            np.zeros((2, 3, 4, 4)),
            np.ones((2, 3, 4, 4)),
            "mask must be",
        ),
        (
            np.ones((3, 4, 4)),
            np.zeros((2, 3, 4, 4)),
            np.ones((2, 3, 4, 4)),
            "2 samples",
        ),
        (
            np.ones((4, 4)),
            np.zeros((2, 3, 4, 4)),
            np.ones((1, 3, 4, 4)),
            "of the same shape",
        ),
        (np.full((4, 4), 2), np.zeros((2, 3, 4, 4)), np.ones((2, 3, 4, 4)), "0 to 1"),
        (np.ones((4, 4)), np.full((2, 3, 4, 4), np.nan), np.ones((2, 3, 4, 4)), "NaN"),
    ],
)
def test_bad_input(mask, images, edited, match):
    with pytest.raises(ValueError, match=match):
        roi_ratio(mask, images, edited)


class TestSlicedWasserstein:
    def test_one_dimension_is_the_wasserstein_distance(self):
        X, Y = rng().normal(size=(2, 50, 1))
        expected = np.sqrt(np.mean((np.sort(X[:, 0]) - np.sort(Y[:, 0])) ** 2))
        found = sliced_wasserstein_distance(X, Y, n_projections=3, random_state=0)
        assert found == pytest.approx(expected)

    def test_a_shift(self):
        """Along a unit direction a shift by v is one by its component: |v|^2 / d."""
        X = rng().normal(size=(100, 3, 2, 2))
        v = rng(1).normal(size=(3, 2, 2))
        found = sliced_wasserstein_distance(X, X + v, n_projections=20_000)
        assert found == pytest.approx(np.linalg.norm(v) / np.sqrt(12), rel=0.03)
        assert sliced_wasserstein_distance(X, X[::-1]) == pytest.approx(0, abs=1e-9)

    def test_kinds_and_seeds(self):
        X, Y = rng().normal(size=(2, 30, 4, 4)).astype(np.float32)
        found = sliced_wasserstein_distance(X, Y[:20], random_state=3)
        tensors = torch.from_numpy(X), torch.from_numpy(Y[:20])
        before = torch.get_rng_state()
        again = sliced_wasserstein_distance(*tensors, random_state=3)
        assert found == pytest.approx(again)
        assert torch.equal(before, torch.get_rng_state())
        assert found != sliced_wasserstein_distance(X, Y[:20], random_state=4)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="of the same shape"):
            sliced_wasserstein_distance(np.ones((3, 4)), np.ones((3, 5)))
        with pytest.raises(ValueError, match="n_projections must be at least 1"):
            sliced_wasserstein_distance(np.eye(3), np.eye(3), n_projections=0)


class TestOutside:
    def test_psnr_is_that_of_the_weighted_change(self):
        random = rng(3)
        images, edited = random.uniform(-1.2, 1.2, size=(2, 5, 3, 6, 7))
        mask = random.uniform(0, 1, size=(6, 7))
        squares = (np.clip(images, -1, 1) - np.clip(edited, -1, 1)) ** 2
        for n, found in enumerate(outside_psnr(mask, images, edited, average=False)):
            error = ((1 - mask) * squares[n]).sum() / (3 * (1 - mask).sum())
            assert found == pytest.approx(10 * np.log10(4 / error))
        assert outside_psnr(mask, images, images) == np.inf

    def test_ssim_is_that_of_scikit_image_away_from_the_mask(self):
        """The mean of a local map, by Wang et al.'s formula around one pixel."""
        random = rng(4)
        images = ndimage.gaussian_filter(random.normal(size=(2, 1, 24, 24)), 1)
        edited = images + 0.2 * random.normal(size=images.shape)
        mask = np.ones((24, 24))
        mask[12, 10] = 0
        found = outside_ssim(mask, images, edited, average=False)
        x, y = (np.clip(z, -1, 1) for z in (images, edited))
        for n in range(2):
            blur = [
                ndimage.gaussian_filter(z[n, 0], 1.5, truncate=5 / 1.5)
                for z in (x, y, x * x, y * y, x * y)
            ]
            a, b, aa, bb, ab = (z[12, 10] for z in blur)
            c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
            expected = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
            expected /= (a * a + b * b + c1) * (aa - a * a + bb - b * b + c2)
            assert found[n] == pytest.approx(expected, rel=1e-4)

    def test_change_inside_alone(self):
        images = rng(5).uniform(-1, 1, size=(2, 3, 32, 32))
        edited, mask = images.copy(), np.zeros((32, 32), dtype=bool)
        mask[:8] = True
        edited[:, :, :2] = 0  # farther from the rest than the windows reach
        assert outside_psnr(mask, images, edited) == np.inf
        assert outside_ssim(mask, images, edited) == pytest.approx(1)
        assert outside_ssim(~mask, images, edited) < 0.95

    @pytest.mark.parametrize("measure", [outside_psnr, outside_ssim])
    def test_bad_input(self, measure):
        with pytest.raises(ValueError, match="nothing is outside"):
            measure(np.ones((8, 8)), DARK, LIGHT)
        with pytest.raises(ValueError, match="value_range must be two numbers"):
            measure(np.eye(8), DARK, LIGHT, value_range=(1, 1))

    @pytest.mark.parametrize("spatial", [(20,), (5, 20), (8, 8, 8, 8)])
    def test_images_that_are_too_small_for_ssim(self, spatial):
        images = rng().normal(size=(2, 1, *spatial))
        with pytest.raises(ValueError, match="SSIM needs images of two or three"):
            outside_ssim(np.full(spatial, 0.5), images, images)


class TestFrechet:
    def test_its_formula(self):
        X, Y = (
            rng().normal(size=(60, 4)),
            2 + rng(1).normal(size=(50, 4)) @ np.diag([1, 2, 3, 4]),
        )
        one, two = np.cov(X.T), np.cov(Y.T)
        root = linalg.sqrtm(one @ two).real
        shift = X.mean(axis=0) - Y.mean(axis=0)
        expected = shift @ shift + np.trace(one + two - 2 * root)
        assert frechet_distance(X, Y) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(torch.from_numpy(X), torch.from_numpy(Y)) == (
            pytest.approx(expected, rel=1e-6)
        )
        assert frechet_distance(X, X) == pytest.approx(0, abs=1e-6)

    def test_features_of_a_network(self):
        network = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ).requires_grad_(False)
        X, Y = torch.from_numpy(rng().normal(size=(2, 40, 3, 6, 6))).float()
        before = {name: t.clone() for name, t in network.state_dict().items()}
        found = frechet_distance(
            X.numpy(), Y.numpy() + 1, network=network, batch_size=7
        )
        assert network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name])
        network.eval()
        expected = frechet_distance(network(X), network(Y + 1))
        assert found == pytest.approx(expected, rel=1e-5)
        by_call = frechet_distance(X, Y + 1, network=lambda x: network(x))
        assert by_call == pytest.approx(expected, rel=1e-5)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least two samples each"):
            frechet_distance(np.ones((1, 3)), np.ones((4, 3)))
        with pytest.raises(ValueError, match="Pass a network"):
            frechet_distance(np.ones((4, 3, 2)), np.ones((4, 3, 2)))
        with pytest.raises(TypeError, match="network must return a tensor"):
            frechet_distance(np.eye(3), np.eye(3), network=lambda x: None)


def test_libraries_that_are_missing(monkeypatch):
    real = builtins.__import__

    def missing(name, *args):
        if name.startswith(("ot", "torchmetrics")):
            raise ImportError(name)
        return real(name, *args)

    import importlib

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install POT"):
        sliced_wasserstein_distance(np.eye(3), np.eye(3))
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        frechet_distance(np.eye(3), np.eye(3))
    for measure in (outside_psnr, outside_ssim):
        with pytest.raises(ImportError, match="pip install torchmetrics"):
            measure(np.eye(8), DARK, LIGHT)
