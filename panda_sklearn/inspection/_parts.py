"""Parts drawn over images: of all samples, and refined to each.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

import numpy as np

from panda_sklearn.inspection._images import (
    as_array,
    as_pictures,
    check_axes,
    check_cmap,
    check_drawn,
    check_labels,
    check_shares,
    check_spatial,
    enlarge,
    label_columns,
    label_rows,
    new_axes,
    unit_scaled,
)
from panda_sklearn.utils.validation import (
    MAPS,
    check_array_like,
    check_indices,
    check_value_range,
)

# Axes of parts and of one picture.
PARTS = "n_parts", "height", "width"
PICTURE = "image_height", "image_width", 3


class PartsDisplay:
    r"""Parts as highlights over images.

    Use :meth:`from_estimator` to make one.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, height, width)
        Parts, each scaled to reach from 0 to 1.

    pictures : ndarray of shape (n_images, image_height, image_width, 3), default=None
        Pictures to draw them over, with values in [0, 1].

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n_columns)
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, parts, pictures=None):
        self.parts = parts
        self.pictures = pictures

    @classmethod
    def from_estimator(
        cls, estimator, images=None, *, value_range=(-1, 1), axes=None, cmap="magma"
    ):
        """Draw the parts of a fitted decomposition.

        Parameters
        ----------
        estimator : PartsAppearanceDecomposition
            Fitted on maps with two spatial axes.

        images : array of shape (n_images, 1 or 3, height, width), default=None
            Images to draw the parts over, a row each. ``None`` draws the parts alone.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of parts that are drawn alone.

        Returns
        -------
        display : PartsDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_spatial(estimator)
        check_value_range(value_range)
        parts = unit_scaled(as_array(estimator.parts_))
        pictures = None if images is None else as_pictures(images, value_range)
        return cls(parts, pictures).plot(axes=axes, cmap=cmap)

    def plot(self, *, axes=None, cmap="magma"):
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            One for each part, or for each image one more than there are parts.
            ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of parts that are drawn alone.

        Returns
        -------
        self : PartsDisplay
            The display.
        """
        parts = check_shares(self.parts, "parts", *PARTS)
        n_parts = len(parts)
        check_cmap(cmap)
        if self.pictures is None:
            self.figure_, self.axes_ = new_axes(1, n_parts, axes)
            for ax, part in zip(self.axes_[0], parts, strict=True):
                ax.imshow(part, cmap=cmap, vmin=0, vmax=1)
            label_columns(self.axes_, _names(n_parts))
            return self
        pictures = check_shares(self.pictures, "pictures", "n_images", *PICTURE)
        self.figure_, self.axes_ = new_axes(len(pictures), n_parts + 1, axes)
        masks = enlarge(parts, pictures.shape[1:3])
        for row, picture in zip(self.axes_, pictures, strict=True):
            row[0].imshow(picture)
            # Outside the part the picture is grey and dark, inside in its colours.
            dark = 0.35 * picture.mean(axis=-1, keepdims=True)
            for ax, mask in zip(row[1:], masks, strict=True):
                ax.imshow(dark + (picture - dark) * mask[..., None])
        label_columns(self.axes_, ["image", *_names(n_parts)])
        return self


class RefinementDisplay:
    r"""Parts of all samples above those refined to each, in colours over images.

    Use :meth:`from_estimator` to make one. Figure 9 of the paper.

    Parameters
    ----------
    parts : ndarray of shape (n_parts, height, width)
        Parts of all samples, each scaled to reach from 0 to 1.

    refined : ndarray of shape (n_samples, n_parts, height, width)
        Parts of each sample, scaled so too.

    pictures : ndarray of shape (n_samples, image_height, image_width, 3)
        Pictures to draw them over, with values in [0, 1].

    falls : ndarray of shape (n_samples,)
        By which share the objective (6) of each sample falls.

    shown : sequence of int
        Indices of these parts.

    Attributes
    ----------
    axes_ : ndarray of shape (3, n_samples)
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, parts, refined, pictures, falls, shown):
        self.parts = parts
        self.refined = refined
        self.pictures = pictures
        self.falls = falls
        self.shown = shown

    @classmethod
    def from_estimator(
        cls, estimator, X, images, *, parts=None, value_range=(-1, 1), axes=None
    ):
        r"""Refine the parts of a fitted decomposition to samples and draw both.

        Parameters
        ----------
        estimator : PartsAppearanceDecomposition
            Fitted on maps with two spatial axes.

        X : array of shape (n_samples, n_channels, height, width)
            Activations of the samples.

        images : array of shape (n_samples, 1 or 3, height, width)
            Images of the same samples.

        parts : sequence of int, default=None
            Which parts to show; ``None`` is all. All are refined.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        Returns
        -------
        display : RefinementDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_spatial(estimator)
        n_parts = len(estimator.parts_)
        shown = range(n_parts) if parts is None else parts
        chosen = check_indices("parts", shown, n_parts)
        pictures = as_pictures(images, value_range)
        check_axes(axes, 3, len(pictures))
        check_array_like(X, "X", f"an array of shape {MAPS}")
        if len(pictures) != len(X):
            raise ValueError(
                f"images must be one for each sample of X: expected {len(X)}, got "
                f"{len(pictures)}."
            )
        refined = estimator.refine(X)
        before = as_array(estimator.reconstruction_errors(X))
        after = as_array(estimator.reconstruction_errors(X, refined))
        display = cls(
            unit_scaled(as_array(estimator.parts_)[chosen]),
            unit_scaled(as_array(refined)[:, chosen]),
            pictures,
            1 - after / np.where(before > 0, before, 1),
            chosen,
        )
        return display.plot(axes=axes)

    def plot(self, *, axes=None):
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
        parts = check_shares(self.parts, "parts", *PARTS)
        pictures = check_shares(self.pictures, "pictures", "n_samples", *PICTURE)
        n_samples, size = len(pictures), pictures.shape[1:3]
        fits = "parts and pictures"
        refined = check_shares(
            self.refined, "refined", n_samples, *parts.shape, fits=fits
        )
        falls = check_drawn(self.falls, "falls", n_samples, fits="pictures")
        check_labels(self.shown, "shown", len(parts), fits="parts")
        self.figure_, self.axes_ = new_axes(3, n_samples, axes)
        colors = _colors(len(parts))
        whole, each = enlarge(parts, size), enlarge(refined, size)
        for column, picture, own, fall in zip(
            self.axes_.T, pictures, each, falls, strict=True
        ):
            column[0].imshow(picture)
            column[1].imshow(_colored(picture, whole, colors))
            column[2].imshow(_colored(picture, own, colors))
            column[2].set_xlabel(f"error {-fall:+.0%}", fontsize="x-small")
        label_rows(self.axes_, ["image", "parts", "refined"])
        self._add_legend(colors)
        return self

    def _add_legend(self, colors):
        """Which colour is which part."""
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


def _names(n_parts):
    return [f"part {k}" for k in range(n_parts)]


def _colors(n):
    """RGB colours that are easy to tell apart, (n, 3)."""
    from matplotlib import colormaps

    if n <= 10:
        return np.array(colormaps["tab10"].colors[:n])
    return colormaps["hsv"](np.linspace(0, 1, n, endpoint=False))[:, :3]


def _colored(picture, parts, colors):
    """A picture (H, W, 3) in grey under parts (K, H, W) in colours (K, 3)."""
    grey = picture.mean(axis=-1, keepdims=True)
    weights = parts**2 / np.maximum((parts**2).sum(axis=0), 1e-12)
    color = np.einsum("khw,kc->hwc", weights, colors)
    strength = 0.7 * parts.max(axis=0)[..., None]
    return np.clip((1 - strength) * grey + strength * color, 0, 1)
