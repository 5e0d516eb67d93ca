"""An editor's images as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from panda_sklearn.editing import Edit, LocalEditor
from panda_sklearn.editing._changes import Change, change_of
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.feature_extractor import check_latents
from panda_sklearn.inspection._images import COLORS, IMAGES, as_pictures, range_of
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    check_kind,
    check_parameters,
    check_single,
    check_value_range,
)


class EditedPictures:
    """Pictures of an editor's images, before and after edits.

    The arguments are checked at once, and edits by ``check``. Call that for all edits
    before the first is made.

    Parameters
    ----------
    editor : LocalEditor
        An editor of images that can be drawn.

    latents : array of shape (n_samples, ...)
        Latents of the images.

    value_range : tuple of float or None
        Values of black and white. ``None`` finds them by the unedited images.

    target_change : float, default=None
        As for ``LocalEditor.edit``, for what the pictures show.

    Attributes
    ----------
    n_samples : int
        How many images there are.
    """

    def __init__(
        self,
        editor: LocalEditor,
        latents: ArrayLike,
        value_range: tuple[float, float] | None,
        target_change: float | None = None,
    ) -> None:
        check_kind("editor", editor, LocalEditor)
        shape = editor.extractor.image_shape_
        if shape is None or len(shape) != 3 or shape[0] not in COLORS:
            raise ValueError(
                f"editor must have a network that makes images of shape {IMAGES}, got "
                f"one whose images have shape {shape}."
            )
        if value_range is not None:
            value_range = check_value_range(value_range)
        if target_change is not None:
            check_single("target_change", target_change, above=0)
        check_parameters(editor.decomposition)
        self.n_samples = len(check_latents(editor.extractor, latents)[0])
        self._editor, self._latents = editor, latents
        self._value_range, self._target_change = value_range, target_change

    def check_one_image(self) -> None:
        """Raise ValueError unless there is one image."""
        if self.n_samples != 1:
            raise ValueError(
                "This display is of one image: expected latents of 1 sample, got "
                f"{self.n_samples}. Pass latents[:1]."
            )

    def check(self, edits: Sequence[Edit], *, refine: bool = False) -> Change:
        """What these edits do together; raises what ``after`` would raise."""
        sizes = Sizes.of(self._editor.extractor, self.n_samples)
        return change_of(edits, self._editor.decomposition, sizes, refine=refine)

    @cached_property
    def _images(self) -> ArrayLike:
        return self._editor.extractor.generate(self._latents)

    @cached_property
    def _range(self) -> tuple[float, float]:
        if self._value_range is not None:  # so that no image is made for it
            return self._value_range
        return range_of(self._images, None)

    @cached_property
    def before(self) -> np.ndarray:
        """The unedited pictures (n_samples, height, width, 3)."""
        return as_pictures(self._images, self._range)

    def after(
        self, edits: Edit | Sequence[Edit], *, refine: bool = False
    ) -> np.ndarray:
        """Pictures with the edits (n_samples, height, width, 3)."""
        how: dict[str, Any] = {}
        if self._target_change is not None:
            how = {"target_change": self._target_change, "value_range": self._range}
        images = self._editor.edit(self._latents, edits, refine=refine, **how)
        return as_pictures(images, self._range)
