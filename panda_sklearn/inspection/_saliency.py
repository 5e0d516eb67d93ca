"""Saliency of appearances beside images.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np

from panda_sklearn.inspection._images import (
    as_array,
    as_pictures,
    check_cmap,
    check_drawn,
    check_labels,
    check_shares,
    check_spatial,
    enlarge,
    new_axes,
)
from panda_sklearn.utils.validation import (
    check_flag,
    check_indices,
    check_value_range,
)

# Axes of saliency maps and of one picture.
SALIENCY = "n_samples", "n_shown", "height", "width"
PICTURE = "image_height", "image_width", 3


class SaliencyDisplay:
    r"""Where appearances are: saliency maps, with their mean as a contour.

    Use :meth:`from_estimator` to make one. Section 4.1.2 of the paper.

    Parameters
    ----------
    saliency : ndarray of shape (n_samples, n_shown, height, width)
        Saliency of the shown appearances.

    appearances : sequence of int
        Their indices.

    thresholds : ndarray of shape (n_shown,)
        At what value each is contoured.

    pictures : ndarray of shape (n_samples, image_height, image_width, 3), default=None
        Pictures to show above.

    masks : bool, default=False
        Whether to show, below each map, the pictures where it exceeds its threshold.

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n_columns)
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, saliency, appearances, thresholds, pictures=None, masks=False):
        self.saliency = saliency
        self.appearances = appearances
        self.thresholds = thresholds
        self.pictures = pictures
        self.masks = masks

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        images=None,
        *,
        appearances=None,
        masks=False,
        value_range=(-1, 1),
        axes=None,
        cmap="RdBu_r",
    ):
        r"""Draw where appearances of a fitted decomposition are in samples.

        Parameters
        ----------
        estimator : PartsAppearanceDecomposition
            Fitted on maps with two spatial axes.

        X : array of shape (n_samples, n_channels, height, width)
            Activations of the samples.

        images : array of shape (n_samples, 1 or 3, height, width), default=None
            Images of the same samples, to show above.

        appearances : int or sequence of int, default=None
            Which appearances to show, a row each; ``None`` shows the first four.

        masks : bool, default=False
            Whether to show, below each map, the images where it exceeds its mean.
            Needs ``images``.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="RdBu_r"
            Colour map; its middle is at the mean, :math:`\mu_k`.

        Returns
        -------
        display : SaliencyDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_spatial(estimator)
        n_appearances = len(estimator.appearances_)
        if appearances is None:
            appearances = range(min(4, n_appearances))
        elif isinstance(appearances, Integral):
            appearances = [appearances]
        chosen = check_indices("appearances", appearances, n_appearances)
        check_flag("masks", masks)
        check_value_range(value_range)
        check_cmap(cmap)
        pictures = None if images is None else as_pictures(images, value_range)
        maps = as_array(estimator.saliency(X))
        thresholds = np.array([float(estimator.saliency_mean_[k]) for k in chosen])
        if pictures is not None and len(pictures) != len(maps):
            raise ValueError(
                f"images must be one for each sample of X: expected {len(maps)}, got "
                f"{len(pictures)}."
            )
        if masks and pictures is None:
            raise ValueError("masks=True needs images to cut out of.")
        display = cls(maps[:, chosen], chosen, thresholds, pictures, masks)
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, *, axes=None, cmap="RdBu_r"):
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each appearance, below one for the images if there are any; a
            column for each sample. ``None`` makes a figure.

        cmap : str, default="RdBu_r"
            Colour map; its middle is at the contoured value.

        Returns
        -------
        self : SaliencyDisplay
            The display.
        """
        saliencies = check_drawn(self.saliency, "saliency", *SALIENCY)
        n_samples, n_shown, *size = saliencies.shape
        appearances = check_labels(
            self.appearances, "appearances", n_shown, fits="saliency"
        )
        thresholds = check_drawn(
            self.thresholds, "thresholds", n_shown, fits="saliency"
        )
        pictures = self.pictures
        if pictures is not None:
            pictures = check_shares(
                pictures, "pictures", n_samples, *PICTURE, fits="saliency"
            )
            size = pictures.shape[1:3]
        if check_flag("masks", self.masks) and pictures is None:
            raise ValueError("masks=True needs pictures to cut out of.")
        check_cmap(cmap)
        above = 0 if pictures is None else 1
        rows_each = 1 + self.masks
        n_rows = above + rows_each * n_shown
        self.figure_, self.axes_ = new_axes(n_rows, n_samples, axes)
        if pictures is not None:
            for ax, picture in zip(self.axes_[0], pictures, strict=True):
                ax.imshow(picture)
        for number, (k, middle, maps) in enumerate(
            zip(
                appearances,
                thresholds,
                np.moveaxis(enlarge(saliencies, tuple(size)), 1, 0),
                strict=True,
            )
        ):
            row = self.axes_[above + rows_each * number]
            reach = float(np.abs(maps - middle).max()) or 1.0
            for ax, saliency in zip(row, maps, strict=True):
                drawn = ax.imshow(
                    saliency, cmap=cmap, vmin=middle - reach, vmax=middle + reach
                )
                if saliency.min() < middle <= saliency.max():
                    ax.contour(
                        saliency,
                        [middle],
                        colors="black",
                        linewidths=0.6,
                        linestyles="solid",
                    )
            row[0].set_ylabel(f"appearance {k}", fontsize="small")
            bar = self.figure_.colorbar(drawn, ax=list(row), fraction=0.02, pad=0.01)
            bar.set_ticks([middle], labels=[f"mean {middle:.2g}"])
            bar.ax.tick_params(labelsize="x-small")
            if self.masks:
                below = self.axes_[above + rows_each * number + 1]
                for ax, picture, saliency in zip(below, pictures, maps, strict=True):
                    ax.imshow(np.where((saliency >= middle)[..., None], picture, 1))
                below[0].set_ylabel("above mean", fontsize="small")
        return self
