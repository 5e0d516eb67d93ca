"""What varies at each part, drawn on one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_sklearn.decomposition import PartsAppearanceDecomposition, varying_parts
from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.editing._lookup import ROUNDING
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
from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.validation import check_indices, check_single

# Axes of a picture.
PICTURE = "height", "width", 3


@shared_docs
class VariationsDisplay:
    """One image, moved along the first variations of each part, in both directions.

    Use :meth:`from_editor` to make one.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3)
        The unedited picture, with values in [0, 1].

    pictures : ndarray of shape (n_parts, n_variations, 2, height, width, 3)
        The edited ones, at the negative and the positive strength.

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

    %(figure)s
    """

    def __init__(
        self,
        picture: ArrayLike,
        pictures: ArrayLike,
        parts: Sequence[int],
        variations: Sequence[int],
        strength: float,
    ) -> None:
        self.picture = picture
        self.pictures = pictures
        self.parts = parts
        self.variations = variations
        self.strength = strength

    @classmethod
    @shared_docs
    def from_editor(
        cls,
        editor: LocalEditor,
        latents: ArrayLike,
        *,
        parts: Sequence[int] | None = None,
        variations: Sequence[int] | None = None,
        strength: float = 2.0,
        given: str | None = None,
        value_range: tuple[float, float] | None = None,
        axes: Any = None,
    ) -> VariationsDisplay:
        """Edit an image along variations and draw them.

        Parameters
        ----------
        %(editor)s

        latents : array of shape (1, ...)
            Latents of the image.

        parts : sequence of int, default=None
            Parts, a row each. ``None`` is all that are not constant.

        variations : sequence of int, default=None
            Variations of each part, two columns each. ``None`` is the first three, or
            fewer if one of the parts has fewer.

        strength : float, default=2.0
            By how many standard deviations the part is moved along each variation, in
            both directions.

        given : "others", default=None
            Which variations; as for ``PartsAppearanceDecomposition.variations``.

        %(value_range)s

        %(axes)s

        Returns
        -------
        display : VariationsDisplay
            The display, drawn.

        %(raises)s
        """
        of = EditedPictures(editor, latents, value_range)
        of.check_one_image()
        panda = editor.decomposition
        parts = varying_parts(panda) if parts is None else parts
        parts = check_indices("parts", parts, len(panda.parts_))
        if variations is None:
            n = min((_n_varying(panda, k, given) for k in parts), default=0)
            variations = range(min(3, max(n, 1)))
        variations = check_indices("variations", variations, len(panda.appearances_))
        strength = check_single("strength", strength, above=0)
        check_axes(axes, len(parts), 2 * len(variations) + 1)
        edits = [
            Edit(None, k, sign * strength, variation=n, given=given)
            for k in parts
            for n in variations
            for sign in (-1, 1)
        ]
        terms: Any = of.check(edits).terms
        # The variations are looked up once, and edits made with the vectors found.
        found = [
            Edit(term.vector, edit.part, float(term.strength) * term.scale, "alpha")
            for edit, term in zip(edits, terms, strict=True)
        ]
        drawn = [of.after(edit)[0] for edit in found]
        plain = of.before[0]
        pictures = np.reshape(drawn, (len(parts), len(variations), 2, *plain.shape))
        return cls(plain, pictures, parts, variations, strength).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> VariationsDisplay:
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
        plain = check_unit(self.picture, "picture", *PICTURE)
        edited = check_unit(
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
            show(row, [plain, *pictures.reshape(-1, *plain.shape)])
        moves = [f"{n}: {s:+g} std" for n in variations for s in (-strength, strength)]
        label_columns(self.axes_, ["image", *moves])
        label_rows(self.axes_, [f"part {k}" for k in parts])
        return self


def _n_varying(
    panda: PartsAppearanceDecomposition, part: int, given: str | None
) -> int:
    """How many variations of a part occur in the training samples."""
    _, stds = panda.variations(part, given=given)
    return int((as_tensor(stds) > ROUNDING * float(stds[0])).sum())
