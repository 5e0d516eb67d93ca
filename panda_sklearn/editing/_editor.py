"""The editor: where images, parts and appearances meet.

Floor 3: see :mod:`panda_sklearn.editing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing._changes import (
    REFINEMENT_STEPS,
    Change,
    Term,
    check_edits,
    resolve,
)
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._ranking import COLUMNS, PairTries, rank, sort_table
from panda_sklearn.editing._targets import TargetSearch
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.validation import (
    check_choice,
    check_index,
    check_is_fitted,
    check_mask,
    check_number,
)

__all__ = ["LocalEditor"]


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

    def edit(
        self,
        latents: ArrayLike,
        edits: Edit | Sequence[Edit],
        *,
        refine: bool = False,
        target_change: float | None = None,
        region: ArrayLike | None = None,
    ) -> ArrayLike:
        r"""Generate edited images.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        edits : Edit or sequence of Edit
            What to change; several edits add up.

        refine : bool, default=False
            Whether to refine the parts to each sample first (section 3.5); masks stay
            as they are.

        target_change : float, default=None
            Multiply all strengths, for each image by a factor of its own, so that the
            region changes by this much: the root mean square over its pixels and
            colours, in the units of the images. See ``find_strengths``.

        region : array of shape ([n_samples,] \*image_spatial), default=None
            With ``target_change``, where the change is measured: values from 0 to 1.
            ``None`` is where the edits are.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Edited images. With every strength 0 they are the generator's own, bit for
            bit.

        Raises
        ------
        TypeError, ValueError
            If an index is out of range or no int, a part is constant, a vector, a mask
            or an array of strengths is of another shape, or ``refine`` is set and no
            edit is at a learnt part.

        Warns
        -----
        ConvergenceWarning
            If images do not reach ``target_change``; they are given the strength at
            which they came nearest.
        UserWarning
            If a part is constant once it is refined to a sample; that sample is left as
            it is there.
        """
        latents, origin = self._door(latents)
        change = self._change(check_edits(edits), len(latents), refine)
        if target_change is None:
            if region is not None:
                raise ValueError("region is only used with target_change; set that.")
            effective = any(term.has_effect() for term in change.terms)
            images = self.extractor._generate(latents, change if effective else None)
            return origin.give(images)
        search = self._search(change, target_change, region, len(latents))
        factors, masks = search.run(latents)
        return origin.give(search.images(latents, factors, masks))

    def find_strengths(
        self,
        latents: ArrayLike,
        edits: Edit | Sequence[Edit],
        target_change: float,
        *,
        refine: bool = False,
        region: ArrayLike | None = None,
    ) -> ArrayLike:
        r"""Find how strong edits must be to change the region by a given amount.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        edits : Edit or sequence of Edit
            What to change; strengths count relative to each other.

        target_change : float
            Root mean square change of the region, over its pixels and colours, in the
            units of the images: :math:`\lVert M * (x - x') \rVert / \lVert M \rVert`,
            with the mask M repeated along the colours.

        refine : bool, default=False
            As for ``edit``.

        region : array of shape ([n_samples,] \*image_spatial), default=None
            As for ``edit``.

        Returns
        -------
        factors : array of shape (n_samples,)
            What to multiply the strengths with for each image; within 1 % of the
            target.

        Warns
        -----
        ConvergenceWarning
            If images do not reach the target; their factor is that at which they came
            nearest.
        """
        latents, origin = self._door(latents)
        change = self._change(check_edits(edits), len(latents), refine)
        search = self._search(change, target_change, region, len(latents))
        factors, _ = search.run(latents)
        return origin.give(factors)

    def remove(
        self,
        latents: ArrayLike,
        appearance: int | ArrayLike,
        part: int | Sequence[int] | ArrayLike | None = None,
        *,
        strength: float | ArrayLike = 3.0,
        unit: str = "std",
        threshold: str | float | tuple = "mean",
        refine: bool = False,
    ) -> ArrayLike:
        r"""Remove an object by adding what is around it (section 4.1.1).

        With the appearance of the background, added where the object is, the generator
        fills the object's place with the background that suits each image.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int or array of shape (n_channels,)
            What is to be there instead, such as the background: an index, or any
            vector of the layer's channels.

        part : int, sequence of int, or array, default=None
            Where the object is, as in :class:`Edit`. ``None`` is wherever the
            appearance is not present in the sample (section 4.1.2).

        strength : float or array of shape (n_samples,), default=3.0
            How much of the appearance to add.

        unit : {"std", "alpha"}, default="std"
            Unit of the strength, as in :class:`Edit`.

        threshold : "mean", float or ("quantile", float), default="mean"
            Where the appearance counts as present, as for ``localize``; used if
            ``part`` is ``None``.

        refine : bool, default=False
            Whether to refine the part to each sample.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Images without the object.
        """
        if part is None:
            self._check_learnt(appearance, "part=None")
            checked, _ = self.extractor._check_latents(latents)
            present = self._localize(checked, appearance, threshold, size=None)
            part = ~present
            if not bool(part.any()):
                return self.extractor.generate(latents)
        return self.edit(latents, Edit(appearance, part, strength, unit), refine=refine)

    def mask(
        self,
        latents: ArrayLike,
        appearance: int,
        threshold: str | float | tuple = "mean",
        *,
        upsample_first: bool = True,
    ) -> ArrayLike:
        r"""Find where in the images an appearance is (section 4.1.2).

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int
            Index of the appearance.

        threshold : "mean", float or ("quantile", float), default="mean"
            Where it counts as present, as for ``localize``.

        upsample_first : bool, default=True
            Whether to bring the saliency to the images' size, linearly, and threshold
            that; or to threshold at the layer's size and enlarge the mask.

        Returns
        -------
        mask : boolean array of shape (n_samples, \*image_spatial)
            The thresholded saliency at the images' size.
        """
        latents, _ = self.extractor._check_latents(latents)
        self._check_learnt(appearance, "a mask")
        return self._localize(
            latents,
            appearance,
            threshold,
            size=self._image_spatial(),
            upsample_first=upsample_first,
        )

    def remove_pixels(
        self,
        latents: ArrayLike,
        appearance: int,
        *,
        fill: float | Sequence[float] = 1.0,
        threshold: str | float | tuple = "mean",
        upsample_first: bool = True,
    ) -> ArrayLike:
        r"""Remove the pixels where an appearance is, such as the background (figure 5).

        The images are the generator's own everywhere else.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int
            Index of the appearance.

        fill : float or sequence of n_colors floats, default=1.0
            What to put in the place of the pixels.

        threshold : "mean", float or ("quantile", float), default="mean"
            Where the appearance counts as present, as for ``localize``.

        upsample_first : bool, default=True
            As for ``mask``.

        Returns
        -------
        images : array of shape (n_samples, n_colors, \*image_spatial)
            Images with those pixels filled.
        """
        mask = self.mask(latents, appearance, threshold, upsample_first=upsample_first)
        n_colors = self.extractor.image_shape_[0]
        colors = np.asarray(fill, dtype=float)
        if colors.shape not in ((), (n_colors,)) or not np.isfinite(colors).all():
            raise ValueError(
                f"fill must be a finite number, or {n_colors} of them, one for each "
                f"colour; got {fill!r}."
            )
        colors = np.broadcast_to(colors, (n_colors,))
        images = self.extractor.generate(latents)
        where = as_tensor(mask, keep_type=True)[:, None]
        values = as_tensor(images, keep_type=True)
        color = torch.from_numpy(colors.copy()).to(values)
        color = color.reshape(-1, *[1] * (values.ndim - 2))
        return Origin.of(images).give(torch.where(where, color, values))

    def rank_edits(
        self,
        latents: ArrayLike,
        *,
        appearances: Iterable[int] | None = None,
        parts: Iterable[int] | None = None,
        strength: float = 3.0,
        unit: str = "std",
        sort_by: str = "roi_ratio",
        verbose: int = 0,
    ) -> dict[str, np.ndarray]:
        r"""Try pairs of appearances and parts, and say what each does.

        Each pair is tried on all samples, with ``extractor.batch_size`` images at a
        time and none kept, so that memory does not grow with the number of pairs or of
        samples.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents of a few samples; a handful is enough to tell good pairs from bad.

        appearances : iterable of int, default=None
            Which to try; ``None`` is all.

        parts : iterable of int, default=None
            Which to try; ``None`` is all but constant ones.

        strength : float, default=3.0
            Strength of each edit.

        unit : {"std", "alpha"}, default="std"
            Unit of the strength, as in :class:`Edit`.

        sort_by : {"roi_ratio", "effect", "consistency"}, default="roi_ratio"
            What to sort by; the best come first.

        verbose : int, default=0
            Whether to show a progress bar.

        Returns
        -------
        table : dict of ndarray of shape (n_pairs,)
            Columns, as ``pandas.DataFrame(table)`` takes them:

            - "appearance" and "part": the pair.
            - "effect": root mean square change inside the part, in the units of the
              images, :math:`\lVert M * (x - x') \rVert / \lVert M \rVert`; mean over
              samples. M is the part, scaled to reach from 0 to 1 and brought to the
              images' size.
            - "roi_ratio": how much changes outside the part relative to inside,
              equation (7); low is local.
            - "consistency": mean cosine of the changes inside, :math:`M * (x - x')`,
              of two samples: 1 if all change alike. NaN for a single sample.
        """
        latents, _ = self._door(latents)
        check_choice("sort_by", sort_by, sorted(COLUMNS))
        panda, extractor = self.decomposition, self.extractor
        every = as_tensor(panda.parts_).flatten(1)
        chosen = range(len(panda.appearances_)) if appearances is None else appearances
        if parts is None:
            low, high = every.aminmax(dim=1)
            parts = (high > low).nonzero()[:, 0].tolist()
        pairs = list(product(_ints(chosen, "appearances"), _ints(parts, "parts")))
        if not pairs:
            raise ValueError("There is no pair to try: appearances or parts are empty.")
        terms: dict[str, dict[int, Term]] = {"appearance": {}, "part": {}}
        for j, k in pairs:
            if j not in terms["appearance"] or k not in terms["part"]:
                (term,) = self._resolve([Edit(j, k, strength, unit)], None)
                terms["appearance"].setdefault(j, term)
                terms["part"].setdefault(k, term)
        shape = len(panda.appearances_), panda.map_shape_[0]
        vectors = every.new_zeros(shape, device=latents.device)
        for j, term in terms["appearance"].items():
            vectors[j] = term.vector.to(vectors) * (float(term.strength) * term.scale)
        masks = torch.zeros_like(every, device=latents.device)
        for k, term in terms["part"].items():
            masks[k] = term.mask.to(masks)
        tries = PairTries(
            extractor,
            panda._layout,
            vectors,
            masks,
            self._image_spatial(),
        )
        with tqdm(
            total=len(pairs),
            desc=f"{type(self).__name__}, pairs",
            disable=not verbose,
            mininterval=1,
        ) as bar:
            table = rank(tries, latents, pairs, done=bar.update)
        return sort_table(table, sort_by)

    # Helpers

    def _door(self, latents: ArrayLike) -> tuple[Tensor, Origin]:
        """Checked latents as a tensor, numpy's on the network's device."""
        latents, origin = self.extractor._check_latents(latents)
        if isinstance(latents, Tensor):
            return latents, origin
        tensor = as_tensor(latents, self.extractor._device(), keep_type=True)
        return tensor, origin

    def _image_spatial(self) -> tuple[int, ...]:
        """Spatial shape of the images; ValueError if they have none like the maps."""
        shape, n_axes = self.extractor.image_shape_, len(self.decomposition.map_shape_)
        if shape is None or len(shape) != n_axes:
            raise ValueError(
                f"This needs images of {n_axes - 1} spatial axes, as many as the maps "
                "have: of shape (n_samples, n_colors, *spatial). One image of the "
                f"network is of shape {shape}."
            )
        return tuple(shape[1:])

    def _resolve(self, edits: Sequence[Edit], n_samples: int | None) -> list[Term]:
        shape = self.extractor.image_shape_ or ()
        return resolve(edits, self.decomposition, tuple(shape[1:]), n_samples)

    def _change(
        self, edits: Sequence[Edit], n_samples: int | None, refine: bool
    ) -> Change:
        """The edits as a change of activations."""
        terms = self._resolve(edits, n_samples)
        if not refine:
            return Change(terms, self.decomposition._layout)
        if not any(term.parts for term in terms):
            raise ValueError(
                "refine=True refines learnt parts, but no edit is at one: masks are "
                "used as they are. Leave refine at False, or give indices of parts."
            )
        return Change(terms, self.decomposition._layout, self._refine)

    @own_arithmetic
    def _refine(self, maps: Tensor) -> Tensor:
        """Parts (n, R_S, S) refined to maps (n, C, S)."""
        return self.decomposition._refine(maps, REFINEMENT_STEPS)

    def _search(
        self, change: Change, target: float, region: Any, n_samples: int
    ) -> TargetSearch:
        """The search for strengths, its input checked."""
        target = check_number("target_change", target, above=0)
        if not change.terms:
            raise ValueError("target_change needs one edit at least.")
        if not all(bool(term.strength.all()) for term in change.terms):
            raise ValueError(
                "target_change multiplies the strengths: none of them may be 0."
            )
        spatial = self._image_spatial()
        if region is not None:
            region = check_mask(region, "region")
            if tuple(region.shape) not in (spatial, (n_samples, *spatial)):
                raise ValueError(
                    f"region must be of the images' shape {spatial}, or with "
                    f"{n_samples} samples before it, got {tuple(region.shape)}."
                )
            region = region.reshape(-1, *spatial)
        return TargetSearch(self.extractor, change, target, spatial, region)

    def _localize(
        self, latents: ArrayLike, appearance: Any, threshold: Any, **options: Any
    ) -> ArrayLike:
        """``localize`` on the activations of checked latents, batch by batch."""
        size = self.extractor.batch_size
        masks = []
        for start in range(0, len(latents), size):
            features = self.extractor._recall(latents[start : start + size])
            masks.append(
                self.decomposition.localize(features, appearance, threshold, **options)
            )
        if isinstance(masks[0], Tensor):
            return torch.cat(masks)
        return np.concatenate(masks)

    def _check_learnt(self, appearance: Any, what: str) -> None:
        """Raise unless the appearance is the index of a learnt one."""
        if isinstance(appearance, np.ndarray | Tensor | list) and np.ndim(appearance):
            raise ValueError(
                f"With {what} the appearance must be a learnt one, whose mean over the "
                "training data is known: give its index."
            )
        check_index("appearance", appearance, len(self.decomposition.appearances_))


def _ints(values: Any, name: str) -> list:
    """An iterable as a list; its items are checked where they are used."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}.")
    values = values.tolist() if isinstance(values, np.ndarray | Tensor) else values
    return list(dict.fromkeys(values))
