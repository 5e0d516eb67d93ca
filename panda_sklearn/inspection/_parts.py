"""Parts drawn over images: of all samples, and refined to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_sklearn._pipelines import find_decomposition, transformed
from panda_sklearn.inspection._docs import shared_docs
from panda_sklearn.inspection._images import (
    as_array,
    as_pictures,
    check_as_many,
    check_axes,
    check_cmap,
    check_drawn,
    check_labels,
    check_two_axes,
    check_unit,
    enlarge,
    label_columns,
    label_rows,
    new_axes,
    pictures_for,
    range_of,
    show,
    unit_scaled,
)
from panda_sklearn.inspection._maps import draw_curve, put_positions, sections
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    MAPS,
    check_array_like,
    check_indices,
)

# Axes of parts: alone, and over pictures; and of one picture.
ALONE = "n_parts", "*spatial"
PARTS = "n_parts", "height", "width"
PICTURE = "image_height", "image_width", 3


@shared_docs
class PartsDisplay:
    r"""Parts, alone or as highlights over images.

    Use :meth:`from_estimator` to make one. Parts with one spatial axis are drawn alone,
    as curves below each other. So are parts with three, as the three sections through
    their maximum: across the first axis, the second and the third.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, \*spatial)
        Parts with one to three spatial axes, each scaled to reach from 0 to 1.

    pictures : ndarray of shape (n_images, image_height, image_width, 3), default=None
        Pictures to draw them over, with values in [0, 1]; for two spatial axes.

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n_columns)
        The axes drawn on; set by ``plot``.

    %(figure)s
    """

    def __init__(self, parts: ArrayLike, pictures: ArrayLike | None = None) -> None:
        self.parts = parts
        self.pictures = pictures

    @classmethod
    @shared_docs
    def from_estimator(
        cls,
        estimator: Any,
        images: ArrayLike | None = None,
        *,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
        cmap: Any = "magma",
    ) -> PartsDisplay:
        """Draw the parts of a fitted decomposition.

        Parameters
        ----------
        %(estimator)s

        images : array of shape (n_images, 1 or 3, height, width), default=None
            Images to draw the parts over, a row each; for maps with two spatial axes.
            ``None`` draws the parts alone.

        %(value_range)s

        %(axes)s

        cmap : str, default="magma"
            Colour map of parts that are drawn alone.

        Returns
        -------
        display : PartsDisplay
            The display, drawn.

        %(raises)s
        """
        _, panda = find_decomposition(estimator)
        pictures = pictures_for(panda, images, value_range)
        parts = unit_scaled(as_array(panda.parts_), len(panda.map_shape_) - 1)
        return cls(parts, pictures).plot(axes=axes, cmap=cmap)

    def plot(self, *, axes: Any = None, cmap: Any = "magma") -> PartsDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            One for each part with one or two spatial axes, three for each part with
            three; with pictures, for each of them one more than there are parts.
            ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of parts that are drawn alone.

        Returns
        -------
        self : PartsDisplay
            The display.
        """
        alone = self.pictures is None
        parts = check_unit(self.parts, "parts", *(ALONE if alone else PARTS))
        check_cmap(cmap)
        draw = {2: self._draw_curves, 3: self._draw_maps, 4: self._draw_sections}
        if alone:
            draw[parts.ndim](parts, axes, cmap)
        else:
            self._draw_over(parts, axes)
        return self

    def _draw_curves(self, parts: np.ndarray, axes: Any, cmap: Any) -> None:
        """Parts with one axis: a row each."""
        self.figure_, self.axes_ = new_axes(len(parts), 1, axes, cell=(5, 0.8))
        for ax, part in zip(self.axes_[:, 0], parts, strict=True):
            draw_curve(ax, part, cmap)
        put_positions(self.axes_[-1, 0], parts.shape[1])
        label_rows(self.axes_, _names(len(parts)))

    def _draw_maps(self, parts: np.ndarray, axes: Any, cmap: Any) -> None:
        """Parts with two axes: a column each."""
        self.figure_, self.axes_ = new_axes(1, len(parts), axes)
        for ax, part in zip(self.axes_[0], parts, strict=True):
            ax.imshow(part, cmap=cmap, vmin=0, vmax=1)
        label_columns(self.axes_, _names(len(parts)))

    def _draw_sections(self, parts: np.ndarray, axes: Any, cmap: Any) -> None:
        """Parts with three axes: a column each, a row for each axis."""
        self.figure_, self.axes_ = new_axes(3, len(parts), axes, cell=(1.1, 1.25))
        for column, part in zip(self.axes_.T, parts, strict=True):
            for ax, (section, at) in zip(column, sections(part), strict=True):
                ax.imshow(section, cmap=cmap, vmin=0, vmax=1)
                ax.set_xlabel(f"at {at}", fontsize="x-small")
        label_columns(self.axes_, _names(len(parts)))
        label_rows(self.axes_, [f"across axis {k}" for k in range(3)])

    def _draw_over(self, parts: np.ndarray, axes: Any) -> None:
        """Parts over pictures."""
        pictures = check_unit(self.pictures, "pictures", "n_images", *PICTURE)
        self.figure_, self.axes_ = new_axes(len(pictures), len(parts) + 1, axes)
        masks = enlarge(parts, pictures.shape[1:3])[..., None]
        for row, picture in zip(self.axes_, pictures, strict=True):
            # Outside the part the picture is grey and dark, inside in its colours.
            dark = 0.35 * picture.mean(axis=-1, keepdims=True)
            show(row, [picture, *(dark + (picture - dark) * masks)])
        label_columns(self.axes_, ["image", *_names(len(parts))])


@shared_docs
class RefinementDisplay:
    r"""Parts of all samples, above those refined to each, in colours over images.

    Use :meth:`from_estimator` to make one. Figure 9 of the paper.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, height, width)
        Parts of all samples, each scaled to reach from 0 to 1.

    refined : ndarray of shape (n_samples, n_parts, height, width)
        Parts of each sample, scaled in the same way.

    pictures : ndarray of shape (n_samples, image_height, image_width, 3)
        Pictures to draw them over, with values in [0, 1].

    falls : ndarray of shape (n_samples,)
        The fraction by which the objective (6) of each sample falls.

    shown : sequence of int
        Indices of the parts.

    Attributes
    ----------
    axes_ : ndarray of shape (3, n_samples)
        The axes drawn on; set by ``plot``.

    %(figure)s
    """

    def __init__(
        self,
        parts: ArrayLike,
        refined: ArrayLike,
        pictures: ArrayLike,
        falls: ArrayLike,
        shown: Sequence[int],
    ) -> None:
        self.parts = parts
        self.refined = refined
        self.pictures = pictures
        self.falls = falls
        self.shown = shown

    @classmethod
    @shared_docs
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        images: ArrayLike,
        *,
        parts: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
    ) -> RefinementDisplay:
        r"""Refine the parts of a fitted decomposition to samples and draw both.

        Parameters
        ----------
        %(estimator)s
            On maps with two spatial axes.

        %(X)s

        images : array of shape (n_samples, 1 or 3, height, width)
            Images of the same samples.

        parts : sequence of int, default=None
            Which parts to show; ``None`` is all. All are refined.

        %(value_range)s

        %(axes)s

        Returns
        -------
        display : RefinementDisplay
            The display, drawn.

        %(raises)s
        """
        before, panda = find_decomposition(estimator)
        check_two_axes(panda)
        n_parts = len(panda.parts_)
        chosen = check_indices(
            "parts", range(n_parts) if parts is None else parts, n_parts
        )
        pictures = as_pictures(images, range_of(images, value_range))
        check_axes(axes, 3, len(pictures))
        check_array_like(X, "X", f"an array of shape {MAPS}")
        check_as_many(pictures, X)
        X = transformed(X, before)
        refined = panda.refine(X)
        unrefined = as_array(panda.reconstruction_errors(X))
        errors = as_array(panda.reconstruction_errors(X, refined))
        display = cls(
            unit_scaled(as_array(panda.parts_)[chosen], 2),
            unit_scaled(as_array(refined)[:, chosen], 2),
            pictures,
            1 - errors / np.where(unrefined > 0, unrefined, 1),
            chosen,
        )
        return display.plot(axes=axes)

    def plot(self, *, axes: Any = None) -> RefinementDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            Three rows, a column for each sample. ``None`` makes a figure.

        Returns
        -------
        self : RefinementDisplay
            The display.
        """
        parts = check_unit(self.parts, "parts", *PARTS)
        pictures = check_unit(self.pictures, "pictures", "n_samples", *PICTURE)
        n_samples, size = len(pictures), pictures.shape[1:3]
        fits = "parts and pictures"
        refined = check_unit(
            self.refined, "refined", n_samples, *parts.shape, fits=fits
        )
        falls = check_drawn(self.falls, "falls", n_samples, fits="pictures")
        check_labels(self.shown, "shown", len(parts), fits="parts")
        self.figure_, self.axes_ = new_axes(3, n_samples, axes)
        colors = _colors(len(parts))
        whole, owns = enlarge(parts, size), enlarge(refined, size)
        for column, picture, own, fall in zip(
            self.axes_.T, pictures, owns, falls, strict=True
        ):
            overlaid = [_colored(picture, each, colors) for each in (whole, own)]
            show(column, [picture, *overlaid])
            column[2].set_xlabel(f"error {-fall:+.0%}", fontsize="x-small")
        label_rows(self.axes_, ["image", "parts", "refined"])
        self._add_legend(colors)
        return self

    def _add_legend(self, colors: np.ndarray) -> None:
        """Say which colour is which part."""
        from matplotlib.patches import Patch

        self.figure_.legend(
            handles=[
                Patch(color=color, label=f"part {k}")
                for k, color in zip(self.shown, colors, strict=True)
            ],
            loc="outside right center",
            fontsize="x-small",
            frameon=False,
        )


def _names(n_parts: int) -> list[str]:
    return [f"part {k}" for k in range(n_parts)]


def _colors(n: int) -> np.ndarray:
    """RGB colours that are easy to tell apart, (n, 3)."""
    from matplotlib import colormaps

    if n <= 10:
        return colormaps["tab10"](np.arange(n))[:, :3]
    return colormaps["hsv"](np.linspace(0, 1, n, endpoint=False))[:, :3]


def _colored(picture: np.ndarray, parts: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in grey under parts (K, H, W) in colours (K, 3)."""
    grey = picture.mean(axis=-1, keepdims=True)
    weights = parts**2 / np.maximum((parts**2).sum(axis=0), 1e-12)
    color = np.einsum("khw,kc->hwc", weights, colors)
    strength = 0.7 * parts.max(axis=0)[..., None]
    return np.clip((1 - strength) * grey + strength * color, 0, 1)
