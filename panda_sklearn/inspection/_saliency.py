"""Saliency of appearances beside images."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from panda_sklearn._pipelines import find_decomposition, transformed
from panda_sklearn.inspection._docs import shared_docs
from panda_sklearn.inspection._images import (
    as_array,
    check_as_many,
    check_cmap,
    check_drawn,
    check_labels,
    check_unit,
    enlarge,
    label_rows,
    new_axes,
    pictures_for,
    show,
)
from panda_sklearn.inspection._maps import (
    draw_curve,
    put_positions,
    sections,
)
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    check_flag,
    check_indices,
)

# Axes of saliency maps: alone, and beside pictures; and of one picture.
ALONE = "n_samples", "n_shown", "*spatial"
BESIDE = "n_samples", "n_shown", "height", "width"
PICTURE = "image_height", "image_width", 3


@shared_docs
class SaliencyDisplay:
    r"""Where appearances are: saliency maps, with their mean as a contour.

    Use :meth:`from_estimator` to make one. Section 4.1.2 of the paper. Maps with one
    spatial axis are drawn as curves, filled where they exceed their threshold. Maps
    with three are drawn as the three sections through their maximum: across the first
    axis, the second and the third.

    Parameters
    ----------
    saliency : ndarray of shape (n_samples, n_shown, \*spatial)
        Saliency of the shown appearances, with one to three spatial axes.

    appearances : sequence of int
        Their indices.

    thresholds : ndarray of shape (n_shown,)
        The value at which each is contoured.

    pictures : ndarray of shape (n_samples, image_height, image_width, 3), default=None
        Pictures to show above, with values in [0, 1]; for two spatial axes.

    masks : bool, default=False
        Whether to show, below each map, the pictures where it exceeds its threshold.

    Attributes
    ----------
    axes_ : ndarray of shape (n_rows, n_columns)
        The axes drawn on; set by ``plot``.

    %(figure)s
    """

    def __init__(
        self,
        saliency: ArrayLike,
        appearances: Sequence[int],
        thresholds: ArrayLike,
        pictures: ArrayLike | None = None,
        masks: bool = False,
    ) -> None:
        self.saliency = saliency
        self.appearances = appearances
        self.thresholds = thresholds
        self.pictures = pictures
        self.masks = masks

    @classmethod
    @shared_docs
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        images: ArrayLike | None = None,
        *,
        appearances: int | Sequence[int] | None = None,
        masks: bool = False,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
        cmap: Any = "RdBu_r",
    ) -> SaliencyDisplay:
        r"""Draw where appearances of a fitted decomposition are in samples.

        Parameters
        ----------
        %(estimator)s

        %(X)s

        images : array of shape (n_samples, 1 or 3, height, width), default=None
            Images of the same samples, to show above; for maps with two spatial axes.

        appearances : int or sequence of int, default=None
            Which appearances to show, a row each; ``None`` shows the first four.

        masks : bool, default=False
            Whether to show, below each map, the images where it exceeds its mean.
            Needs ``images``.

        %(value_range)s

        %(axes)s

        cmap : str, default="RdBu_r"
            Colour map; its middle is at the mean, :math:`\mu_k`.

        Returns
        -------
        display : SaliencyDisplay
            The display, drawn.

        %(raises)s
        """
        before, panda = find_decomposition(estimator)
        n_appearances = len(panda.appearances_)
        wanted: Any = appearances
        if appearances is None:
            wanted = range(min(4, n_appearances))
        elif isinstance(appearances, Integral):
            wanted = [appearances]
        chosen = check_indices("appearances", wanted, n_appearances)
        if check_flag("masks", masks) and images is None:
            raise ValueError("masks=True needs images to cut out of.")
        check_cmap(cmap)
        pictures = pictures_for(panda, images, value_range)
        maps = as_array(panda.saliency(transformed(X, before)))
        if pictures is not None:
            check_as_many(pictures, maps)
        thresholds = np.array([float(panda.saliency_mean_[k]) for k in chosen])
        display = cls(maps[:, chosen], chosen, thresholds, pictures, masks)
        return display.plot(axes=axes, cmap=cmap)

    def plot(self, *, axes: Any = None, cmap: Any = "RdBu_r") -> SaliencyDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each appearance, or three for three spatial axes; a row below it
            for masks; above all a row for pictures if there are any; a column for each
            sample. ``None`` makes a figure.

        cmap : str, default="RdBu_r"
            Colour map; its middle is at the contoured value.

        Returns
        -------
        self : SaliencyDisplay
            The display.
        """
        alone = self.pictures is None
        wanted = ALONE if alone else BESIDE
        saliency = check_drawn(self.saliency, "saliency", *wanted)
        n_samples, n_shown, *spatial = saliency.shape
        appearances = check_labels(
            self.appearances, "appearances", n_shown, fits="saliency"
        )
        thresholds = check_drawn(
            self.thresholds, "thresholds", n_shown, fits="saliency"
        )
        if not alone:
            pictures = check_unit(
                self.pictures, "pictures", n_samples, *PICTURE, fits="saliency"
            )
            saliency = enlarge(saliency, pictures.shape[1:3])
        if check_flag("masks", self.masks) and alone:
            raise ValueError("masks=True needs pictures to cut out of.")
        check_cmap(cmap)
        above = 0 if alone else 1
        rows_each = {1: 1, 2: 1 + self.masks, 3: 3}[len(spatial)]
        cell = {1: (2.5, 0.9), 2: (1.1, 1.1), 3: (1.1, 1.25)}[len(spatial)]
        self.figure_, self.axes_ = new_axes(
            above + rows_each * n_shown, n_samples, axes, cell
        )
        if not alone:
            show(self.axes_[0], pictures)
        draw = {1: self._draw_curves, 2: self._draw_maps, 3: self._draw_sections}
        for number, (k, middle) in enumerate(zip(appearances, thresholds, strict=True)):
            start = above + rows_each * number
            rows, maps = self.axes_[start : start + rows_each], saliency[:, number]
            draw[len(spatial)](rows, maps, middle, cmap)
            label = f"appearance {k}"
            if len(spatial) == 3:
                label += "\nacross axis 0"
                label_rows(rows[1:], ["across axis 1", "across axis 2"])
            rows[0, 0].set_ylabel(label, fontsize="small")
            if self.masks:
                inside = (maps >= middle)[..., None]
                show(rows[1], np.where(inside, pictures, 1))
                rows[1, 0].set_ylabel("above mean", fontsize="small")
        return self

    def _draw_curves(
        self, rows: np.ndarray, maps: np.ndarray, middle: float, cmap: Any
    ) -> None:
        """Maps with one axis, (n_samples, length)."""
        low, high = min(maps.min(), middle), max(maps.max(), middle)
        margin = 0.05 * (high - low) or 1
        for ax, curve in zip(rows[0], maps, strict=True):
            draw_curve(ax, curve, cmap, base=middle)
            ax.set_ylim(low - margin, high + margin)
            put_positions(ax, len(curve))
        rows[0, -1].annotate(
            f"mean {middle:.2g}",
            (1.02, middle),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="x-small",
        )

    def _draw_maps(
        self, rows: np.ndarray, maps: np.ndarray, middle: float, cmap: Any
    ) -> None:
        """Maps with two axes, (n_samples, height, width)."""
        reach = float(np.abs(maps - middle).max()) or 1.0
        for ax, each in zip(rows[0], maps, strict=True):
            drawn = _draw_map(ax, each, middle, reach, cmap)
        self._add_bar(drawn, rows[0], middle)

    def _draw_sections(
        self, rows: np.ndarray, maps: np.ndarray, middle: float, cmap: Any
    ) -> None:
        """Maps with three axes, (n_samples, depth, height, width)."""
        reach = float(np.abs(maps - middle).max()) or 1.0
        for column, volume in zip(rows.T, maps, strict=True):
            for ax, (section, at) in zip(column, sections(volume), strict=True):
                drawn = _draw_map(ax, section, middle, reach, cmap)
                ax.set_xlabel(f"at {at}", fontsize="x-small")
        self._add_bar(drawn, rows.ravel(), middle)

    def _add_bar(self, drawn: Any, axes: np.ndarray, middle: float) -> None:
        """A colour bar with the contoured value."""
        bar = self.figure_.colorbar(drawn, ax=list(axes), fraction=0.02, pad=0.01)
        bar.set_ticks([middle], labels=[f"mean {middle:.2g}"])
        bar.ax.tick_params(labelsize="x-small")


def _draw_map(
    ax: Any, values: np.ndarray, middle: float, reach: float, cmap: Any
) -> Any:
    """Values with their contour at the middle."""
    drawn = ax.imshow(values, cmap=cmap, vmin=middle - reach, vmax=middle + reach)
    if values.min() < middle <= values.max():
        ax.contour(values, [middle], colors="black", linewidths=0.6, linestyles="solid")
    return drawn
