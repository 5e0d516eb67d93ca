"""Pictures and maps as arrays that matplotlib draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import (
    check_items,
    check_number,
    check_value_range,
    check_values,
    shown,
)

# Shape of images, and how many colours they may have.
IMAGES = "(n_samples, 1 or 3, height, width)"
COLORS = (1, 3)


def check_images(images: ArrayLike, name: str = "images") -> np.ndarray:
    """Images (N, 1 or 3, H, W) as an array; raises if they are something else."""
    array = as_array(check_values(images, name, IMAGES))
    if array.ndim != 4 or array.shape[1] not in COLORS:
        raise ValueError(f"{name} must be of shape {IMAGES}, got {array.shape}.")
    return array


def as_pictures(
    images: ArrayLike, value_range: tuple[float, float], name: str = "images"
) -> np.ndarray:
    """Images (N, 1 or 3, H, W) -> pictures (N, H, W, 3) with values in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If the images, which the user knows by ``name``, are something else or of
        another shape, or ``value_range`` does not fit.
    """
    low, high = value_range
    pictures = check_images(images, name)
    if high <= 1 < pictures.max() / 10:
        raise ValueError(
            f"{name} has values up to {pictures.max():g}, but value_range is "
            f"{(low, high)}. For 8-bit images pass value_range=(0, 255)."
        )
    pictures = np.clip((pictures - low) / (high - low), 0, 1)
    n, _, height, width = pictures.shape
    return np.moveaxis(np.broadcast_to(pictures, (n, 3, height, width)), 1, -1)


def range_of(images: ArrayLike, value_range: Any) -> tuple[float, float]:
    """Values of black and white: those of the user, or found by the images.

    Warns
    -----
    UserWarning
        If ``value_range`` is ``None`` and all values of the images are in [0, 1].
    """
    if value_range is not None:
        return check_value_range(value_range)
    values = check_images(images)
    if values.min() < 0 or values.max() > 1:
        return -1, 1
    warnings.warn(
        "All values of the images are in [0, 1], so they are drawn with "
        "value_range=(0, 1). Give value_range to say what black and white are.",
        UserWarning,
        stacklevel=3,
    )
    return 0, 1


def check_as_many(pictures: np.ndarray, X: Any) -> None:
    """Raise ValueError unless there is an image for each sample."""
    if len(pictures) != len(X):
        raise ValueError(
            f"images must be one for each sample of X: expected {len(X)}, got "
            f"{len(pictures)}."
        )


def check_axes(
    axes: Any, n_rows: int, n_columns: int, name: str = "axes"
) -> np.ndarray | None:
    """Axes to draw on as an array (n_rows, n_columns), if any are given."""
    axes_class = _matplotlib().axes.Axes
    if axes is None:
        return None
    wanted = f"{name} must hold {n_rows} x {n_columns} axes of matplotlib, got"
    if isinstance(axes, Tensor):
        raise TypeError(f"{wanted} {shown(axes)}.")
    found = np.asarray(axes, dtype=object)
    if found.size != n_rows * n_columns:
        raise ValueError(f"{wanted} {found.size}.")
    for ax in found.flat:
        if not isinstance(ax, axes_class):
            raise TypeError(f"{wanted} {shown(ax)}.")
    return found.reshape(n_rows, n_columns)


def check_cmap(cmap: Any) -> None:
    """Raise unless it is a colour map of matplotlib, or the name of one."""
    matplotlib = _matplotlib()
    if isinstance(cmap, matplotlib.colors.Colormap):
        return
    if not isinstance(cmap, str):
        raise TypeError(
            f"cmap must be the name of a colour map of matplotlib, got {shown(cmap)}."
        )
    if cmap not in matplotlib.colormaps:
        raise ValueError(
            f"cmap={cmap!r} is not a colour map of matplotlib: see "
            "matplotlib.colormaps for their names."
        )


def check_drawn(values: Any, name: str, *axes: int | str, fits: str = "") -> np.ndarray:
    """An array with these axes: sizes, or names of axes of any size.

    The name "*spatial" stands for one to three axes. ``fits`` is the name of the array
    that has these sizes.
    """
    shape = f"({', '.join(map(str, axes))})"
    array = as_array(check_values(values, name, shape, n_axes=len(axes)))
    if axes[-1] == "*spatial":
        axes = (*axes[:-1], *("",) * min(array.ndim - len(axes) + 1, 3))
    if len(axes) != array.ndim or any(
        isinstance(wanted, int) and wanted != size
        for wanted, size in zip(axes, array.shape, strict=True)
    ):
        raise ValueError(
            f"{name} must be of shape {shape}{_to_go_with(fits)}, got {array.shape}."
        )
    return array


def check_unit(values: Any, name: str, *axes: int | str, fits: str = "") -> np.ndarray:
    """As ``check_drawn``, for pictures and scaled parts: values from 0 to 1."""
    array = check_drawn(values, name, *axes, fits=fits)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must have values from 0 to 1, got some from {low:g} to {high:g}."
        )
    return array


def check_labels(values: Any, name: str, n: int, *, fits: str) -> list:
    """Numbers that label the ``n`` entries of the array named ``fits``."""
    items = check_items(name, values, "a sequence of numbers")
    for value in items:
        check_number(f"each of {name}", value)
    if len(items) != n:
        raise ValueError(f"{name} must be {n}{_to_go_with(fits)}, got {len(items)}.")
    return items


def _to_go_with(name: str) -> str:
    return f", to go with {name}" if name else ""


def check_two_axes(panda: PartsAppearanceDecomposition) -> None:
    """Raise unless a decomposition's maps can be drawn over images."""
    if len(panda.map_shape_) != 3:
        raise ValueError(
            "images need maps with two spatial axes; the estimator was fitted on maps "
            f"of shape {panda.map_shape_} (channels first)."
        )


def pictures_for(
    panda: PartsAppearanceDecomposition, images: ArrayLike | None, value_range: Any
) -> np.ndarray | None:
    """Pictures to draw a decomposition's maps over, if there are images."""
    if images is not None:
        check_two_axes(panda)
        return as_pictures(images, range_of(images, value_range))
    if value_range is not None:
        check_value_range(value_range)
    return None


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (..., h, w) -> (..., H, W)."""
    flat = torch.from_numpy(np.ascontiguousarray(maps)).reshape(-1, 1, *maps.shape[-2:])
    big = resize(flat, size)
    return big.reshape(*maps.shape[:-2], *size).numpy()


def as_array(array: ArrayLike) -> np.ndarray:
    """A float array on the host."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().double().resolve_neg().numpy()
    return np.asarray(array, dtype=float)


def new_axes(
    n_rows: int, n_columns: int, axes: Any, cell: tuple[float, float] = (1.1, 1.1)
) -> tuple[Any, np.ndarray]:
    """A figure with a grid of bare axes, ``cell`` inches each; or the given axes."""
    axes = check_axes(axes, n_rows, n_columns)
    if axes is None:
        from matplotlib import pyplot as plt

        # With room for labels on the left and titles above.
        size = cell[0] * n_columns + 0.6, cell[1] * n_rows + 0.5
        _, axes = plt.subplots(
            n_rows, n_columns, squeeze=False, figsize=size, layout="constrained"
        )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(False)
    return axes.flat[0].figure, axes


def _matplotlib() -> Any:
    """Matplotlib, with the modules that the checks need."""
    try:
        import matplotlib.axes
        import matplotlib.colors
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib. Install it with: pip install matplotlib"
        ) from error
    return matplotlib


def show(axes: np.ndarray, pictures: Iterable[np.ndarray]) -> None:
    """Draw pictures (H, W, 3), one on each of the axes."""
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture)


def label_columns(axes: np.ndarray, labels: Iterable[str]) -> None:
    """Titles above the first row."""
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label, fontsize="small")


def label_rows(axes: np.ndarray, labels: Iterable[str]) -> None:
    """Labels left of the first column."""
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label, fontsize="small")


def unit_scaled(parts: np.ndarray, n_axes: int) -> np.ndarray:
    """Parts (..., *spatial), with ``n_axes`` spatial axes, each scaled to [0, 1].

    Constant parts are 0.
    """
    spatial = tuple(range(-n_axes, 0))
    low = parts.min(axis=spatial, keepdims=True)
    high = parts.max(axis=spatial, keepdims=True)
    return (parts - low) / np.where(high > low, high - low, 1)
