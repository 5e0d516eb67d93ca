"""Images before and after edits, at several strengths, and of pairs.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from panda_sklearn.editing import Edit
from panda_sklearn.editing._changes import change_of
from panda_sklearn.editing._edit import UNITS
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.inspection._images import (
    as_picture_of,
    as_pictures,
    changed_by,
    check_axes,
    check_cmap,
    check_editor,
    check_labels,
    check_shares,
    count_latents,
    label_columns,
    label_rows,
    new_axes,
)
from panda_sklearn.utils.validation import (
    check_choice,
    check_indices,
    check_kind,
    check_numbers,
    check_value_range,
)

# Axes of pictures.
PICTURES = "n_samples", "height", "width", 3


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

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, before, after):
        self.before = before
        self.after = after

    @classmethod
    def from_editor(
        cls,
        editor,
        latents,
        edits,
        *,
        refine=False,
        target_change=None,
        value_range=(-1, 1),
        axes=None,
        cmap="magma",
    ):
        """Edit images and draw them beside the unedited ones.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (n_samples, ...)
            Latents of the images.

        edits : Edit or sequence of Edit
            What to change.

        refine : bool, default=False
            As for ``LocalEditor.edit``.

        target_change : float, default=None
            As for ``LocalEditor.edit``, of what the pictures show.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        display : EditDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_editor(editor)
        check_value_range(value_range)
        check_cmap(cmap)
        check_axes(axes, 3, count_latents(editor, latents))
        how = changed_by(target_change, value_range)
        after = editor.edit(latents, edits, refine=refine, **how)
        before = editor.extractor.generate(latents)
        return cls.from_images(
            before, after, value_range=value_range, axes=axes, cmap=cmap
        )

    @classmethod
    def from_images(
        cls, images, edited, *, value_range=(-1, 1), axes=None, cmap="magma"
    ):
        """Draw edited images, however they were made, beside the unedited ones.

        Parameters
        ----------
        images : array of shape (n_samples, 1 or 3, height, width)
            Images before the edit.

        edited : array of shape (n_samples, 1 or 3, height, width)
            The same images after it.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        cmap : str, default="magma"
            Colour map of the change.

        Returns
        -------
        display : EditDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        before = as_pictures(images, value_range)
        after = as_pictures(edited, value_range, "edited")
        if before.shape != after.shape:
            raise ValueError(
                "images and edited must be of one shape, got "
                f"{tuple(np.shape(images))} and {tuple(np.shape(edited))}."
            )
        return cls(before, after).plot(axes=axes, cmap=cmap)

    @property
    def change(self):
        """Root mean square change over the colours, (n_samples, height, width)."""
        return np.sqrt(np.mean((self.after - self.before) ** 2, axis=-1))

    def plot(self, *, axes=None, cmap="magma"):
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
        befores = check_shares(self.before, "before", *PICTURES)
        afters = check_shares(self.after, "after", *befores.shape, fits="before")
        check_cmap(cmap)
        self.figure_, self.axes_ = new_axes(3, len(befores), axes)
        change = self.change
        top = float(change.max()) or 1.0
        for column, before, after, difference in zip(
            self.axes_.T, befores, afters, change, strict=True
        ):
            column[0].imshow(before)
            column[1].imshow(after)
            drawn = column[2].imshow(difference, cmap=cmap, vmin=0, vmax=top)
        for ax, label in zip(
            self.axes_[:, 0], ("before", "after", "change"), strict=True
        ):
            ax.set_ylabel(label, fontsize="small")
        bar = self.figure_.colorbar(
            drawn, ax=list(self.axes_[2]), fraction=0.02, pad=0.01
        )
        bar.ax.tick_params(labelsize="x-small")
        return self


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
        Their unit.

    Attributes
    ----------
    axes_ : ndarray of shape (n_samples, n_strengths)
        The axes drawn on; set by ``plot``.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, pictures, strengths, unit="std"):
        self.pictures = pictures
        self.strengths = strengths
        self.unit = unit

    @classmethod
    def from_editor(
        cls,
        editor,
        latents,
        edit,
        strengths,
        *,
        refine=False,
        value_range=(-1, 1),
        axes=None,
    ):
        """Edit images at several strengths and draw them.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (n_samples, ...)
            Latents of the images, a row each.

        edit : Edit
            What to change; its own strength is not used.

        strengths : sequence of float
            Strengths in the edit's unit, a column each.

        refine : bool, default=False
            As for ``LocalEditor.edit``.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        Returns
        -------
        display : StrengthsDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_editor(editor)
        check_kind("edit", edit, Edit)
        check_value_range(value_range)
        strengths = check_numbers("strengths", strengths)
        n_samples = count_latents(editor, latents)
        check_axes(axes, n_samples, len(strengths))
        edits = [replace(edit, strength=strength) for strength in strengths]
        # Fails, if so, before any work.
        sizes, panda = Sizes.of(editor.extractor, n_samples), editor.decomposition
        for one in edits:
            change_of([one], panda, sizes, refine=refine)
        pictures = [
            as_pictures(editor.edit(latents, one, refine=refine), value_range)
            for one in edits
        ]
        display = cls(np.stack(pictures, axis=1), strengths, edit.unit)
        return display.plot(axes=axes)

    def plot(self, *, axes=None):
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
        strips = check_shares(
            self.pictures, "pictures", "n_samples", "n_strengths", *PICTURES[1:]
        )
        strengths = check_labels(
            self.strengths, "strengths", strips.shape[1], fits="pictures"
        )
        check_choice("unit", self.unit, UNITS)
        self.figure_, self.axes_ = new_axes(*strips.shape[:2], axes)
        for row, pictures in zip(self.axes_, strips, strict=True):
            for ax, picture in zip(row, pictures, strict=True):
                ax.imshow(picture)
        unit = " std" if self.unit == "std" else ""
        labels = [f"{s:+g}{unit}" if s else "0" for s in strengths]
        label_columns(self.axes_, labels)
        return self


class EditMatrixDisplay:
    """One image, edited with each of some appearances at each of some parts.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3)
        The unedited picture, with values in [0, 1].

    pictures : ndarray of shape (n_appearances, n_parts, height, width, 3)
        The edited ones.

    appearances : sequence of int
        Indices of the appearances.

    parts : sequence of int
        Indices of the parts.

    Attributes
    ----------
    axes_ : ndarray of shape (n_appearances, n_parts + 1)
        The axes drawn on; set by ``plot``. The first column has the unedited picture.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, picture, pictures, appearances, parts):
        self.picture = picture
        self.pictures = pictures
        self.appearances = appearances
        self.parts = parts

    @classmethod
    def from_editor(
        cls,
        editor,
        latents,
        *,
        appearances,
        parts,
        strength=3.0,
        unit="std",
        target_change=None,
        value_range=(-1, 1),
        axes=None,
    ):
        """Edit an image in many ways and draw them.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (1, ...)
            Latents of the image.

        appearances : sequence of int
            Appearances to add, a row each.

        parts : sequence of int
            Parts to add them at, a column each.

        strength : float, default=3.0
            Strength of each edit.

        unit : {"std", "alpha"}, default="std"
            Its unit, as in :class:`panda_sklearn.Edit`.

        target_change : float, default=None
            As for ``LocalEditor.edit``: makes what the pictures show of each part
            change by the same.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        Returns
        -------
        display : EditMatrixDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_editor(editor)
        check_value_range(value_range)
        panda = editor.decomposition
        check_choice("unit", unit, UNITS)
        appearances = check_indices("appearances", appearances, len(panda.appearances_))
        parts = check_indices("parts", parts, len(panda.parts_))
        n_samples = count_latents(editor, latents)
        if n_samples != 1:
            raise ValueError(
                f"The matrix is of one image: expected latents of 1 sample, got "
                f"{n_samples}. Pass latents[:1]."
            )
        check_axes(axes, len(appearances), len(parts) + 1)
        edits = [[Edit(j, k, strength, unit) for k in parts] for j in appearances]
        # Fails, if so, before any work.
        for row in edits:
            change_of(row, panda, Sizes.of(editor.extractor, n_samples))
        how = changed_by(target_change, value_range)

        def edited(edit):
            return as_picture_of(editor.edit(latents, edit, **how), value_range)

        pictures = np.stack([[edited(edit) for edit in row] for row in edits])
        plain = as_picture_of(editor.extractor.generate(latents), value_range)
        return cls(plain, pictures, appearances, parts).plot(axes=axes)

    def plot(self, *, axes=None):
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each appearance, a column for each part and one before them.
            ``None`` makes a figure.

        Returns
        -------
        self : EditMatrixDisplay
            The display.
        """
        plain = check_shares(self.picture, "picture", *PICTURES[1:])
        edited = check_shares(
            self.pictures,
            "pictures",
            "n_appearances",
            "n_parts",
            *plain.shape,
            fits="picture",
        )
        n_rows, n_columns = edited.shape[:2]
        appearances = check_labels(
            self.appearances, "appearances", n_rows, fits="pictures"
        )
        parts = check_labels(self.parts, "parts", n_columns, fits="pictures")
        self.figure_, self.axes_ = new_axes(n_rows, n_columns + 1, axes)
        for row, pictures in zip(self.axes_, edited, strict=True):
            row[0].imshow(plain)
            for ax, picture in zip(row[1:], pictures, strict=True):
                ax.imshow(picture)
        label_columns(self.axes_, ["image", *(f"part {k}" for k in parts)])
        label_rows(self.axes_, [f"appearance {j}" for j in appearances])
        return self
