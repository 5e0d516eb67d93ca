"""Parts drawn over images.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

import numpy as np

from panda_sklearn.inspection._images import (
    as_array,
    as_pictures,
    check_spatial,
    enlarge,
    new_axes,
)


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
        """
        check_spatial(estimator)
        parts = as_array(estimator.parts_)
        low = parts.min(axis=(1, 2), keepdims=True)
        high = parts.max(axis=(1, 2), keepdims=True)
        span = np.where(high > low, high - low, 1)
        pictures = None if images is None else as_pictures(images, value_range)
        return cls((parts - low) / span, pictures).plot(axes=axes, cmap=cmap)

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
        n_parts = len(self.parts)
        if self.pictures is None:
            self.figure_, self.axes_ = new_axes(1, n_parts, axes)
            for k, part in enumerate(self.parts):
                self.axes_[0, k].imshow(part, cmap=cmap, vmin=0, vmax=1)
                self.axes_[0, k].set_title(f"part {k}", fontsize="small")
            return self
        self.figure_, self.axes_ = new_axes(len(self.pictures), n_parts + 1, axes)
        masks = enlarge(self.parts, self.pictures.shape[1:3])
        for row, picture in zip(self.axes_, self.pictures, strict=True):
            row[0].imshow(picture)
            # Outside the part the picture is grey and dark, inside in its colours.
            dark = 0.35 * picture.mean(axis=-1, keepdims=True)
            for ax, mask in zip(row[1:], masks, strict=True):
                ax.imshow(dark + (picture - dark) * mask[..., None])
        self.axes_[0, 0].set_title("image", fontsize="small")
        for k, ax in enumerate(self.axes_[0, 1:]):
            ax.set_title(f"part {k}", fontsize="small")
        return self
