"""The editor: where images, parts and appearances meet.

Floor 3: see :mod:`panda_sklearn.editing`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.decomposition import (
    PartsAppearanceDecomposition,
    layout_of,
    varying_parts,
)
from panda_sklearn.editing._changes import Change, change_of, check_edits
from panda_sklearn.editing._directions import DERIVATIVES, find_directions
from panda_sklearn.editing._donors import transfer_change
from panda_sklearn.editing._edit import UNITS, Edit
from panda_sklearn.editing._lookup import Sizes, weights_of
from panda_sklearn.editing._prepared import PreparedImages
from panda_sklearn.editing._ranking import COLUMNS, Trials, sort_table, tabulate
from panda_sklearn.editing._targets import TargetSearch
from panda_sklearn.editing._terms import VectorTerm
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    Replays,
    check_latents,
    extract,
    generate_changed,
    recorded,
    running_device,
)
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.hashing import fingerprint
from panda_sklearn.utils.similarity import check_similarity
from panda_sklearn.utils.thresholds import check_threshold
from panda_sklearn.utils.validation import (
    as_numeric,
    check_choice,
    check_count,
    check_flag,
    check_index,
    check_indices,
    check_is_fitted,
    check_kind,
    check_mask,
    check_numbers,
    check_parameters,
    check_single,
    check_value_range,
    check_verbose,
    is_bool,
    shown,
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

    Warns
    -----
    UserWarning
        If the decomposition is from a file that says that its network had other
        weights.

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
        check_kind("extractor", extractor, GeneratorFeatureExtractor)
        check_kind("decomposition", decomposition, PartsAppearanceDecomposition)
        for estimator in (extractor, decomposition):
            check_is_fitted(estimator)
            check_parameters(estimator)
        seen = layout_of(decomposition).sample_shape
        if seen != extractor.feature_shape_:
            raise ValueError(
                f"The extractor gives activations of shape {extractor.feature_shape_}, "
                f"but the decomposition was fitted on {seen}. Fit it on the "
                "extractor's output as it is."
            )
        known = getattr(decomposition, "network_", None)
        if known is not None and known != _fingerprint_of(extractor, known):
            warnings.warn(
                f"The decomposition is of a network of fingerprint {known!r}. The "
                "extractor's has other weights, where parts and appearances may mean "
                "other things. Fit it on this network, or give the extractor that one.",
                UserWarning,
                stacklevel=2,
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

        Raises
        ------
        TypeError, ValueError
            If it is no pipeline, or has no such steps.
        """
        check_kind("pipeline", pipeline, Pipeline)
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
        value_range: tuple[float, float] | None = None,
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

        value_range : tuple of float, default=None
            With ``target_change``, values of black and white that images are clipped
            to before the change is measured, as pictures are; ``None`` measures values
            as they are, also those that no picture shows.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Edited images. With every strength 0 they are those that the extractor's
            ``generate`` gives of the same latents, bit for bit.

        Raises
        ------
        TypeError, ValueError
            If there is no edit, an index is out of range or no int, a part is constant,
            an array of an edit is of another shape, a strength does not fit in float32,
            or ``refine`` is set and no edit is at a learnt part.

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
            for name, value in (("region", region), ("value_range", value_range)):
                if value is not None:
                    raise ValueError(
                        f"{name} is only used with target_change; set that."
                    )
            return origin.give(self._changed(latents, change))
        search = self._search(change, target_change, region, value_range, len(latents))
        factors, places = search.run(latents)
        return origin.give(search.images(latents, factors, places))

    def prepare(self, latents: ArrayLike) -> PreparedImages:
        """Get ready to edit the same images many times.

        What the network does before the edited layer is done once, and kept, and so are
        variations that are looked up: for a slider, or a search. That takes the memory
        of what its layers give up to there, and pays where the edited layer is late, as
        in the late steps of a diffusion model. Later changes of the network's weights
        or of the decomposition are not noticed. A network that makes other images when
        it is given what is kept is run whole each time.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        Returns
        -------
        prepared : PreparedImages
            With the unedited ``images``, and ``edit``.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` are of another shape than the extractor was fitted on, or
            hold something else than finite numbers.

        Examples
        --------
        >>> from panda_sklearn import Edit
        >>> from panda_sklearn.datasets import load_face_edits, sample_latents
        >>> editor, _ = load_face_edits()
        >>> latents = sample_latents(editor.extractor.generator, 2, random_state=0)
        >>> prepared = editor.prepare(latents)
        >>> for strength in (1.0, 2.0, 3.0):
        ...     images = prepared.edit(Edit(variation=0, part=4, strength=strength))
        """
        latents, origin = self._door(latents)
        images, replays = recorded(self.extractor, latents)
        known: dict = {}

        def edit(edits: Any, refine: Any) -> ArrayLike:
            check_flag("refine", refine)
            change = self._change(check_edits(edits), len(latents), refine, known)
            return origin.give(self._changed(latents, change, replays))

        return PreparedImages(origin.give(latents), origin.give(images), edit)

    def find_strengths(
        self,
        latents: ArrayLike,
        edits: Edit | Sequence[Edit],
        target_change: float,
        *,
        refine: bool = False,
        region: ArrayLike | None = None,
        value_range: tuple[float, float] | None = None,
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

        value_range : tuple of float, default=None
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
        search = self._search(change, target_change, region, value_range, len(latents))
        factors, _ = search.run(latents)
        return origin.give(factors)

    def transfer(
        self,
        latents: ArrayLike,
        donors: ArrayLike,
        part: Any,
        amount: float | ArrayLike = 1.0,
        *,
        mix: bool = False,
        mean: bool = False,
        refine: bool = False,
    ) -> ArrayLike:
        r"""Give images the part of others.

        Moves the coefficients at a part towards those of donors; or, with ``mix``, the
        activations themselves. To combine it with other edits, give ``edit`` an
        :class:`Edit` with the donors' ``coefficients``, or ``features``.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        donors : array of shape (n_donors, ...)
            Latents of the images to take the part from: one for all, or one for each of
            the ``latents``.

        part : int, sequence of int, or array
            Which part, as in :class:`Edit`.

        amount : float or array of shape (n_samples,), default=1.0
            The share of the way, 1 all of it. An array is one for each image.

        mix : bool, default=False
            Whether to move the activations at the part, with what the factors do not
            reconstruct, in place of the coefficients.

        mean : bool, default=False
            Whether the donor is the mean of all ``donors``, of their coefficients or
            activations.

        refine : bool, default=False
            Whether to refine the part to each sample first and, for coefficients, to
            each donor.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Images with the part of the donors.

        Raises
        ------
        TypeError, ValueError
            As ``edit``, or if there are neither one donor nor one for each sample.

        See Also
        --------
        Edit : What ``coefficients`` and ``features`` do.

        Examples
        --------
        >>> from panda_sklearn.datasets import load_face_edits, sample_latents
        >>> editor, edits = load_face_edits()
        >>> smile = next(edit for edit in edits if edit.name == "smile")
        >>> latents = sample_latents(editor.extractor.generator, 5, random_state=0)
        >>> faces, donor = latents[:4], latents[4:]
        >>> editor.transfer(faces, donor, smile.part).shape
        torch.Size([4, 3, 64, 64])
        """
        for name, flag in (("mix", mix), ("mean", mean), ("refine", refine)):
            check_flag(name, flag)
        latents, origin = self._door(latents)
        donors, _ = self._door(donors, "donors")
        change = transfer_change(
            self.extractor,
            self.decomposition,
            len(latents),
            donors,
            part,
            amount,
            mix=mix,
            mean=mean,
            refine=refine,
        )
        return origin.give(self._changed(latents, change))

    def remove(
        self,
        latents: ArrayLike,
        appearance: int | ArrayLike | None = None,
        part: int | Sequence[int] | ArrayLike | None = None,
        *,
        strength: float | ArrayLike = 3.0,
        unit: str = "std",
        threshold: str | float | tuple = "mean",
        refine: bool = False,
        variation: int | None = None,
        given: str | None = None,
    ) -> ArrayLike:
        r"""Remove an object by adding what is around it (section 4.1.1).

        With the appearance of the background, added where the object is, the generator
        fills the object's place with the background that suits each image.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int or array of shape (n_channels,), default=None
            What is to be there instead, such as the background: an index, or any
            vector of the layer's channels. Exactly one of this and ``variation`` must
            be given.

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

        variation : int, default=None
            A variation of the part, in the place of an appearance: one along which the
            object comes and goes.

        given : "others", default=None
            With ``variation``, which ones; as in :class:`Edit`.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Images without the object.

        Raises
        ------
        TypeError, ValueError
            As ``edit``, or if ``threshold`` is something else.
        """
        check_threshold(threshold)
        check_choice("unit", unit, UNITS)
        if (appearance is None) == (variation is None):
            raise ValueError(
                "Give exactly one of appearance and variation, got "
                f"appearance={shown(appearance)} and variation={shown(variation)}."
            )
        what: dict[str, Any] = {"variation": variation, "given": given}
        if part is None:
            if variation is not None:
                raise ValueError("A variation is of a part: say which with part.")
            self._check_learnt(appearance, "part=None")
            checked, _ = self._check_latents(latents)
            everywhere = np.ones(self.decomposition.map_shape_[1:])
            edit = Edit(appearance, everywhere, strength, unit, **what)
            self._change([edit], len(checked), refine)  # fails, if so, before any work
            present = self._localize(checked, appearance, threshold, size=None)
            part = ~present
            if not bool(part.any()):
                return self.extractor.generate(latents)
        edit = Edit(appearance, part, strength, unit, **what)
        return self.edit(latents, edit, refine=refine)

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

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or the images are not of as many spatial
            axes as the maps.
        """
        latents, _ = self._check_latents(latents)
        self._check_learnt(appearance, "a mask")
        check_threshold(threshold)
        check_flag("upsample_first", upsample_first)
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

        Raises
        ------
        TypeError, ValueError
            As ``mask``, or if ``fill`` is something else.
        """
        self._image_spatial()
        colors = _colors(fill, self.extractor.image_shape_[0])
        mask = self.mask(latents, appearance, threshold, upsample_first=upsample_first)
        images = self.extractor.generate(latents)
        where = as_tensor(mask, keep_type=True)[:, None]
        values = as_tensor(images, keep_type=True)
        color = torch.from_numpy(np.array(colors)).to(values)
        color = color.reshape(-1, *[1] * (values.ndim - 2))
        return Origin.of(images).give(torch.where(where, color, values))

    def rank_edits(
        self,
        latents: ArrayLike,
        *,
        appearances: Iterable[int] | None = None,
        parts: Iterable[int] | None = None,
        variations: Iterable[int] | None = None,
        strength: float | Sequence[float] = (1.5, 3.0),
        unit: str = "std",
        sort_by: str = "score",
        value_range: tuple[float, float] | None = None,
        verbose: int = 0,
    ) -> dict[str, np.ndarray]:
        r"""Try appearances, and variations, at parts, and say what each does.

        Each is tried on all samples, in both directions, with ``extractor.batch_size``
        images at a time and none kept, so that memory does not grow with the number of
        edits or of samples.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents of a few samples; a handful is enough to tell good edits from bad.

        appearances : iterable of int, default=None
            Which to try; ``None`` is all, or none where ``variations`` are given.

        parts : iterable of int, default=None
            Which to try; ``None`` is all but constant ones.

        variations : iterable of int, default=None
            Which variations of each part to try besides; ``None`` is none.

        strength : float or sequence of float, default=(1.5, 3.0)
            How strong, above 0: each is tried with either sign.

        unit : {"std", "alpha"}, default="std"
            Unit of the strengths, as in :class:`Edit`.

        sort_by : str, default="score"
            The column to sort by, "score", "roi_ratio", "effect", "consistency" or
            "distance"; the best come first.

        value_range : tuple of float, default=None
            Values of black and white. With them images are clipped, as pictures are,
            before they are compared, and "ssim" and "psnr" are reported, which needs
            the extra "metrics". ``None`` compares images as they are.

        verbose : int, default=0
            Whether to show a progress bar.

        Returns
        -------
        table : dict of ndarray of shape (n_edits,)
            Columns, as ``pandas.DataFrame(table)`` takes them:

            - "edit": the :class:`Edit` itself, to be used as it is.
            - "appearance", "variation" and "part": what was tried where. One of the
              first two is -1: the edit has the other.
            - "strength" and "sign": how strong, with its sign, and the sign alone.
            - "effect": root mean square change inside the part, in the units of the
              images, :math:`\lVert M * (x - x') \rVert / \lVert M \rVert`; mean over
              samples. M is the part, scaled to reach from 0 to 1 and brought to the
              images' size.
            - "roi_ratio": how much changes outside the part relative to inside,
              equation (7); low is local.
            - "ssim" and "psnr", with ``value_range``: how alike the rest of the images
              remains, :func:`~panda_sklearn.metrics.outside_ssim` and
              :func:`~panda_sklearn.metrics.outside_psnr`.
            - "consistency": mean cosine of the changes inside, :math:`M * (x - x')`,
              of two samples: 1 if all change alike. NaN for a single sample.
            - "distance": how unlike those of the training samples the edited
              coefficients at the part are, as ``part_distances`` of the decomposition;
              about 1 is natural. Mean over samples; NaN if it is not known, of files
              written before it was.
            - "score": consistency, divided by the distance where that is above 1 (or
              multiplied, where it is negative). High for edits that do the same to all
              and stay among what occurs. Of a single sample as if consistency were 1.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, an index is out of range, or a part is
            constant.
        ImportError
            If ``value_range`` is given and torchmetrics is not installed. With it
            images need two or three axes of 6 pixels at least.
        """
        latents, _ = self._door(latents)
        check_choice("sort_by", sort_by, sorted(COLUMNS))
        check_choice("unit", unit, UNITS)
        verbose = check_verbose(verbose)
        if value_range is not None:
            value_range = check_value_range(value_range)
            check_similarity(self._image_spatial())
        strengths = _both_signs(strength)
        panda = self.decomposition
        n_appearances = len(panda.appearances_)
        parts = varying_parts(panda) if parts is None else parts
        parts = _distinct("parts", parts, len(panda.parts_))
        if variations is not None:
            variations = _distinct("variations", variations, n_appearances)
        if appearances is not None or variations is None:
            appearances = range(n_appearances) if appearances is None else appearances
            appearances = _distinct("appearances", appearances, n_appearances)
        # An appearance is one vector at all parts, a variation one at each.
        tried = [(Edit(j, parts[0], 1.0, unit), parts) for j in appearances or ()]
        for n in variations or ():
            tried += [(Edit(None, k, 1.0, unit, variation=n), [k]) for k in parts]
        # Fails, if so, before any work.
        largest = max(strengths)
        self._change([replace(edit, strength=largest) for edit, _ in tried], None)
        terms = self._change([edit for edit, _ in tried], None).terms
        places = self._change([Edit(0, k) for k in parts], None).terms
        trials = Trials.of(
            self.extractor,
            panda,
            vectors=[(cast(VectorTerm, t).vector, t.scale) for t in terms],
            masks={k: place.mask for k, place in zip(parts, places, strict=True)},
            image_spatial=self._image_spatial(),
            value_range=value_range,
            device=latents.device,
        )
        with tqdm(
            total=sum(len(at) for _, at in tried) * len(strengths),
            desc=f"{type(self).__name__}, edits",
            disable=not verbose,
            mininterval=1,
        ) as bar:
            table = tabulate(trials, latents, tried, strengths, done=bar.update)
        return sort_table(table, sort_by)

    def find_directions(
        self,
        latents: ArrayLike,
        part: Any,
        n_directions: int = 5,
        region: ArrayLike | None = None,
        *,
        naturalness: float = 0.003,
        derivatives: str = "auto",
        verbose: int = 0,
    ) -> ArrayLike:
        r"""Find vectors that change a region of the image, and little else.

        Appearances are what the activations are made of; what a vector does to the
        image only the rest of the network knows. Of all vectors v of channels those are
        found that maximise

        .. math::
            \frac{\sum_i \lVert M * J_i v \rVert^2}{\sum_i \lVert (1 - M) * J_i v
            \rVert^2 + \gamma h \, v^\top K^{-1} v}

        one after the other, where :math:`J_i` is the derivative of the image by what is
        added at the part, M the region, K the covariance of what the part shows in the
        training data, and h the largest that the sum before it can be for a v one
        standard deviation long.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents of a few samples, such as 12. Directions found on these work on
            others.

        part : int, sequence of int, or array of shape (\*spatial)
            Where the vector is added, as in :class:`Edit`; the same for all samples.

        n_directions : int, default=5
            How many, at most as many as there are channels.

        region : array of shape (\*image_spatial), default=None
            Where the image is to change: values from 0 to 1. ``None`` is where the part
            is.

        naturalness : float, default=0.003
            :math:`\gamma`, at least 0. At 0 directions are as local as can be, but may
            lead where no image is; at 1 they keep to what varies most in the training
            data. Below 0.0001 it is that, since there must be some.

        derivatives : {"auto", "exact", "differences"}, default="auto"
            Whether to take exact derivatives in forward mode (Jacobian-vector
            products), or central differences of images; "auto" is exact where the
            network allows it, and warns where it does not.

        verbose : int, default=0
            Whether to show a progress bar; it says which derivatives are taken.

        Returns
        -------
        directions : array of shape (n_directions, n_channels)
            Vectors of length 1, the best first, for ``Edit(direction, part, strength,
            unit="alpha")``.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, an index is out of range, a part is
            constant or does not vary in the training data, what is added there does not
            reach the region, or exact derivatives are asked for and the network has
            none.

        Warns
        -----
        UserWarning
            If "auto" takes differences.
        ConvergenceWarning
            If directions of many channels are not the best there are.

        See Also
        --------
        rank_edits : Tries appearances and variations.

        Notes
        -----
        The derivative is formed, a pass of the network for each channel of each sample;
        with more than 512 channels, or where one sample's takes more than 1 GiB, it is
        only multiplied with, forwards and backwards, and directions are approximate.
        Differences are always formed, in whatever memory that takes. Where the network
        draws noise they are of one image at a time, so that all have the same.

        References
        ----------
        The split of the image into a region and the rest is that of J. Zhu et al.,
        "Low-Rank Subspaces in GANs" (NeurIPS, 2021), and of S. Chen et al., "Exploring
        Low-Dimensional Subspaces in Diffusion Models for Controllable Image Editing"
        (NeurIPS, 2024), who take the leading directions of the one and project out
        those of the other.
        """
        latents, origin = self._door(latents)
        n_channels = self.decomposition.map_shape_[0]
        n_directions = check_count("n_directions", n_directions)
        if n_directions > n_channels:
            raise ValueError(
                f"n_directions must be at most {n_channels}, the number of channels, "
                f"got {n_directions}."
            )
        naturalness = check_single("naturalness", naturalness, at_least=0)
        check_choice("derivatives", derivatives, DERIVATIVES)
        verbose = check_verbose(verbose)
        spatial = self._image_spatial()
        edit = Edit(0, part)
        (term,) = self._change([edit], None).terms
        if region is None:
            shape = self.decomposition.map_shape_
            (where,) = term.outline(slice(None), term.mask, shape, spatial)
        else:
            where = check_mask(region, "region", f"({', '.join(map(str, spatial))})")
            if tuple(where.shape) != spatial:
                raise ValueError(
                    f"region must be of the images' shape {spatial}, got "
                    f"{tuple(where.shape)}."
                )
        with torch.inference_mode(False):
            found = find_directions(
                self.extractor,
                self.decomposition,
                latents.clone(),
                term.mask.clone(),
                weights_of(edit, term.mask, self.decomposition),
                where.clone(),
                n_directions,
                naturalness=naturalness,
                derivatives=derivatives,
                verbose=verbose,
            )
        return origin.give(found)

    # Helpers

    def _check_latents(
        self, latents: ArrayLike, name: str = "latents"
    ) -> tuple[ArrayLike, Origin]:
        """Checked latents; with the parameters, which may have changed since."""
        check_parameters(self.decomposition)
        return check_latents(self.extractor, latents, name)

    def _door(self, latents: ArrayLike, name: str = "latents") -> tuple[Tensor, Origin]:
        """Checked latents as a tensor, numpy's on the network's device."""
        latents, origin = self._check_latents(latents, name)
        if isinstance(latents, Tensor):
            return latents, origin
        device = running_device(self.extractor)
        return as_tensor(latents, device, keep_type=True), origin

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

    def _change(
        self,
        edits: Sequence[Edit],
        n_samples: int | None,
        refine: bool = False,
        known: dict | None = None,
    ) -> Change:
        """The edits as a change of activations."""
        sizes = Sizes.of(self.extractor, n_samples)
        return change_of(edits, self.decomposition, sizes, refine=refine, known=known)

    def _changed(
        self, latents: Tensor, change: Change, replays: Replays | None = None
    ) -> Tensor:
        """Images of checked latents, with a change."""
        if not change.has_effect():
            return generate_changed(self.extractor, latents, None)
        return generate_changed(
            self.extractor,
            latents,
            lambda where, take: change.applied(latents[where], where, take),
            **change.moments(),
            replays=replays,
        )

    def _search(
        self,
        change: Change,
        target: float,
        region: Any,
        value_range: Any,
        n_samples: int,
    ) -> TargetSearch:
        """The search for strengths, its input checked."""
        if value_range is not None:
            value_range = check_value_range(value_range)
        target = check_single("target_change", target, above=0)
        if change.refine is not None and change.sizes.n_rows > 1:
            raise ValueError(
                "target_change with refine=True needs one part for each sample, but "
                "the extractor takes several calls as samples."
            )
        if not all(bool(term.strength.all()) for term in change.terms):
            raise ValueError(
                "target_change multiplies the strengths: none of them may be 0."
            )
        spatial = self._image_spatial()
        if region is not None:
            region = check_mask(region, "region", f"([{n_samples},] *{spatial})")
            if tuple(region.shape) not in (spatial, (n_samples, *spatial)):
                raise ValueError(
                    f"region must be of the images' shape {spatial}, or with "
                    f"{n_samples} samples before it, got {tuple(region.shape)}."
                )
            region = region.reshape(-1, *spatial)
        return TargetSearch(
            self.extractor, change, target, spatial, region, value_range
        )

    def _localize(
        self, latents: ArrayLike, appearance: Any, threshold: Any, **options: Any
    ) -> ArrayLike:
        """``localize`` on the activations of checked latents, batch by batch."""
        if Sizes.of(self.extractor, None).n_rows > 1:
            raise ValueError(
                "The extractor takes several calls as samples, at each of which an "
                "appearance is somewhere else: take one call, or calls_as='mean'."
            )
        size = self.extractor.batch_size
        masks = []
        for start in range(0, len(latents), size):
            some = latents[start : start + size]
            features = extract(self.extractor, some, first=start)
            masks.append(
                self.decomposition.localize(features, appearance, threshold, **options)
            )
        if isinstance(masks[0], Tensor):
            return torch.cat(masks)
        return np.concatenate(masks)

    def _check_learnt(self, appearance: Any, what: str) -> None:
        """Raise unless the appearance is the index of a learnt one."""
        if isinstance(appearance, list) or getattr(appearance, "ndim", 0) > 0:
            raise ValueError(
                f"With {what} the appearance must be a learnt one, whose mean over the "
                "training data is known: give its index."
            )
        check_index("appearance", appearance, len(self.decomposition.appearances_))


def _both_signs(strength: Any) -> list[float]:
    """Strengths above 0, each followed by its negative."""
    if isinstance(strength, Real) or getattr(strength, "ndim", 1) == 0:
        strength = [strength]
    given = check_numbers("strength", strength)
    for value in given:
        check_single("strength", value, above=0)
    return [sign * value for value in dict.fromkeys(given) for sign in (1, -1)]


def _distinct(name: str, indices: Any, size: int) -> list[int]:
    """Indices from 0 to size - 1, each once."""
    return list(dict.fromkeys(check_indices(name, indices, size)))


def _colors(fill: Any, n_colors: int) -> np.ndarray:
    """Each colour's value of the argument ``fill``."""
    if isinstance(fill, Real) and not is_bool(fill):
        return np.full(n_colors, check_single("fill", fill))
    expected = f"a finite number, or {n_colors} of them, one for each colour"
    colors = as_numeric(fill, "fill", expected)
    if tuple(colors.shape) != (n_colors,):
        raise ValueError(f"fill must be {expected}, got {shown(fill)}.")
    return np.array([check_single("each of fill", value) for value in colors.tolist()])


def _fingerprint_of(extractor: GeneratorFeatureExtractor, known: str) -> str:
    """That of an extractor's network; the known one where weights are out of reach."""
    try:
        return fingerprint(extractor.generator)
    except ValueError:  # offloaded
        return known
