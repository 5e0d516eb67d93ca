"""Images before and after edits, and at several strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.editing._changes import check_edits
from panda_sklearn.editing._edit import UNITS
from panda_sklearn.inspection._docs import shared_docs
from panda_sklearn.inspection._edited import EditedPictures
from panda_sklearn.inspection._images import (
    as_pictures,
    check_axes,
    check_cmap,
    check_labels,
    check_unit,
    label_columns,
    label_rows,
    new_axes,
    range_of,
    show,
)
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    check_choice,
    check_kind,
    check_numbers,
)

# Axes of pictures.
PICTURES = "n_samples", "height", "width", 3


@shared_docs
class EditDisplay:
    """Images before an edit, after it, and how much each pixel changed.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    before, after : ndarray of shape (n_samples, height, width, 3)
        Pictures with values in [0, 1].

    Attributes
    ----------
    axes_ : ndarray of shape (3, n_samples)
        The axes drawn on; set by ``plot``.

    %(figure)s
    """

    def __init__(self, before: ArrayLike, after: ArrayLike) -> None:
        self.before = before
        self.after = after

    @classmethod
    @shared_docs
    def from_editor(
        cls,
        editor: LocalEditor,
        latents: ArrayLike,
        edits: Edit | Sequence[Edit],
        *,
        refine: bool = False,
        target_change: float | None = None,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
        cmap: Any = "magma",
    ) -> EditDisplay:
        """Edit images and draw them beside the unedited ones.

        Parameters
        ----------
        %(editor)s

        latents : array of shape (n_samples, ...)
            Latents of the images.

        edits : Edit or sequence of Edit
            What to change.

        refine : bool, default=False
            As for ``LocalEditor.edit``.

        target_change : float, default=None
            As for ``LocalEditor.edit``, for what the pictures show.

        %(value_range)s

        %(axes)s

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        display : EditDisplay
            The display, drawn.

        %(raises)s
        """
        of = EditedPictures(editor, latents, value_range, target_change)
        edits = check_edits(edits)
        of.check(edits, refine=refine)
        check_cmap(cmap)
        check_axes(axes, 3, of.n_samples)
        after = of.after(edits, refine=refine)
        return cls(of.before, after).plot(axes=axes, cmap=cmap)

    @classmethod
    @shared_docs
    def from_images(
        cls,
        images: ArrayLike,
        edited: ArrayLike,
        *,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
        cmap: Any = "magma",
    ) -> EditDisplay:
        """Draw edited images, made in any way, beside the unedited ones.

        Parameters
        ----------
        images : array of shape (n_samples, 1 or 3, height, width)
            Images before the edit.

        edited : array of shape (n_samples, 1 or 3, height, width)
            The same images after the edit.

        %(value_range)s

        %(axes)s

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        display : EditDisplay
            The display, drawn.

        %(raises)s
        """
        value_range = range_of(images, value_range)
        before = as_pictures(images, value_range)
        after = as_pictures(edited, value_range, "edited")
        if before.shape != after.shape:
            raise ValueError(
                "images and edited must have the same shape, got "
                f"{tuple(np.shape(images))} and {tuple(np.shape(edited))}."
            )
        return cls(before, after).plot(axes=axes, cmap=cmap)

    @property
    def change(self) -> np.ndarray:
        """Root mean square change over the colours, (n_samples, height, width)."""
        return np.sqrt(np.mean((self.after - self.before) ** 2, axis=-1))

    def plot(self, *, axes: Any = None, cmap: Any = "magma") -> EditDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            Three rows, a column for each sample. ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        self : EditDisplay
            The display.
        """
        befores = check_unit(self.before, "before", *PICTURES)
        afters = check_unit(self.after, "after", *befores.shape, fits="before")
        check_cmap(cmap)
        self.figure_, self.axes_ = new_axes(3, len(befores), axes)
        change = self.change
        top = float(change.max()) or 1.0
        for column, before, after, difference in zip(
            self.axes_.T, befores, afters, change, strict=True
        ):
            show(column[:2], [before, after])
            drawn = column[2].imshow(difference, cmap=cmap, vmin=0, vmax=top)
        label_rows(self.axes_, ["before", "after", "change"])
        bar = self.figure_.colorbar(
            drawn, ax=list(self.axes_[2]), fraction=0.02, pad=0.01
        )
        bar.ax.tick_params(labelsize="x-small")
        return self


@shared_docs
class StrengthsDisplay:
    """One edit at several strengths, a strip of images for each sample.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    pictures : ndarray of shape (n_samples, n_strengths, height, width, 3)
        Pictures with values in [0, 1].

    strengths : sequence of float
        The strengths.

    unit : {"std", "alpha"}, default="std"
        Unit of the strengths.

    Attributes
    ----------
    axes_ : ndarray of shape (n_samples, n_strengths)
        The axes drawn on; set by ``plot``.

    %(figure)s
    """

    def __init__(
        self, pictures: ArrayLike, strengths: Sequence[float], unit: str = "std"
    ) -> None:
        self.pictures = pictures
        self.strengths = strengths
        self.unit = unit

    @classmethod
    @shared_docs
    def from_editor(
        cls,
        editor: LocalEditor,
        latents: ArrayLike,
        edit: Edit,
        strengths: Sequence[float],
        *,
        refine: bool = False,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
    ) -> StrengthsDisplay:
        """Edit images at several strengths and draw them.

        Parameters
        ----------
        %(editor)s

        latents : array of shape (n_samples, ...)
            Latents of the images, a row each.

        edit : Edit
            What to change; its own strength is not used.

        strengths : sequence of float
            Strengths in the edit's unit, a column each.

        refine : bool, default=False
            As for ``LocalEditor.edit``.

        %(value_range)s

        %(axes)s

        Returns
        -------
        display : StrengthsDisplay
            The display, drawn.

        %(raises)s
        """
        of = EditedPictures(editor, latents, value_range)
        check_kind("edit", edit, Edit)
        strengths = check_numbers("strengths", strengths)
        check_axes(axes, of.n_samples, len(strengths))
        edits = [replace(edit, strength=strength) for strength in strengths]
        for one in edits:
            of.check([one], refine=refine)
        pictures = [of.after(one, refine=refine) for one in edits]
        assert edit.unit is not None  # an Edit settles it
        display = cls(np.stack(pictures, axis=1), strengths, edit.unit)
        return display.plot(axes=axes)

    def plot(self, *, axes: Any = None) -> StrengthsDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each sample, a column for each strength. ``None`` makes a figure.

        Returns
        -------
        self : StrengthsDisplay
            The display.
        """
        strips = check_unit(
            self.pictures, "pictures", "n_samples", "n_strengths", *PICTURES[1:]
        )
        strengths = check_labels(
            self.strengths, "strengths", strips.shape[1], fits="pictures"
        )
        check_choice("unit", self.unit, UNITS)
        self.figure_, self.axes_ = new_axes(len(strips), len(strengths), axes)
        for row, pictures in zip(self.axes_, strips, strict=True):
            show(row, pictures)
        unit = " std" if self.unit == "std" else ""
        labels = [f"{s:+g}{unit}" if s else "0" for s in strengths]
        label_columns(self.axes_, labels)
        return self
