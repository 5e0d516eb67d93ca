"""Photographs of faces, cropped like the face generator's images."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from panda_sklearn.utils.arrays import ArrayLike, as_tensor, promoted
from panda_sklearn.utils.batches import users_level
from panda_sklearn.utils.validation import (
    as_numeric,
    check_count,
    check_finite,
    check_fits,
    shown,
)

__all__ = ["PLACES", "align_face"]

# The centres of both eyes and of the mouth in the generator's images, as columns and
# rows of 64, from the upper left corner.
PLACES = ((22.0, 27.0), (42.0, 27.0), (32.0, 49.0))
SIDE = 64

LANDMARKS = "three points (column, row): both eyes and the mouth"
IMAGE = "an image of shape (height, width) or (height, width, n_colors)"

# Each pixel is the mean of so many points in each direction.
FINER = 4


def align_face(image: Any, landmarks: ArrayLike, *, size: int = SIDE) -> ArrayLike:
    r"""Crop a photograph like the face generator's images.

    Rotates, scales and shifts it so that eyes and mouth lie where they do in the images
    of :func:`~panda_sklearn.datasets.load_face_generator`, in the least-squares sense.
    Without this, :func:`invert` finds another person.

    Parameters
    ----------
    image : array of shape (height, width[, n_colors]) or PIL image
        The photograph, as bytes or floats.

    landmarks : array-like of shape (3, 2)
        The centres of both eyes, in any order, and of the mouth, as columns and rows
        of pixels from the upper left corner of the photograph. A face-mesh network
        finds them; or read them off by eye.

    size : int, default=64
        Width and height of the crop, in pixels.

    Returns
    -------
    crop : array of shape (size, size[, n_colors])
        Of the kind and type of ``image``; a PIL image becomes an array. To turn a crop
        of bytes into an image like the generator's, from -1 to 1 with the colours
        first, use ``np.moveaxis(crop, -1, 0) / 127.5 - 1``.

    Raises
    ------
    TypeError, ValueError
        If the image or the landmarks are something else, or the landmarks coincide.

    Warns
    -----
    UserWarning
        If the crop reaches beyond the photograph, whose edge is repeated there.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.editing import align_face
    >>> photograph = np.zeros((250, 250, 3), dtype=np.uint8)
    >>> align_face(photograph, [(100, 110), (150, 112), (124, 170)]).shape
    (64, 64, 3)
    """
    size = check_count("size", size)
    pixels = _check_image(image)
    turn, shift = _similarity(_check_landmarks(landmarks), size)
    height, width = pixels.shape[:2]
    corners = turn * size * np.array([0, 1, 1j, 1 + 1j]) + shift
    edge = 1e-6 * max(width, height)  # what rounding may add
    outside = (corners.real < -edge) | (corners.real > width + edge)
    outside |= (corners.imag < -edge) | (corners.imag > height + edge)
    if outside.any():
        warnings.warn(
            "The crop reaches beyond the photograph, whose edge is repeated there. Use "
            "a photograph with more around the face.",
            UserWarning,
            stacklevel=users_level(),
        )
    values = promoted(as_tensor(pixels, keep_type=True))
    whole = values.reshape(height, width, -1).permute(2, 0, 1)[None]
    crop = _resampled(whole, turn, shift, size).clamp(*torch.aminmax(whole))
    crop = crop[0].permute(1, 2, 0)
    crop = crop.reshape(size, size, *pixels.shape[2:])
    return _typed(crop, pixels)


def _check_image(image: Any) -> Any:
    """Return the image as an array with axes of rows, columns and maybe colours."""
    if hasattr(image, "getbands"):  # PIL's
        if image.mode in ("P", "PA", "LA", "RGBA", "CMYK", "YCbCr", "1"):
            image = image.convert("RGB")
        image = np.asarray(image)
    pixels = as_numeric(image, "image", IMAGE)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"image must be {IMAGE}, got {shown(pixels)}.")
    if pixels.ndim == 3 and pixels.shape[2] > 4 >= pixels.shape[0]:
        raise ValueError(
            f"image must be {IMAGE}, got shape {tuple(pixels.shape)}: its colours come "
            "first. Move them: numpy.moveaxis(image, 0, -1)."
        )
    if pixels.dtype in (bool, torch.bool):
        raise ValueError("image must be of numbers, got booleans.")
    check_finite(pixels, "image")
    check_fits(pixels, "image", torch.float32)
    return pixels


def _check_landmarks(landmarks: Any) -> np.ndarray:
    """The points as complex numbers: left eye, right eye, mouth, as seen."""
    points = as_numeric(landmarks, "landmarks", LANDMARKS)
    if tuple(points.shape) != (3, 2):
        raise ValueError(f"landmarks must be {LANDMARKS}, got {shown(points)}.")
    check_finite(points, "landmarks")
    rows = as_tensor(points).double().cpu().numpy()
    one, other, mouth = rows[:, 0] + 1j * rows[:, 1]
    across, down = other - one, mouth - (one + other) / 2
    if abs(across) < 1 or abs(down) < 1:
        raise ValueError(
            "landmarks must be at least a pixel apart: both eyes, and the mouth from "
            f"the point between them. Got {rows.tolist()}."
        )
    # Rows count downwards: the way from the left eye to the right one turns right, by
    # less than half a circle, to go down to the mouth.
    if (across.conjugate() * down).imag < 0:
        one, other = other, one
    return np.array([one, other, mouth])


def _similarity(points: np.ndarray, size: int) -> tuple[complex, complex]:
    """Turn and shift of z -> turn z + shift, from the crop to the photograph."""
    places = np.array(PLACES) @ (1, 1j) * (size / SIDE)
    away = places - places.mean()
    turn = (away.conj() @ (points - points.mean())) / (away.conj() @ away)
    return complex(turn), complex(points.mean() - turn * places.mean())


def _resampled(whole: Tensor, turn: complex, shift: complex, size: int) -> Tensor:
    """The crop (1, n_colors, size, size) of a photograph (1, n_colors, H, W)."""
    # A photograph of many more pixels is reduced first, so that no pixel is left out.
    factor = max(1, int(abs(turn) / 2 + 1e-6))  # 2.9999999 is 3
    factor = min(factor, *whole.shape[2:])
    if factor > 1:
        whole = functional.avg_pool2d(whole, factor, ceil_mode=True)
    along = torch.arange(size * FINER, dtype=torch.float64, device="cpu") + 0.5
    along = along / FINER
    down, across = torch.meshgrid(along, along, indexing="ij")
    columns = (turn.real * across - turn.imag * down + shift.real) / factor
    rows = (turn.imag * across + turn.real * down + shift.imag) / factor
    grid = torch.stack(
        [2 * columns / whole.shape[3] - 1, 2 * rows / whole.shape[2] - 1], dim=-1
    )
    fine = functional.grid_sample(
        whole,
        grid[None].to(whole),
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return functional.avg_pool2d(fine, FINER)


def _typed(crop: Tensor, like: ArrayLike) -> ArrayLike:
    """The crop in the type of the photograph; integers rounded."""
    if isinstance(like, Tensor):
        crop = crop if like.is_floating_point() else crop.round()
        return crop.to(like.dtype)
    crop = crop if like.dtype.kind == "f" else crop.round()
    return crop.cpu().numpy().astype(like.dtype)
