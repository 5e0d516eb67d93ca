"""Many edits of several images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.editing._changes import check_edits
from panda_sklearn.inspection._docs import shared_docs
from panda_sklearn.inspection._edited import EditedPictures
from panda_sklearn.inspection._images import (
    check_axes,
    check_unit,
    label_rows,
    new_axes,
    show,
)
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.parts import is_mask
from panda_sklearn.utils.validation import check_flag, check_items, check_kind

# What to call edits of kinds without an index.
KINDS = {
    "appearance": "a vector",
    "latent": "a direction",
    "coefficients": "coefficients",
    "features": "activations",
}


@shared_docs
class EditGalleryDisplay:
    """Several images, unedited and with each of some edits.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    before : ndarray of shape (n_samples, height, width, 3)
        Unedited pictures, with values in [0, 1].

    after : ndarray of shape (n_edits, n_samples, height, width, 3)
        The edited ones.

    labels : sequence of str
        Labels of the edits.

    Attributes
    ----------
    axes_ : ndarray of shape (n_edits + 1, n_samples)
        The axes drawn on; set by ``plot``. The first row has the unedited pictures.

    %(figure)s
    """

    def __init__(
        self, before: ArrayLike, after: ArrayLike, labels: Sequence[str]
    ) -> None:
        self.before = before
        self.after = after
        self.labels = labels

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
    ) -> EditGalleryDisplay:
        """Make each of some edits of all images, and draw them.

        Parameters
        ----------
        %(editor)s

        latents : array of shape (n_samples, ...)
            Latents of the images, a column each.

        edits : Edit or sequence of Edit
            The edits, a row each. The labels are their names; an edit without a name
            is described.

        refine : bool, default=False
            As for ``LocalEditor.edit``, for the edits at learnt parts.

        target_change : float, default=None
            As for ``LocalEditor.edit``: all edits change what the pictures show by as
            much, at their places.

        %(value_range)s

        %(axes)s

        Returns
        -------
        display : EditGalleryDisplay
            The display, drawn.

        %(raises)s
        """
        of = EditedPictures(editor, latents, value_range, target_change)
        edits = check_edits(edits)
        check_axes(axes, len(edits) + 1, of.n_samples)
        check_flag("refine", refine)
        refined = [refine and not is_mask(edit.part) for edit in edits]
        for edit, whether in zip(edits, refined, strict=True):
            of.check([edit], refine=whether)
        after = [
            of.after(edit, refine=whether)
            for edit, whether in zip(edits, refined, strict=True)
        ]
        labels = [edit.name or _described(edit) for edit in edits]
        return cls(of.before, np.stack(after), labels).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> EditGalleryDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each edit and one before them, a column for each sample. ``None``
            makes a figure.

        Returns
        -------
        self : EditGalleryDisplay
            The display.
        """
        before = check_unit(self.before, "before", "n_samples", "height", "width", 3)
        after = check_unit(self.after, "after", "n_edits", *before.shape, fits="before")
        labels = check_items("labels", self.labels, "a sequence of str")
        for label in labels:
            check_kind("each of labels", label, str)
        if len(labels) != len(after):
            raise ValueError(
                f"labels must be {len(after)}, to go with after, got {len(labels)}."
            )
        self.figure_, self.axes_ = new_axes(len(after) + 1, len(before), axes)
        for row, pictures in zip(self.axes_, [before, *after], strict=True):
            show(row, pictures)
        label_rows(self.axes_, ["image", *labels])
        return self


def _described(edit: Edit) -> str:
    """An edit that has no name, in a few words."""
    which = getattr(edit, edit.kind)
    what = f"{edit.kind} {which}" if isinstance(which, int) else KINDS[edit.kind]
    where = "a mask"
    if isinstance(edit.part, int | tuple):
        where = f"part {edit.part}".replace("part (", "parts (")
    strength = f"{edit.strength:+g}" if np.ndim(edit.strength) == 0 else "each its own"
    unit = " std" if edit.unit == "std" else ""
    return f"{what}, {where}\n{strength}{unit}"
