"""Editing images at a part with an appearance (section 3.3 of the paper).

Floor 3: joins a fitted extractor and a fitted decomposition, which do not know each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor
from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.validation import check_index, check_is_fitted

__all__ = ["Edit", "LocalEditor"]


@dataclass(frozen=True)
class Edit:
    r"""An appearance added at a part.

    Activations :math:`Z_i` become :math:`Z_i + \alpha a_j \hat p_k^\top` (section
    3.3), where :math:`\hat p_k` is the part scaled to reach from 0 to 1.

    Parameters
    ----------
    appearance : int
        Index j of the appearance.

    part : int
        Index k of the part.

    strength : float
        The factor alpha, in units of the appearance vector; negative values take the
        appearance away.

    Raises
    ------
    TypeError, ValueError
        If ``strength`` is not a finite number.
    """

    appearance: int
    part: int
    strength: float

    def __post_init__(self):
        if isinstance(self.strength, bool) or not isinstance(self.strength, Real):
            raise TypeError(
                f"strength must be a number, got {self.strength!r} of type "
                f"{type(self.strength).__name__}."
            )
        if not np.isfinite(self.strength):
            raise ValueError(f"strength must be finite, got {self.strength!r}.")


class LocalEditor:
    """Edits a generator's images locally.

    Parameters
    ----------
    extractor : GeneratorFeatureExtractor
        Fitted, of the layer to edit.

    decomposition : PartsAppearanceDecomposition
        Fitted on that layer's activations.

    Raises
    ------
    TypeError
        If they are of other types.
    sklearn.exceptions.NotFittedError
        If one is not fitted.
    ValueError
        If the decomposition was fitted on activations of another shape.

    See Also
    --------
    GeneratorFeatureExtractor : Takes activations out of a network.
    PartsAppearanceDecomposition : Learns parts and appearances.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from panda_sklearn import (
    ...     Edit,
    ...     GeneratorFeatureExtractor,
    ...     LocalEditor,
    ...     PartsAppearanceDecomposition,
    ... )
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 20, random_state=0)
    >>> pipeline = make_pipeline(
    ...     GeneratorFeatureExtractor(generator, "block8"),
    ...     PartsAppearanceDecomposition(4, 10, max_iter=20, tol=0, random_state=0),
    ... ).fit(latents)
    >>> editor = LocalEditor.from_pipeline(pipeline)
    >>> edit = Edit(appearance=1, part=2, strength=5.0)
    >>> editor.edit(latents[:4], edit).shape
    torch.Size([4, 3, 64, 64])
    """

    def __init__(self, extractor, decomposition):
        for estimator, expected in (
            (extractor, GeneratorFeatureExtractor),
            (decomposition, PartsAppearanceDecomposition),
        ):
            if not isinstance(estimator, expected):
                raise TypeError(
                    f"Expected a {expected.__name__}, got a {type(estimator).__name__}."
                )
            check_is_fitted(estimator)
        seen = decomposition._layout.sample_shape
        if seen != extractor.feature_shape_:
            raise ValueError(
                f"The extractor gives activations of shape {extractor.feature_shape_}, "
                f"but the decomposition was fitted on {seen}. Fit it on the "
                "extractor's output as it is."
            )
        self.extractor = extractor
        self.decomposition = decomposition

    @classmethod
    def from_pipeline(cls, pipeline):
        """Make an editor from a fitted pipeline.

        Parameters
        ----------
        pipeline : sklearn.pipeline.Pipeline
            A pipeline in which the decomposition directly follows the extractor; other
            steps may come after them.

        Returns
        -------
        editor : LocalEditor
            The editor of these two steps.
        """
        if not isinstance(pipeline, Pipeline):
            raise TypeError(f"Expected a Pipeline, got a {type(pipeline).__name__}.")
        steps = [step for _, step in pipeline.steps if not isinstance(step, str)]
        for first, second in pairwise(steps):
            if isinstance(first, GeneratorFeatureExtractor) and isinstance(
                second, PartsAppearanceDecomposition
            ):
                return cls(first, second)
        raise ValueError(
            "The pipeline has no PartsAppearanceDecomposition directly after a "
            "GeneratorFeatureExtractor; its steps are "
            f"{[type(step).__name__ for step in steps]}."
        )

    def edit(self, latents: ArrayLike, edits: Edit | Sequence[Edit]) -> ArrayLike:
        """Generate edited images.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        edits : Edit or sequence of Edit
            What to change; several edits add up.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Edited images. With every strength 0 they are the generator's own, bit for
            bit.

        Raises
        ------
        TypeError, ValueError
            If an index is out of range or no int, or a part is constant.
        """
        edits = [edits] if isinstance(edits, Edit) else list(edits)
        change = self._change(edits)

        def add(features: Tensor) -> Tensor:
            layout = self.decomposition._layout
            maps = layout.to_maps(features)
            return layout.from_maps(maps + change.to(features))

        # Adding zeros would turn -0.0 into 0.0, so there is nothing to add instead.
        return self.extractor.generate(
            latents, features=add if bool(change.any()) else None
        )

    def _change(self, edits: Sequence[Edit]) -> Tensor:
        """The sum of alpha a_j p_k' over the edits, of shape (C, S)."""
        appearances = as_tensor(self.decomposition.appearances_)  # (R_C, C)
        parts = as_tensor(self.decomposition.parts_).flatten(1)  # (R_S, S)
        change = torch.zeros_like(appearances[0, :, None] * parts[0])
        for edit in edits:
            if not isinstance(edit, Edit):
                raise TypeError(
                    f"Expected an Edit, got one of type {type(edit).__name__}."
                )
            j = check_index("appearance", edit.appearance, len(appearances))
            k = check_index("part", edit.part, len(parts))
            low, high = parts[k].min(), parts[k].max()
            if not bool(high > low):
                raise ValueError(
                    f"Part {k} is constant ({float(high):g} everywhere) and cannot be "
                    "scaled to reach from 0 to 1. Choose another part."
                )
            scaled = (parts[k] - low) / (high - low)
            change += edit.strength * appearances[j, :, None] * scaled
        return change
