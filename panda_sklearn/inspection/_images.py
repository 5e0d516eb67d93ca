"""Pictures and maps as arrays that matplotlib draws.

Floor 4: numpy, torch; matplotlib inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing import LocalEditor
from panda_sklearn.feature_extractor import check_latents
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import (
    check_is_fitted,
    check_items,
    check_kind,
    check_number,
    check_parameters,
    check_value_range,
    check_values,
    shown,
)

# Shape of images, and how many colours they may have.
IMAGES = "(n_samples, 1 or 3, height, width)"
COLORS = (1, 3)


def as_pictures(
    images: ArrayLike, value_range: tuple[float, float], name: str = "images"
) -> np.ndarray:
    """Images (N, 1 or 3, H, W) -> pictures (N, H, W, 3) with values in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If the images, which the user knows by ``name``, are something else or of
        another shape, or ``value_range`` is none.
    """
    low, high = check_value_range(value_range)
    pictures = as_array(check_values(images, name, IMAGES))
    if pictures.ndim != 4 or pictures.shape[1] not in COLORS:
        raise ValueError(f"{name} must be of shape {IMAGES}, got {pictures.shape}.")
    if high <= 1 < pictures.max() / 10:
        raise ValueError(
            f"{name} has values up to {pictures.max():g}, but value_range is "
            f"{(low, high)}. For 8-bit images pass value_range=(0, 255)."
        )
    pictures = np.clip((pictures - low) / (high - low), 0, 1)
    return np.moveaxis(np.broadcast_to(pictures, _with_three(pictures)), 1, -1)


def as_picture_of(images: ArrayLike, value_range: tuple[float, float]) -> np.ndarray:
    """The picture (H, W, 3) of the one image in images (1, 1 or 3, H, W)."""
    return as_pictures(images, value_range)[0]


def _with_three(pictures: np.ndarray) -> tuple[int, ...]:
    n, _, height, width = pictures.shape
    return n, 3, height, width


def changed_by(target_change: Any, value_range: tuple[float, float]) -> dict[str, Any]:
    """Arguments of ``LocalEditor.edit`` for that change of what pictures show."""
    if target_change is None:
        return {}
    return {"target_change": target_change, "value_range": value_range}


def check_editor(editor: Any) -> None:
    """Raise unless it is an editor, of images that can be drawn."""
    check_kind("editor", editor, LocalEditor)
    shape = editor.extractor.image_shape_
    if shape is None or len(shape) != 3 or shape[0] not in COLORS:
        raise ValueError(
            f"editor must be of a network that gives images of shape {IMAGES}; one "
            f"image of this one is of shape {shape}."
        )


def count_latents(editor: LocalEditor, latents: Any) -> int:
    """How many latents there are, checked as the editor does."""
    check_parameters(editor.decomposition)
    return len(check_latents(editor.extractor, latents)[0])


def check_axes(axes: Any, n_rows: int, n_columns: int) -> np.ndarray | None:
    """Axes to draw on as an array (n_rows, n_columns), if any are given."""
    axes_class = _matplotlib().axes.Axes
    if axes is None:
        return None
    if isinstance(axes, Tensor):
        raise TypeError(f"axes must hold axes of matplotlib, got {shown(axes)}.")
    found = np.asarray(axes, dtype=object)
    if found.size != n_rows * n_columns:
        raise ValueError(
            f"axes must hold {n_rows} x {n_columns} axes, got {found.size}."
        )
    for ax in found.flat:
        if not isinstance(ax, axes_class):
            raise TypeError(f"axes must hold axes of matplotlib, got {shown(ax)}.")
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
            f"cmap={cmap!r} is no colour map of matplotlib; matplotlib.colormaps lists "
            "their names."
        )


def check_drawn(values: Any, name: str, *axes: int | str, fits: str = "") -> np.ndarray:
    """An array with these axes: sizes, or names where any size will do.

    ``fits`` names the array that has these sizes.
    """
    shape = f"({', '.join(map(str, axes))})"
    array = as_array(check_values(values, name, shape, n_axes=len(axes)))
    if len(axes) != array.ndim or any(
        isinstance(wanted, int) and wanted != size
        for wanted, size in zip(axes, array.shape, strict=True)
    ):
        raise ValueError(
            f"{name} must be of shape {shape}{_to_go_with(fits)}, got {array.shape}."
        )
    return array


def check_shares(
    values: Any, name: str, *axes: int | str, fits: str = ""
) -> np.ndarray:
    """As ``check_drawn``, for pictures and scaled parts: values from 0 to 1."""
    array = check_drawn(values, name, *axes, fits=fits)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must have values from 0 to 1, got some from {low:g} to {high:g}."
        )
    return array


def check_labels(values: Any, name: str, n: int, *, fits: str) -> list:
    """Numbers to label the ``n`` entries of the array ``fits`` with."""
    items = check_items(name, values, "a sequence of numbers")
    for value in items:
        check_number(f"each of {name}", value)
    if len(items) != n:
        raise ValueError(f"{name} must be {n}{_to_go_with(fits)}, got {len(items)}.")
    return items


def _to_go_with(name: str) -> str:
    return f", to go with {name}" if name else ""


def check_spatial(estimator: Any) -> None:
    """Raise unless a decomposition is fitted, on maps with two spatial axes."""
    hint = " Of a Pipeline give that step."
    check_kind("estimator", estimator, PartsAppearanceDecomposition, hint=hint)
    check_is_fitted(estimator)
    if len(estimator.map_shape_) != 3:
        raise ValueError(
            "Displays need maps with two spatial axes; the estimator was fitted on "
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
        array = array.detach().cpu().double().resolve_neg().numpy()
    return np.asarray(array, dtype=float)


def new_axes(n_rows: int, n_columns: int, axes: Any) -> tuple[Any, np.ndarray]:
    """A figure with a grid of bare axes; or the given axes, checked."""
    axes = check_axes(axes, n_rows, n_columns)
    if axes is None:
        from matplotlib import pyplot as plt

        # Each cell is 1.1 inches wide, with room above for titles.
        size = 1.1 * n_columns + 0.6, 1.1 * n_rows + 0.5
        _, axes = plt.subplots(
            n_rows, n_columns, squeeze=False, figsize=size, layout="constrained"
        )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(False)
    return axes.flat[0].figure, axes


def _matplotlib() -> Any:
    """Matplotlib, with what the checks need of it."""
    try:
        import matplotlib.axes
        import matplotlib.colors
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib. Install it with: pip install matplotlib"
        ) from error
    return matplotlib


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
