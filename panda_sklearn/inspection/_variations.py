"""What varies at each part, drawn on one image.

Floor 4: see :mod:`panda_sklearn.inspection`.
"""

from __future__ import annotations

import numpy as np

from panda_sklearn.decomposition import varying_parts
from panda_sklearn.editing import Edit
from panda_sklearn.editing._changes import change_of
from panda_sklearn.editing._lookup import ROUNDING, Sizes
from panda_sklearn.inspection._images import (
    as_picture_of,
    check_axes,
    check_editor,
    check_labels,
    check_shares,
    count_latents,
    label_columns,
    label_rows,
    new_axes,
)
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.validation import (
    check_indices,
    check_single,
    check_value_range,
)


def _n_varying(panda, part, given):
    """How many variations of a part occur in the training samples."""
    _, stds = panda.variations(part, given=given)
    return int((as_tensor(stds) > ROUNDING * float(stds[0])).sum())


# Axes of a picture.
PICTURE = "height", "width", 3


class VariationsDisplay:
    """One image, moved along the first variations of each part, in both directions.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3)
        The unedited picture, with values in [0, 1].

    pictures : ndarray of shape (n_parts, n_variations, 2, height, width, 3)
        The edited ones, with the negative and the positive strength.

    parts : sequence of int
        Indices of the parts.

    variations : sequence of int
        Indices of the variations.

    strength : float
        The strength, in standard deviations.

    Attributes
    ----------
    axes_ : ndarray of shape (n_parts, 2 * n_variations + 1)
        The axes drawn on; set by ``plot``. The first column has the unedited picture.

    figure_ : matplotlib.figure.Figure
        The figure; set by ``plot``.
    """

    def __init__(self, picture, pictures, parts, variations, strength):
        self.picture = picture
        self.pictures = pictures
        self.parts = parts
        self.variations = variations
        self.strength = strength

    @classmethod
    def from_editor(
        cls,
        editor,
        latents,
        *,
        parts=None,
        variations=None,
        strength=2.0,
        given=None,
        value_range=(-1, 1),
        axes=None,
    ):
        """Edit an image along variations and draw them.

        Parameters
        ----------
        editor : LocalEditor
            The editor.

        latents : array of shape (1, ...)
            Latents of the image.

        parts : sequence of int, default=None
            Parts, a row each; ``None`` is all but constant ones.

        variations : sequence of int, default=None
            Variations of each part, two columns each; ``None`` is the first three, as
            far as all of the parts vary in so many.

        strength : float, default=2.0
            By how many of their standard deviations the part is moved along them, in
            both directions.

        given : "others", default=None
            Which variations; as for ``PartsAppearanceDecomposition.variations``.

        value_range : tuple of float, default=(-1, 1)
            Values of black and white in the images.

        axes : array of matplotlib axes, default=None
            Axes to draw on; ``None`` makes a figure.

        Returns
        -------
        display : VariationsDisplay
            The display, drawn.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or its shape does not fit.
        """
        check_editor(editor)
        check_value_range(value_range)
        panda = editor.decomposition
        parts = varying_parts(panda) if parts is None else parts
        parts = check_indices("parts", parts, len(panda.parts_))
        n_appearances = len(panda.appearances_)
        if variations is None:
            n = min((_n_varying(panda, k, given) for k in parts), default=0)
            variations = range(min(3, max(n, 1)))
        variations = check_indices("variations", variations, n_appearances)
        strength = check_single("strength", strength, above=0)
        n_samples = count_latents(editor, latents)
        if n_samples != 1:
            raise ValueError(
                f"The rows are of one image: expected latents of 1 sample, got "
                f"{n_samples}. Pass latents[:1]."
            )
        check_axes(axes, len(parts), 2 * len(variations) + 1)
        edits = [
            Edit(None, k, sign * strength, variation=n, given=given)
            for k in parts
            for n in variations
            for sign in (-1, 1)
        ]
        # Fails, if so, before any work; and finds the variations once.
        change = change_of(edits, panda, Sizes.of(editor.extractor, n_samples))
        found = [
            Edit(term.vector, edit.part, float(term.strength) * term.scale, "alpha")
            for edit, term in zip(edits, change.terms, strict=True)
        ]
        drawn = [as_picture_of(editor.edit(latents, e), value_range) for e in found]
        plain = as_picture_of(editor.extractor.generate(latents), value_range)
        pictures = np.reshape(drawn, (len(parts), len(variations), 2, *plain.shape))
        return cls(plain, pictures, parts, variations, strength).plot(axes=axes)

    def plot(self, *, axes=None):
        """Draw.

        Parameters
        ----------
        axes : array of matplotlib axes, default=None
            A row for each part, two columns for each variation and one before them.
            ``None`` makes a figure.

        Returns
        -------
        self : VariationsDisplay
            The display.
        """
        plain = check_shares(self.picture, "picture", *PICTURE)
        edited = check_shares(
            self.pictures,
            "pictures",
            *("n_parts", "n_variations", 2),
            *plain.shape,
            fits="picture",
        )
        n_parts, n_variations = edited.shape[:2]
        parts = check_labels(self.parts, "parts", n_parts, fits="pictures")
        variations = check_labels(
            self.variations, "variations", n_variations, fits="pictures"
        )
        strength = check_single("strength", self.strength)
        self.figure_, self.axes_ = new_axes(n_parts, 2 * n_variations + 1, axes)
        for row, pictures in zip(self.axes_, edited, strict=True):
            row[0].imshow(plain)
            for ax, picture in zip(
                row[1:], pictures.reshape(-1, *plain.shape), strict=True
            ):
                ax.imshow(picture)
        moves = [f"{n}: {s:+g} std" for n in variations for s in (-strength, strength)]
        label_columns(self.axes_, ["image", *moves])
        label_rows(self.axes_, [f"part {k}" for k in parts])
        return self
