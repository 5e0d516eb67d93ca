"""Many edits of several images, side by side.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

import numpy as np

from panda_sklearn.editing._changes import change_of, check_edits
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.inspection._images import (
    as_pictures,
    changed_by,
    check_axes,
    check_editor,
    check_shares,
    count_latents,
    label_rows,
    new_axes,
)
from panda_sklearn.utils.parts import is_mask
from panda_sklearn.utils.validation import (
    check_flag,
    check_items,
    check_kind,
    check_value_range,
)

# What to call edits whose kind has no index.
KINDS = {
    "appearance": "a vector",
    "latent": "a direction",
    "coefficients": "coefficients",
    "features": "activations",
}


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
        What to call the edits.

    Attributes
    ----------
    axes_ : ndarray of shape (n_edits + 1, n_samples)
        The axes drawn on; set by ``plot``. The first row has the unedited pictures.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, before, after, labels):
        self.before = before
        self.after = after
        self.labels = labels

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
    ):
        """Make each of some edits of all images, and draw them.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (n_samples, ...)
            Latents of the images, a column each.

        edits : Edit or sequence of Edit
            The edits, a row each: their names are the labels, or what they are where
            they have none.

        refine : bool, default=False
            As for ``LocalEditor.edit``, of the edits that are at learnt parts.

        target_change : float, default=None
            As for ``LocalEditor.edit``: makes what the pictures show change by the same
            where the edits are.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        Returns
        -------
        display : EditGalleryDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_editor(editor)
        check_value_range(value_range)
        edits = check_edits(edits)
        n_samples = count_latents(editor, latents)
        check_axes(axes, len(edits) + 1, n_samples)
        check_flag("refine", refine)
        refined = [refine and not is_mask(edit.part) for edit in edits]
        # Fails, if so, before any work.
        of = editor.decomposition, Sizes.of(editor.extractor, n_samples)
        for edit, whether in zip(edits, refined, strict=True):
            change_of([edit], *of, refine=whether)
        how = changed_by(target_change, value_range)
        after = [
            as_pictures(editor.edit(latents, edit, refine=whether, **how), value_range)
            for edit, whether in zip(edits, refined, strict=True)
        ]
        before = as_pictures(editor.extractor.generate(latents), value_range)
        labels = [edit.name or _described(edit) for edit in edits]
        return cls(before, np.stack(after), labels).plot(axes=axes)

    def plot(self, *, axes=None):
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
        before = check_shares(self.before, "before", "n_samples", "height", "width", 3)
        after = check_shares(
            self.after, "after", "n_edits", *before.shape, fits="before"
        )
        labels = check_items("labels", self.labels, "a sequence of str")
        for label in labels:
            check_kind("each of labels", label, str)
        if len(labels) != len(after):
            raise ValueError(
                f"labels must be {len(after)}, to go with after, got {len(labels)}."
            )
        self.figure_, self.axes_ = new_axes(len(after) + 1, len(before), axes)
        for row, pictures in zip(self.axes_, [before, *after], strict=True):
            for ax, picture in zip(row, pictures, strict=True):
                ax.imshow(picture)
        label_rows(self.axes_, ["image", *labels])
        return self


def _described(edit):
    """An edit without a name in a few words."""
    which = getattr(edit, edit.kind)
    what = f"{edit.kind} {which}" if isinstance(which, int) else KINDS[edit.kind]
    where = "a mask"
    if isinstance(edit.part, int | tuple):
        where = f"part {edit.part}".replace("part (", "parts (")
    strength = f"{edit.strength:+g}" if np.ndim(edit.strength) == 0 else "each its own"
    unit = {"std": " std", "alpha": ""}[edit.unit]
    return f"{what}, {where}\n{strength}{unit}"
