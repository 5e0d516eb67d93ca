"""One image with pairs of an appearance and a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.editing._edit import UNITS
from panda_sklearn.inspection._docs import shared_docs
from panda_sklearn.inspection._edited import EditedPictures
from panda_sklearn.inspection._images import (
    check_axes,
    check_labels,
    check_unit,
    label_columns,
    label_rows,
    new_axes,
    show,
)
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import check_choice, check_indices


@shared_docs
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

    %(figure)s
    """

    def __init__(
        self,
        picture: ArrayLike,
        pictures: ArrayLike,
        appearances: Sequence[int],
        parts: Sequence[int],
    ) -> None:
        self.picture = picture
        self.pictures = pictures
        self.appearances = appearances
        self.parts = parts

    @classmethod
    @shared_docs
    def from_editor(
        cls,
        editor: LocalEditor,
        latents: ArrayLike,
        *,
        appearances: Sequence[int],
        parts: Sequence[int],
        strength: float = 3.0,
        unit: str = "std",
        target_change: float | None = None,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
    ) -> EditMatrixDisplay:
        """Edit an image in many ways and draw them.

        Parameters
        ----------
        %(editor)s

        latents : array of shape (1, ...)
            Latents of the image.

        appearances : sequence of int
            Appearances to add, a row each.

        parts : sequence of int
            Parts to add them at, a column each.

        strength : float, default=3.0
            Strength of each edit.

        unit : {"std", "alpha"}, default="std"
            Unit of the strength, as in :class:`panda_sklearn.Edit`.

        target_change : float, default=None
            As for ``LocalEditor.edit``: all edits change what the pictures show of
            their parts by as much.

        %(value_range)s

        %(axes)s

        Returns
        -------
        display : EditMatrixDisplay
            The display, drawn.

        %(raises)s
        """
        of = EditedPictures(editor, latents, value_range, target_change)
        of.check_one_image()
        panda = editor.decomposition
        check_choice("unit", unit, UNITS)
        appearances = check_indices("appearances", appearances, len(panda.appearances_))
        parts = check_indices("parts", parts, len(panda.parts_))
        check_axes(axes, len(appearances), len(parts) + 1)
        edits = [[Edit(j, k, strength, unit) for k in parts] for j in appearances]
        for row in edits:
            of.check(row)
        pictures = np.stack([[of.after(edit)[0] for edit in row] for row in edits])
        return cls(of.before[0], pictures, appearances, parts).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> EditMatrixDisplay:
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
        plain = check_unit(self.picture, "picture", "height", "width", 3)
        edited = check_unit(
            self.pictures,
            "pictures",
            *("n_appearances", "n_parts", *plain.shape),
            fits="picture",
        )
        n_rows, n_columns = edited.shape[:2]
        appearances = check_labels(
            self.appearances, "appearances", n_rows, fits="pictures"
        )
        parts = check_labels(self.parts, "parts", n_columns, fits="pictures")
        self.figure_, self.axes_ = new_axes(n_rows, n_columns + 1, axes)
        for row, pictures in zip(self.axes_, edited, strict=True):
            show(row, [plain, *pictures])
        label_columns(self.axes_, ["image", *(f"part {k}" for k in parts)])
        label_rows(self.axes_, [f"appearance {j}" for j in appearances])
        return self
