"""Pictures and maps as arrays that matplotlib draws.

Floor 4: numpy, torch; matplotlib inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import check_is_fitted


def as_pictures(images: ArrayLike, value_range: tuple[float, float]) -> np.ndarray:
    """Images (N, 1 or 3, H, W) -> pictures (N, H, W, 3) with values in [0, 1].

    Raises
    ------
    ValueError
        If the images are of another shape.
    """
    pictures = as_array(images)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        raise ValueError(
            "images must be of shape (n_samples, 1 or 3, height, width), got "
            f"{pictures.shape}."
        )
    low, high = value_range
    if high <= 1 < pictures.max() / 10:
        raise ValueError(
            f"The images have values up to {pictures.max():g}, but value_range is "
            f"{tuple(value_range)}. For 8-bit images pass value_range=(0, 255)."
        )
    pictures = np.clip((pictures - low) / (high - low), 0, 1)
    return np.moveaxis(np.broadcast_to(pictures, _with_three(pictures)), 1, -1)


def as_picture_of(images: ArrayLike, value_range: tuple[float, float]) -> np.ndarray:
    """The picture (H, W, 3) of the one image in images (1, 1 or 3, H, W)."""
    return as_pictures(images, value_range)[0]


def _with_three(pictures: np.ndarray) -> tuple[int, ...]:
    n, _, height, width = pictures.shape
    return n, 3, height, width


def check_spatial(estimator: Any) -> None:
    """Raise unless a decomposition is fitted, on maps with two spatial axes."""
    check_is_fitted(estimator)
    if len(estimator.map_shape_) != 3:
        raise ValueError(
            "Displays need maps with two spatial axes; the decomposition was fitted on "
            f"maps of shape {estimator.map_shape_} (channels first)."
        )


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (..., h, w) -> (..., H, W)."""
    flat = torch.from_numpy(np.ascontiguousarray(maps)).reshape(-1, 1, *maps.shape[-2:])
    big = resize(flat, size)
    return big.reshape(*maps.shape[:-2], *size).numpy()


def as_array(array: ArrayLike) -> np.ndarray:
    """A float array on the host."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().double().numpy()
    return np.asarray(array, dtype=float)


def new_axes(n_rows: int, n_columns: int, axes: Any) -> tuple[Any, np.ndarray]:
    """A figure with a grid of bare axes; or the given axes, checked."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib. Install it with: pip install matplotlib"
        ) from error
    if axes is None:
        # Each cell is 1.1 inches wide, with room above for titles.
        size = 1.1 * n_columns + 0.6, 1.1 * n_rows + 0.5
        _, axes = plt.subplots(
            n_rows, n_columns, squeeze=False, figsize=size, layout="constrained"
        )
    axes = np.asarray(axes, dtype=object)
    if axes.size != n_rows * n_columns:
        raise ValueError(
            f"axes must hold {n_rows} x {n_columns} axes, got {axes.size}."
        )
    axes = axes.reshape(n_rows, n_columns)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(False)
    return axes.flat[0].figure, axes


def label_columns(axes: np.ndarray, labels: Iterable[str]) -> None:
    """Titles above the first row."""
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label, fontsize="small")


def label_rows(axes: np.ndarray, labels: Iterable[str]) -> None:
    """Labels left of the first column."""
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label, fontsize="small")


def unit_scaled(parts: np.ndarray) -> np.ndarray:
    """Parts (..., h, w), each scaled to reach from 0 to 1; constant ones are 0."""
    low = parts.min(axis=(-2, -1), keepdims=True)
    high = parts.max(axis=(-2, -1), keepdims=True)
    return (parts - low) / np.where(high > low, high - low, 1)
