"""Photographs cropped like the face generator's images."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from panda_sklearn.editing import align_face
from panda_sklearn.editing._faces import PLACES


def dots(shape, points, width):
    """A dark photograph with a bright dot of its own colour at each point."""
    rows, columns = (np.arange(n) + 0.5 for n in shape)
    image = np.zeros((*shape, 3))
    for color, (x, y) in enumerate(points):
        distance = (columns - x) ** 2 + ((rows - y) ** 2)[:, None]
        image[..., color] = np.exp(-distance / (2 * width**2))
    return image


def centres(crop):
    """The centre of mass of each colour, as (column, row)."""
    rows, columns = (np.arange(n) + 0.5 for n in crop.shape[:2])
    weights = crop.sum(axis=(0, 1))
    return np.stack(
        [
            (crop.sum(axis=0) * columns[:, None]).sum(axis=0) / weights,
            (crop.sum(axis=1) * rows[:, None]).sum(axis=0) / weights,
        ],
        axis=1,
    )


@given(
    scale=st.floats(0.7, 4.0),
    degrees=st.floats(-60, 60),
    size=st.sampled_from([32, 64, 100]),
    swap=st.booleans(),
)
def test_landmarks_lie_where_the_generator_has_them(scale, degrees, size, swap):
    turn = scale * np.exp(1j * np.deg2rad(degrees))
    at = np.array(PLACES) @ (1, 1j)
    points = turn * (at - at.mean()) + 200 + 190j
    points = np.stack([points.real, points.imag], axis=1)
    image = dots((400, 420), points, width=3 * scale)
    landmarks = points[[1, 0, 2]] if swap else points
    crop = align_face(image, landmarks, size=size)
    assert crop.shape == (size, size, 3)
    # Dots near the edge of the crop lose a little.
    np.testing.assert_allclose(
        centres(crop), np.array(PLACES) * size / 64, atol=0.05 * size / 64
    )


def test_points_that_no_similarity_matches_are_fitted_by_least_squares():
    points = np.array([[80.0, 80], [120, 80], [104, 118]])
    crop = align_face(dots((250, 250), points, 4), points)
    away = centres(crop) - np.array(PLACES)
    np.testing.assert_allclose(away.mean(axis=0), 0, atol=0.05)
    assert np.abs(away).max() < 4


def test_an_aligned_image_stays_as_it_is():
    rows, columns = np.mgrid[:64, :64]
    image = np.sin(rows / 9)[..., None] * np.cos(columns / 7)[..., None]
    crop = align_face(image, PLACES)
    np.testing.assert_allclose(crop, image, atol=0.02)


def test_no_pixel_of_a_large_photograph_is_left_out():
    """A single bright column counts with its mean, wherever it is."""
    for column in (637, 640, 643, 651):
        image = np.zeros((1280, 1280), dtype=np.float32)
        image[:, column] = 255
        crop = align_face(image, 20 * np.array(PLACES))
        np.testing.assert_allclose(crop.sum(axis=1), 255 / 20, rtol=0.05)


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_values_stay_among_those_of_the_photograph(kind):
    image = np.where(np.random.default_rng(0).random((90, 90)) < 0.5, -500, 300)
    crop = align_face(image.astype(kind), np.array(PLACES) * 1.2 + 4)
    assert crop.dtype == kind and crop.min() >= -500 and crop.max() <= 300
    assert crop.min() < -300


@pytest.mark.parametrize("scale", [1.1, 1.37, 2.3, 3.9])
def test_a_crop_that_fits_exactly_is_not_beyond(scale):
    side = round(64 * scale, 6)
    image = np.zeros((int(np.ceil(side)),) * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align_face(image, np.array(PLACES) * len(image) / 64)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16", "F"])
def test_modes_of_pil(mode):
    plain = 255 * dots((100, 120), 1.4 * np.array(PLACES) + 5, 4)[..., 0]
    picture = Image.fromarray(plain.astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray((plain * 100).astype(np.uint16))
    elif mode != "L":
        picture = picture.convert(mode if mode != "P" else "RGB").convert(mode)
    crop = align_face(picture, 1.4 * np.array(PLACES) + 5)
    assert crop.ndim == (2 if mode in ("L", "I;16", "F") else 3)
    assert crop.max() > (20_000 if mode == "I;16" else 200)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "tensor", "PIL"])
def test_the_crop_is_of_the_kind_of_the_photograph(kind):
    landmarks = 1.4 * np.array(PLACES) + 5
    plain = (255 * dots((100, 120), landmarks, 4)).round()
    expected = align_face(plain, landmarks)
    if kind == "tensor":
        image = torch.from_numpy(plain).to(torch.uint8)
    elif kind == "PIL":
        image = Image.fromarray(plain.astype(np.uint8))
    else:
        image = plain.astype(kind)
    crop = align_face(image, landmarks)
    if kind == "tensor":
        assert crop.dtype == torch.uint8
        crop = crop.numpy()
    elif kind != "PIL":
        assert crop.dtype == kind
    assert np.abs(crop.astype(float) - expected).max() <= 0.51


def test_a_crop_beyond_the_photograph_is_warned_about():
    image = np.full((60, 60), 7.0)
    with pytest.warns(UserWarning, match="beyond the photograph"):
        crop = align_face(image, np.array(PLACES) * 1.2)
    np.testing.assert_allclose(crop, 7.0, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align_face(np.zeros((64, 64)), PLACES)


@pytest.mark.parametrize(
    ("image", "landmarks", "words"),
    [
        (np.zeros((3, 80, 80)), PLACES, "moveaxis"),
        (np.zeros(80), PLACES, "image must be"),
        (np.zeros((80, 80), dtype=bool), PLACES, "booleans"),
        (np.full((80, 80), np.nan), PLACES, "image"),
        (np.zeros((80, 80)), PLACES[:2], "three points"),
        (np.zeros((80, 80)), [(5, 5), (5, 5), (9, 9)], "apart"),
        (np.zeros((80, 80)), [(5, 5), (15, 5), (10, 5)], "apart"),
        (np.zeros((80, 80)), [(5, 5), (15, np.inf), (10, 5)], "landmarks"),
    ],
)
def test_bad_input(image, landmarks, words):
    with pytest.raises(ValueError, match=words):
        align_face(image, landmarks)
