"""``LocalEditor``: edits of a generator's images.

Its methods check, convert and call; what they do is in a file for each kind of change.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from sklearn.pipeline import Pipeline
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition, layout_of
from panda_sklearn.editing._changes import (
    Change,
    change_of,
    check_edits,
    generate_edited,
)
from panda_sklearn.editing._directions import find_directions
from panda_sklearn.editing._donors import transfer_change
from panda_sklearn.editing._edit import UNITS, Edit
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.editing._prepared import PreparedImages
from panda_sklearn.editing._ranking import rank_edits
from panda_sklearn.editing._removal import (
    check_colors,
    check_learnt,
    fill_pixels,
    localize,
)
from panda_sklearn.editing._targets import TargetSearch
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    check_latents,
    recorded,
    running_device,
)
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.batches import users_level
from panda_sklearn.utils.hashing import fingerprint
from panda_sklearn.utils.thresholds import check_threshold
from panda_sklearn.utils.validation import (
    check_choice,
    check_flag,
    check_is_fitted,
    check_kind,
    check_parameters,
    shown,
)

__all__ = ["LocalEditor"]


class LocalEditor:
    """Edits a generator's images locally.

    Parameters
    ----------
    extractor : GeneratorFeatureExtractor
        A fitted extractor of the layer to edit.

    decomposition : PartsAppearanceDecomposition
        A decomposition fitted on that layer's activations.

    Raises
    ------
    TypeError
        If one has another type.
    sklearn.exceptions.NotFittedError
        If one is not fitted.
    ValueError
        If the decomposition was fitted on activations of another shape.

    Warns
    -----
    UserWarning
        If the decomposition was loaded from a file, and belongs to a network with other
        weights.

    See Also
    --------
    GeneratorFeatureExtractor : Extracts activations of a network.
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

    def __init__(
        self,
        extractor: GeneratorFeatureExtractor,
        decomposition: PartsAppearanceDecomposition,
    ) -> None:
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
                "extractor's output, unchanged."
            )
        known = getattr(decomposition, "network_", None)
        if known is not None and known != _fingerprint_of(extractor, known):
            warnings.warn(
                f"The decomposition belongs to the network with fingerprint {known!r}, "
                "but the extractor's network has other weights: parts and appearances "
                "may mean something else there. Fit the decomposition on this network, "
                "or give the extractor the other.",
                UserWarning,
                stacklevel=users_level(),
            )
        self.extractor = extractor
        self.decomposition = decomposition

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline) -> LocalEditor:
        """Make an editor from a fitted pipeline.

        Parameters
        ----------
        pipeline : sklearn.pipeline.Pipeline
            A pipeline in which the decomposition directly follows the extractor; other
            steps may follow.

        Returns
        -------
        editor : LocalEditor
            The editor made of these two steps.

        Raises
        ------
        TypeError, ValueError
            If it is not a pipeline, or lacks these steps.
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
            Whether to refine the parts to each sample first (section 3.5); masks are
            used as they are.

        target_change : float, default=None
            How much the region of each image is to change: the root mean square over
            its pixels and colours, in the units of the images. Each image's strengths
            are multiplied by a factor of its own; see ``find_strengths``.

        region : array of shape ([n_samples,] \*image_spatial), default=None
            With ``target_change``, where the change is measured: values from 0 to 1.
            ``None`` is where the edits are.

        value_range : tuple of float, default=None
            With ``target_change``, the values of black and white that images are
            clipped to before the change is measured. ``None`` measures values as they
            are, including those beyond black and white.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Edited images. If every strength is 0, they equal the extractor's
            ``generate`` of the same latents, bit for bit.

        Raises
        ------
        TypeError, ValueError
            If there is no edit, an index is out of range or not an int, a part is
            constant, an array of an edit has another shape, a strength does not fit in
            float32, or ``refine`` is set and no edit is at a learnt part.

        Warns
        -----
        ConvergenceWarning
            If images do not reach ``target_change``; they get the strength at which
            they came nearest.
        UserWarning
            If a part is constant once it is refined to a sample; that sample is left as
            it is there.
        """
        latents, origin = self._checked(latents)
        change = self._change(edits, len(latents), refine)
        if target_change is not None:
            search = self._search(change, target_change, region, value_range)
            factors, places = search.run(latents)
            return origin.give(search.images(latents, factors, places))
        for name, value in (("region", region), ("value_range", value_range)):
            if value is not None:
                raise ValueError(f"{name} is only used with target_change; set that.")
        return origin.give(generate_edited(self.extractor, latents, change))

    def prepare(self, latents: ArrayLike) -> PreparedImages:
        """Prepare for editing the same images many times.

        Runs the network up to the edited layer once, and keeps the result, and any
        variations that are looked up: for a slider, or a search. This takes the memory
        of the earlier layers' outputs, and pays where the edited layer is late, as in
        the late steps of a diffusion model. Later changes of the network's weights or
        of the decomposition are not noticed. A network that makes other images from
        what is kept runs in full each time.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        Returns
        -------
        prepared : PreparedImages
            The unedited ``images``, and a method ``edit``.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` have another shape than the extractor was fitted on, or hold
            anything but finite numbers.

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
        latents, origin = self._checked(latents)
        images, replays = recorded(self.extractor, latents)
        known: dict = {}

        def edit(edits: Any, refine: Any) -> ArrayLike:
            change = self._change(edits, len(latents), refine, known)
            edited = generate_edited(self.extractor, latents, change, replays=replays)
            return origin.give(edited)

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
        r"""Find the strengths at which edits change a region by a given amount.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        edits : Edit or sequence of Edit
            What to change; only the ratios of the strengths count.

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
            The factor of each image's strengths. The change is within 1 % of the
            target.

        Warns
        -----
        ConvergenceWarning
            If images do not reach the target; they get the factor at which they came
            nearest.
        """
        latents, origin = self._checked(latents)
        change = self._change(edits, len(latents), refine)
        search = self._search(change, target_change, region, value_range)
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
        r"""Transfer a part from some images to others.

        Moves the coefficients at a part towards those of donors; or, with ``mix``, the
        activations themselves. To combine a transfer with other edits, pass ``edit`` an
        :class:`Edit` with the donors' ``coefficients`` or ``features``.

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
            How far to move, as a fraction of the way. An array has one for each image.

        mix : bool, default=False
            Whether to move the activations at the part instead of the coefficients,
            including what the factors do not reconstruct.

        mean : bool, default=False
            Whether the donor is the mean of the coefficients, or activations, of all
            ``donors``.

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
            As for ``edit``, or if there is neither one donor nor one for each sample.

        See Also
        --------
        Edit : Edits by ``coefficients`` and ``features``.

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
        latents, origin = self._checked(latents)
        donors, _ = self._checked(donors, "donors")
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
        return origin.give(generate_edited(self.extractor, latents, change))

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

        If the background's appearance is added where the object is, the generator fills
        its place with background that suits each image.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int or array of shape (n_channels,), default=None
            What to put there, such as the background: an index, or any vector of the
            layer's channels. Exactly one of this and ``variation`` must be given.

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
            A variation of the part, along which the object comes and goes, instead of
            an appearance.

        given : "others", default=None
            With ``variation``, which variations are meant, as in :class:`Edit`.

        Returns
        -------
        images : array of shape (n_samples, ...)
            Images without the object.

        Raises
        ------
        TypeError, ValueError
            As for ``edit``, or if ``threshold`` is something else.
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
                raise ValueError("A variation belongs to a part: say which with part.")
            check_learnt(self.decomposition, appearance, "part=None")
            checked, _ = self._check_latents(latents)
            everywhere = np.ones(self.decomposition.map_shape_[1:])
            edit = Edit(appearance, everywhere, strength, unit, **what)
            self._change(edit, len(checked), refine)  # fails before any work
            absent = ~self._localize(checked, appearance, threshold, size=None)
            if not bool(absent.any()):
                return self.extractor.generate(latents)
            part = absent
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
        r"""Find where an appearance is in the images (section 4.1.2).

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int
            Index of the appearance.

        threshold : "mean", float or ("quantile", float), default="mean"
            Where it counts as present, as for ``localize``.

        upsample_first : bool, default=True
            Whether to resize the saliency to the images' size, linearly, and threshold
            the result; or to threshold at the layer's size and enlarge the mask.

        Returns
        -------
        mask : boolean array of shape (n_samples, \*image_spatial)
            The thresholded saliency at the images' size.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or the images and the maps do not have the
            same number of spatial axes.
        """
        latents, _ = self._check_latents(latents)
        check_learnt(self.decomposition, appearance, "A mask")
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

        Everywhere else the images are the generator's own.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        appearance : int
            Index of the appearance.

        fill : float or sequence of n_colors floats, default=1.0
            The value, or colour, to put there.

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
            As for ``mask``, or if ``fill`` is something else.
        """
        self._image_spatial()  # so there are images
        colors = check_colors(fill, cast(tuple, self.extractor.image_shape_)[0])
        mask = self.mask(latents, appearance, threshold, upsample_first=upsample_first)
        return fill_pixels(self.extractor.generate(latents), mask, colors)

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
        r"""Try appearances and variations at parts, and measure what each does.

        Each is tried on all samples, in both directions. At most
        ``extractor.batch_size`` images are made at a time and none are kept, so memory
        does not grow with the number of edits or samples.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents of a few samples; a handful is enough to tell good edits from bad.

        appearances : iterable of int, default=None
            Appearances to try; ``None`` is all, or none if ``variations`` are given.

        parts : iterable of int, default=None
            Parts to try; ``None`` is all but constant ones.

        variations : iterable of int, default=None
            Variations of each part to try as well; ``None`` is none.

        strength : float or sequence of float, default=(1.5, 3.0)
            Strengths, above 0; each is tried with both signs.

        unit : {"std", "alpha"}, default="std"
            Unit of the strengths, as in :class:`Edit`.

        sort_by : str, default="score"
            The column to sort by, "score", "roi_ratio", "effect", "consistency" or
            "distance"; the best come first.

        value_range : tuple of float, default=None
            Values of black and white that images are clipped to before they are
            compared. With it "ssim" and "psnr" are reported, which needs the extra
            "metrics". ``None`` compares images as they are.

        verbose : int, default=0
            Whether to show a progress bar.

        Returns
        -------
        table : dict of ndarray of shape (n_edits,)
            Columns, ready for ``pandas.DataFrame(table)``:

            - "edit": the :class:`Edit` itself, ready for use.
            - "appearance", "variation" and "part": what was tried and where. One of the
              first two is -1, since an edit has only one of them.
            - "strength" and "sign": the strength with its sign, and the sign alone.
            - "effect": root mean square change inside the part, in the units of the
              images, :math:`\lVert M * (x - x') \rVert / \lVert M \rVert`; mean over
              samples. M is the part, scaled to the range 0 to 1 and resized to the
              images' size.
            - "roi_ratio": change outside the part relative to inside, equation (7); low
              is local.
            - "ssim" and "psnr", with ``value_range``: how similar the rest of the
              images remains, :func:`~panda_sklearn.metrics.outside_ssim` and
              :func:`~panda_sklearn.metrics.outside_psnr`.
            - "consistency": mean cosine of two samples' changes inside,
              :math:`M * (x - x')`; 1 if all change alike. NaN for a single sample.
            - "distance": how far the edited coefficients at the part are from those of
              the training samples, as ``part_distances`` of the decomposition; about 1
              is natural. Mean over samples; NaN if the decomposition is from an old
              file, which does not hold what this needs.
            - "score": consistency, divided by the distance where that is above 1 (or
              multiplied, where consistency is negative). High for edits that do the
              same to all samples and remain natural. A single sample counts as
              consistent.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, an index is out of range, or a part is
            constant. With ``value_range``, images need two or three spatial axes of at
            least 6 pixels.
        ImportError
            If ``value_range`` is given and torchmetrics is not installed.
        """
        latents, _ = self._checked(latents)
        return rank_edits(
            self.extractor,
            self.decomposition,
            latents,
            appearances=appearances,
            parts=parts,
            variations=variations,
            strength=strength,
            unit=unit,
            sort_by=sort_by,
            image_spatial=self._image_spatial(),
            value_range=value_range,
            verbose=verbose,
        )

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

        Appearances describe the activations; what a vector does to the image depends on
        the rest of the network. This finds the vectors v of channels that maximise

        .. math::
            \frac{\sum_i \lVert M * J_i v \rVert^2}{\sum_i \lVert (1 - M) * J_i v
            \rVert^2 + \gamma h \, v^\top K^{-1} v}

        one after the other. Here :math:`J_i` is the derivative of the image with
        respect to the vector added at the part, M the region, and K the covariance of
        what the part shows in the training data; h is the largest value of the sum
        before it for a v of one standard deviation.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents of a few samples, such as 12. Directions found on these work on
            others too.

        part : int, sequence of int, or array of shape (\*spatial)
            Where the vector is added, as in :class:`Edit`; the same for all samples.

        n_directions : int, default=5
            Number of directions, at most the number of channels.

        region : array of shape (\*image_spatial), default=None
            Where the image is to change: values from 0 to 1. ``None`` is where the part
            is.

        naturalness : float, default=0.003
            :math:`\gamma`, at least 0. At 0 directions are as local as possible, but
            may lead to unnatural images; at 1 they keep to what varies most in the
            training data. Values below 0.0001 count as 0.0001.

        derivatives : {"auto", "exact", "differences"}, default="auto"
            Whether to use exact derivatives in forward mode (Jacobian-vector products),
            or central differences of images. "auto" is exact where the network allows
            it, and warns where it does not.

        verbose : int, default=0
            Whether to show a progress bar, which names the kind of derivatives.

        Returns
        -------
        directions : array of shape (n_directions, n_channels)
            Vectors of length 1, the best first, for ``Edit(direction, part, strength,
            unit="alpha")``.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, an index is out of range, a part is
            constant or does not vary in the training data, a vector added there does
            not reach the region, or exact derivatives are asked for and the network has
            none.

        Warns
        -----
        UserWarning
            If "auto" uses differences.
        ConvergenceWarning
            If the search for directions of many channels does not converge.

        See Also
        --------
        rank_edits : Tries appearances and variations.

        Notes
        -----
        The derivative is formed with one pass of the network for each channel of each
        sample. With more than 512 channels, or more than 1 GiB for one sample, only its
        products with vectors are computed, forwards and backwards, and directions are
        approximate. Differences are always formed, whatever memory that takes. If the
        network draws noise, they are computed one image at a time, so that all images
        have the same noise.

        References
        ----------
        J. Zhu et al. "Low-Rank Subspaces in GANs." NeurIPS, 2021, and S. Chen et al.
        "Exploring Low-Dimensional Subspaces in Diffusion Models for Controllable Image
        Editing." NeurIPS, 2024, split the image into a region and the rest in the same
        way; they take the leading directions of the one and project out those of the
        other.
        """
        latents, origin = self._checked(latents)
        found = find_directions(
            self.extractor,
            self.decomposition,
            latents,
            part,
            n_directions,
            region,
            naturalness=naturalness,
            derivatives=derivatives,
            image_spatial=self._image_spatial(),
            verbose=verbose,
        )
        return origin.give(found)

    # Helpers

    def _check_latents(
        self, latents: ArrayLike, name: str = "latents"
    ) -> tuple[ArrayLike, Origin]:
        """Check latents, and parameters, which may have changed since ``fit``."""
        check_parameters(self.decomposition)
        return check_latents(self.extractor, latents, name)

    def _checked(
        self, latents: ArrayLike, name: str = "latents"
    ) -> tuple[Tensor, Origin]:
        """Checked latents as a tensor; arrays go to the network's device."""
        latents, origin = self._check_latents(latents, name)
        if isinstance(latents, Tensor):
            return latents, origin
        device = running_device(self.extractor)
        return as_tensor(latents, device, keep_type=True), origin

    def _image_spatial(self) -> tuple[int, ...]:
        """Spatial shape of images with as many axes as the maps; else ValueError."""
        shape, n_axes = self.extractor.image_shape_, len(self.decomposition.map_shape_)
        if shape is None or len(shape) != n_axes:
            raise ValueError(
                f"This needs images of {n_axes - 1} spatial axes, as many as the maps "
                "have: of shape (n_samples, n_colors, *spatial). One image of the "
                f"network has shape {shape}."
            )
        return tuple(shape[1:])

    def _change(
        self,
        edits: Any,
        n_samples: int | None,
        refine: Any = False,
        known: dict | None = None,
    ) -> Change:
        """Check edits, and return them as a change of activations."""
        sizes = Sizes.of(self.extractor, n_samples)
        edits = check_edits(edits)
        return change_of(edits, self.decomposition, sizes, refine=refine, known=known)

    def _search(
        self, change: Change, target: Any, region: Any, value_range: Any
    ) -> TargetSearch:
        """The search for strengths, its arguments checked."""
        spatial = self._image_spatial()
        return TargetSearch.of(
            self.extractor, change, target, spatial, region, value_range
        )

    def _localize(
        self, latents: ArrayLike, appearance: Any, threshold: Any, **options: Any
    ) -> Any:
        """Masks of checked latents, as ``localize`` of the decomposition."""
        return localize(
            self.extractor,
            self.decomposition,
            latents,
            appearance,
            threshold,
            **options,
        )


def _fingerprint_of(extractor: GeneratorFeatureExtractor, known: str) -> str:
    """The fingerprint of an extractor's network; ``known`` if its weights are away."""
    try:
        return fingerprint(extractor.generator)
    except ValueError:  # offloaded
        return known
