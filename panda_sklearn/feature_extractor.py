"""The transformer that takes activations out of a network.

Checks parameters and latents, and converts arrays; :mod:`panda_sklearn._passes` runs
the network. Knows nothing of the decomposition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.metadata_routing import UNUSED
from torch import Tensor, nn

from panda_sklearn._passes import Change, Passes, Replays, Take
from panda_sklearn.generators._calls import (
    Run,
    check_forward,
    device_of,
    dtype_of,
    explained_failures,
)
from panda_sklearn.generators._layers import list_layers
from panda_sklearn.sources import ExtractedBatches, Writer
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor, is_floating
from panda_sklearn.utils.batches import Batches
from panda_sklearn.utils.hooks import Moment, capture, find_layer, watch
from panda_sklearn.utils.layouts import FeatureLayout
from panda_sklearn.utils.taps import Tap
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    SAMPLES,
    Interval,
    Options,
    StrOptions,
    check_choice,
    check_count,
    check_device,
    check_feature_names_in,
    check_fits,
    check_indices,
    check_is_fitted,
    check_numeric_array,
    check_parameters,
    check_values,
    fit_method,
)

__all__ = [
    "GeneratorFeatureExtractor",
    "Replays",
    "Take",
    "check_latents",
    "extract",
    "generate_changed",
    "length_of_batches",
    "recorded",
    "run_of",
    "running_device",
    "runs_of",
    "takes_floats",
    "tap_of",
]


class GeneratorFeatureExtractor(  # type: ignore[call-arg]
    TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    r"""Activations of a layer of a network, from the network's inputs.

    Made for generators, whose inputs are latents, but any ``torch.nn.Module`` will do.
    ``transform`` runs the network up to the layer. ``generate`` runs all of it, and
    replaces the layer's activations if wanted: the edit of section 3.3 of [1]_, with
    everything else that the network computes left in place.

    Parameters
    ----------
    generator : torch.nn.Module
        The network. It runs in evaluation mode and without gradients, and is left as
        it was: its hooks, each submodule's mode, its device, ``requires_grad``. Clones
        share it; it is never copied.

    layer : str
        Dotted name of the layer, as in ``generator.named_modules()``. See
        ``list_layers``.

    forward : callable, default=None
        ``forward(generator, latents)`` returns the images; ``None`` is
        ``generator(latents)``. Truncation, class labels and the like go here. If it
        has an argument ``rows``, it gets a tensor (n_samples,) on the CPU with the
        indices of these latents among all that were passed to the method: for what
        differs from sample to sample, such as prompts.

    tap : {"output", "input", "update"}, default="output"
        Whether to take the layer's output; its first input; or its output minus its
        input, which is what a residual block adds. Where several layers read one
        tensor, replacing it as an output changes what all of them see; as an input,
        what that layer sees.

    select : int or str, default=None
        Index or key, where the layer's output (or input) is a tuple, a list or a dict
        of several tensors; or, with ``tap="input"``, the name of a keyword input, such
        as "hidden_states". A tensor that a layer returns in several places is replaced
        in all of them.

    call : int, list of int, slice or "all", default=None
        Which calls of the layer, counted from 0, where it runs several times in a
        forward pass, as in the steps of a diffusion model.

    calls_as : {"samples", "channels", "mean"}, default="samples"
        What several calls become.

        - "samples": each call of each sample is a row, and the rows of a sample follow
          each other. ``split_calls`` says which row is which.
        - "channels": the channels of the calls follow each other, so that parts are
          shared and appearances have a slice for each call.
        - "mean": their mean.

    guidance : {"first", "last"} or int, default=None
        Which part of the layer's rows are the samples, where there are several times as
        many rows, as with classifier-free guidance; ``None`` if the rows are the
        samples. Replacing activations leaves the other parts as they are.

    channel_axis : {1, -1}, default=1
        Where the channels are in the layer's activations. With -1, those of shape
        (n_samples, \*spatial, n_channels) are brought to (n_samples, n_channels,
        \*spatial).

    n_prefix_tokens : int, default=0
        With ``channel_axis=-1`` and tokens (n_samples, n_tokens, n_channels), how many
        of the first tokens to leave out: class tokens, registers. ``generate`` leaves
        them as they are.

    token_grid : tuple of int, default=None
        With ``channel_axis=-1``, the spatial shape in which the other tokens are laid
        out row by row, such as (14, 14). ``None`` leaves them on one axis.

    batch_size : int, default=32
        Number of samples in a forward pass. If the accelerator's memory cannot hold
        that many, the number is halved until it can, with a warning.

    device : str or torch.device, default=None
        Where to run the network; ``None`` is where it is. It is brought back after
        each call.

    verbose : int, default=0
        Whether to show a progress bar.

    stream : bool, default=False
        Whether ``transform`` and ``fit_transform`` return what ``batches`` does, rather
        than an array: for activations that do not fit in memory, in a Pipeline with a
        :class:`~panda_sklearn.PartsAppearanceDecomposition`. The network then runs in
        each pass through the samples.

    Attributes
    ----------
    feature_shape_ : tuple of int
        Shape of one sample's activations.

    image_shape_ : tuple of int or None
        Shape of one image; ``None`` if the network returns no tensor.

    latent_shape_ : tuple of int
        Shape of one sample's latents.

    n_calls_ : int
        How many calls of the layer are taken.

    n_features_in_ : int
        Size of the second axis of the latents.

    feature_names_in_ : ndarray of shape (n_features_in,)
        Names of the columns of the latents; only where they have string names.

    See Also
    --------
    PartsAppearanceDecomposition : Learns parts and appearances from the activations.
    LocalEditor : Edits images through both.

    Notes
    -----
    Noise that the network draws from torch's global random numbers is the same in
    each batch of each call, so that images of the same latents with and without an edit
    can be compared; the global random state is restored. The noise depends on a
    sample's place in its batch, and so on the batch size, as do the last bits of the
    activations and images of any network.

    Latents may be numpy arrays or torch tensors; results are of the same kind, on the
    same device. Floating latents are cast to the dtype of the network's parameters.

    Several threads may use one network or several; they take turns, one call at a
    time.

    References
    ----------
    .. [1] J. Oldfield, C. Tzelepis, Y. Panagakis, M. A. Nicolaou, I. Patras. "PandA:
       Unsupervised Learning of Parts and Appearances in the Feature Maps of GANs".
       International Conference on Learning Representations (ICLR), 2023.
       https://arxiv.org/abs/2206.00048

    Examples
    --------
    >>> from panda_sklearn import GeneratorFeatureExtractor
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 10, random_state=0)
    >>> extractor = GeneratorFeatureExtractor(generator, "block8").fit(latents)
    >>> features = extractor.transform(latents)
    >>> features.shape
    torch.Size([10, 192, 8, 8])
    >>> extractor.generate(latents, features=0 * features).shape
    torch.Size([10, 3, 64, 64])
    """

    _parameter_constraints: ClassVar[dict] = {
        "generator": [nn.Module],
        "layer": [str],
        "forward": [callable, None],
        "tap": [StrOptions({"output", "input", "update"})],
        "select": [Interval(Integral, None, None, closed="neither"), str, None],
        "call": [
            Interval(Integral, 0, None, closed="left"),
            list,
            slice,
            StrOptions({"all"}),
            None,
        ],
        "calls_as": [StrOptions({"samples", "channels", "mean"})],
        "guidance": [
            StrOptions({"first", "last"}),
            Interval(Integral, 0, None, closed="left"),
            None,
        ],
        "channel_axis": [Options(Integral, {1, -1})],
        "n_prefix_tokens": [Interval(Integral, 0, None, closed="left")],
        "token_grid": [tuple, list, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device, None],
        "verbose": ["verbose"],
        "stream": ["boolean"],
    }

    # scikit-learn would take ``out`` for metadata of samples.
    __metadata_request__transform: ClassVar[dict] = {"out": UNUSED}

    list_layers = staticmethod(list_layers)

    # Set by the TensorMemory through which the transformer was fitted.
    _memory: Any = None

    # Whether fit saw floating latents, rather than classes or token numbers.
    _takes_floats = True

    # The dtype of the activations that fit saw.
    _feature_dtype = torch.float32

    # How many calls are taken, and how often the layer ran in fit's pass. Extractors
    # fitted before these were stored took one call.
    n_calls_ = 1
    _n_runs = 1

    # Once memory ran out: batch_size and device then, and the batch size that fits.
    _batch_that_fits: tuple[int, Any, int] | None = None

    def __init__(
        self,
        generator: nn.Module,
        layer: str,
        *,
        forward: Callable[..., Any] | None = None,
        tap: str = "output",
        select: int | str | None = None,
        call: int | list[int] | slice | str | None = None,
        calls_as: str = "samples",
        guidance: int | str | None = None,
        channel_axis: int = 1,
        n_prefix_tokens: int = 0,
        token_grid: Sequence[int] | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        verbose: int = 0,
        stream: bool = False,
    ) -> None:
        self.generator = generator
        self.layer = layer
        self.forward = forward
        self.tap = tap
        self.select = select
        self.call = call
        self.calls_as = calls_as
        self.guidance = guidance
        self.channel_axis = channel_axis
        self.n_prefix_tokens = n_prefix_tokens
        self.token_grid = token_grid
        self.batch_size = batch_size
        self.device = device
        self.verbose = verbose
        self.stream = stream

    @fit_method
    def fit(self, X: ArrayLike, y: Any = None) -> GeneratorFeatureExtractor:
        """Check that the layer can be tapped, on at most two samples.

        Parameters
        ----------
        X : array of shape (n_samples, ...)
            Latents.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : GeneratorFeatureExtractor
            The fitted transformer.

        Raises
        ------
        ValueError
            If there is no such layer, if it does not run, if ``select`` or ``call``
            is needed, or if the network does not take such latents.
        TypeError
            If the network is scripted, or the layer does not return a tensor.
        """
        passes, latents = self._start(X)
        self._fit(passes, latents)
        return self

    def _start(self, X: ArrayLike) -> tuple[Passes, ArrayLike]:
        """Passes with the tapped tensor, and checked latents, for ``fit``."""
        tap = self._tap_at(None)
        latents = self._check_new(X)
        if self._takes_several():
            n_runs = self._count_runs(self._passes(tap), latents)
            tap = self._tap_at(self._calls(n_runs))
        elif self.call is not None:
            tap = self._tap()
        return self._passes(tap), latents

    def _fit(self, passes: Passes, latents: ArrayLike) -> None:
        """Set the fitted attributes from a pass of at most two samples."""
        with Undo() as undo, undo:
            run = passes.running(undo)

            def learn(rows: slice) -> Tensor:
                return self._learn(run, passes.tap, latents[rows], latents.shape)

            next(Batches(min(2, len(latents)), 2).map(learn))

    def _count_runs(self, passes: Passes, latents: ArrayLike) -> int:
        """How often the layer runs in a pass of one sample."""
        n = 0

        def count(output: Any, base: Any) -> None:
            nonlocal n
            n += 1

        with Undo() as undo, undo:
            run = passes.running(undo)
            watch(undo, Tap(passes.tap.name, passes.tap.layer), count)
            with explained_failures(latents, self.forward):
                run(latents[:1])
        return n

    @fit_method
    def fit_transform(self, X: ArrayLike, y: Any = None) -> Any:
        r"""Check that the layer can be tapped, and extract its activations.

        Each sample passes through the network once; with ``stream=True`` at most two
        do, until the batches are iterated over.

        Parameters
        ----------
        X : array of shape (n_samples, ...)
            Latents.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        features : array of shape (n_samples, n_channels, \*spatial)
            The layer's activations; their batches, with ``stream=True``.

        Raises
        ------
        ValueError, TypeError
            As ``fit``.
        """
        passes, latents = self._start(X)
        if self.stream:
            self._fit(passes, latents)
            return self._stream(latents)
        return self._extract(passes, latents, learn=True)

    def transform(self, X: ArrayLike, out: Any = None) -> Any:
        r"""Extract the activations of the layer.

        The forward pass ends as soon as they are known.

        Parameters
        ----------
        X : array of shape (n_samples, ...)
            Latents.

        out : array of shape (n_samples, n_channels, \*spatial), default=None
            Where to write the activations, batch by batch: a memory map, an HDF5
            dataset, a Zarr array, an array or tensor, or anything else that supports
            assignment to slices. After an exception it is incomplete.

        Returns
        -------
        features : array of shape (n_samples, n_channels, \*spatial)
            The layer's activations; ``out``, if given; with ``stream=True``, what
            ``batches`` returns.

        Raises
        ------
        TypeError, ValueError
            If ``X`` does not have the shape seen by ``fit``, or holds anything but
            finite numbers; if a parameter was set to an invalid value; if ``out`` has
            another shape, does not hold floating-point numbers, or is given with
            ``stream=True``.
        OSError
            If ``out`` cannot be written to.
        """
        latents, _ = self._check_latents(X, "X")
        if out is not None:
            if self.stream:
                raise ValueError(
                    "out is for stream=False: with stream=True the activations are "
                    "stored nowhere."
                )
            return self._write(latents, out)
        if self.stream:
            return self._stream(latents)
        if self._memory is None:
            return self._recall(latents)
        return self._memory.cache(self._recall)(latents)

    def _recall(self, latents: ArrayLike) -> ArrayLike:
        """Activations of checked latents; a memory caches this method."""
        return self._extract(self._passes(self._tap()), latents)

    def batches(self, latents: ArrayLike) -> ExtractedBatches:
        r"""Compute the activations anew each time they are iterated over.

        Nothing is stored: for activations that do not fit in memory. A
        :class:`~panda_sklearn.PartsAppearanceDecomposition` takes them as ``X``.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        Returns
        -------
        batches : ExtractedBatches
            An object with a length, to iterate over as often as you like. Each pass
            runs the network on all latents and yields the layer's activations, arrays
            of shape (batch_size, n_channels, \*spatial). Later changes to the
            transformer do not affect it. Between batches the network is as it was;
            only where ``device`` moves it, it stays there until the pass ends or the
            iterator is closed or deleted.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` do not have the shape seen by ``fit``, or hold anything but
            finite numbers; if a parameter was set to an invalid value.

        Examples
        --------
        >>> from panda_sklearn import GeneratorFeatureExtractor
        >>> from panda_sklearn.datasets import load_face_generator, sample_latents
        >>> generator = load_face_generator()
        >>> latents = sample_latents(generator, 50, random_state=0)
        >>> extractor = GeneratorFeatureExtractor(generator, "block8").fit(latents)
        >>> for features in extractor.batches(latents):
        ...     print(features.shape)
        torch.Size([32, 192, 8, 8])
        torch.Size([18, 192, 8, 8])
        """
        return self._stream(self._check_latents(latents)[0])

    def _stream(self, latents: ArrayLike) -> ExtractedBatches:
        """Batches of activations of checked latents."""
        own = copy.copy(self)
        own._batch_that_fits = self._batch_that_fits
        return ExtractedBatches(
            own._passing,
            latents,
            sample_shape=self.feature_shape_,
            dtype=self._feature_dtype,
            batch_size=self._length_of_batches(),
            rows=self._n_rows(),
        )

    def _passing(self, latents: ArrayLike) -> Generator[ArrayLike, None, None]:
        """Activations of checked latents, batch by batch."""
        passes, origin = self._passes(self._tap()), Origin.of(latents)
        make = passes.activations(latents, self._check_shape)
        for part in passes.stream(make, latents, "activations", self._n_rows()):
            yield origin.give(part)

    def _write(self, latents: ArrayLike, out: Any) -> Any:
        """Write activations of checked latents to ``out``, and return that."""
        passes = self._passes(self._tap())
        make = passes.activations(latents, self._check_shape)
        rows, n = self._n_rows(), len(latents)
        shape = (rows * n, *self.feature_shape_)
        with Writer(out, shape, self._feature_dtype) as writer, Undo() as undo, undo:
            run = passes.running(undo)
            for _, part in passes.each(lambda w: make(run, w), n, "activations", rows):
                writer.write(part)
        return out

    def _extract(
        self,
        passes: Passes,
        latents: ArrayLike,
        *,
        learn: bool = False,
        first: int = 0,
    ) -> ArrayLike:
        """Activations as one array; with ``learn``, the first batch is a ``fit``."""
        fitted = not learn
        extract = passes.activations(latents, self._check_shape, first)

        def make(run: Run, where: slice) -> Tensor:
            nonlocal fitted
            if fitted:
                return extract(run, where)
            found = self._learn(run, passes.tap, latents[where], latents.shape)
            fitted = True
            return found

        found = passes.collect(make, latents, "activations", passes.tap.n_rows)
        return Origin.of(latents).give(found)

    def _learn(
        self, run: Run, tap: Tap, latents: ArrayLike, shape: tuple[int, ...]
    ) -> Tensor:
        """Set the fitted attributes from a whole pass; returns its activations."""
        with explained_failures(latents, self.forward):
            seen = capture(tap, lambda: run(latents), n_samples=len(latents))
        seen.check()
        shape_seen, images = seen.shape, seen.result
        if len(shape_seen) < 2 or shape_seen[0] != len(latents):
            several = shape_seen[0] % len(latents) == 0 if shape_seen else False
            advice = "Choose another layer, or check the shape of the latents."
            if several and self.guidance is None:
                advice += " If guidance multiplies the samples, set guidance."
            raise ValueError(
                f"The {self.tap} of layer {self.layer!r} is of shape "
                f"{shape_seen} for {len(latents)} samples: its first "
                f"axis is not the samples. {advice}"
            )
        found = seen.found()
        self.n_calls_, self._n_runs = tap.n_calls, seen.n_calls
        self.feature_shape_ = tuple(found.shape[1:])
        self._feature_dtype = found.dtype
        self.latent_shape_ = tuple(shape[1:])
        self._takes_floats = is_floating(latents)
        self.image_shape_ = None
        if isinstance(images, Tensor) and images.ndim > 0:
            self.image_shape_ = tuple(images.shape[1:])
        if len(shape) > 2:
            self.n_features_in_ = int(shape[1])
            self.__dict__.pop("feature_names_in_", None)
        return found

    def generate(self, latents: ArrayLike, features: Any = None) -> ArrayLike:
        r"""Generate images, with the layer's activations replaced if wanted.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        features : array of shape (n_samples, n_channels, \*spatial), default=None
            What to put in place of the layer's activations, shaped as ``transform``
            returns them. Or a callable: it gets each batch's activations at each of
            the calls, a tensor on the network's device, and returns their replacement.
            ``None`` leaves them as they are.

        Returns
        -------
        images : array of shape (n_samples, ...)
            What the network returns.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` or ``features`` have another shape, or hold anything but
            finite numbers.
        """
        latents, origin = self._check_latents(latents)
        if features is None:
            return origin.give(self._passes(self._tap()).images(latents, None))
        replacement = self._replacement(features, len(latents))

        def change(where: slice, take: Take) -> Callable[[Tensor, Moment], Tensor]:
            return lambda old, moment: _own(replacement(where, old, moment), old)

        return origin.give(self._passes(self._tap()).images(latents, change))

    def _replacement(
        self, features: Any, n_samples: int
    ) -> Callable[[slice, Tensor, Moment], Any]:
        """A function that returns the replacement of a batch's activations."""
        if callable(features):
            return lambda where, old, moment: features(old)
        given = self._check_features(features, n_samples)
        if self.calls_as == "mean" and self.n_calls_ > 1:
            raise ValueError(
                "features are means of calls, from which those of each call are not "
                "known: give a callable, which gets them call by call."
            )
        split, calls = self.split_calls(given), self._tap().calls or (0,)
        return lambda where, old, moment: split[where, calls.index(moment.call)]

    def split_calls(self, features: ArrayLike) -> ArrayLike:
        r"""Arrange activations by the layer's calls.

        Parameters
        ----------
        features : array
            The result of ``transform``, or anything else with its rows, such as what a
            decomposition computes from it; with ``calls_as="channels"`` it needs the
            same channels, too.

        Returns
        -------
        split : array of shape (n_samples, n_calls, ...)
            A view. ``split[:, k]`` is what taking the k-th of the calls alone gives.

        Raises
        ------
        TypeError, ValueError
            If it has other rows or channels, or if ``calls_as`` is "mean", which leaves
            no calls to tell apart.
        """
        check_is_fitted(self)
        features = check_values(features, "features", "(n_rows, ...)")
        n, how = self.n_calls_, self.calls_as
        if how == "mean" and n > 1:
            raise ValueError(
                "calls_as='mean' leaves one row for each sample, of all calls together."
            )
        axis = 0 if how == "samples" else 1
        if features.ndim <= axis or features.shape[axis] % n:
            what = "rows" if axis == 0 else "slices of channels"
            raise ValueError(
                f"features must have {n} {what} for each sample, got an array of shape "
                f"{tuple(features.shape)}."
            )
        if how == "samples":
            return features.reshape(-1, n, *features.shape[1:])
        return features.reshape(len(features), n, -1, *features.shape[2:])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the channels.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            If given, must be the names seen by ``fit``.

        Returns
        -------
        names : ndarray of str objects
            "channel0", "channel1" and so on, for the second axis of ``transform``.
        """
        check_is_fitted(self)
        check_feature_names_in(self, input_features)
        names = [f"channel{c}" for c in range(self.feature_shape_[0])]
        return np.asarray(names, dtype=object)

    def set_output(self, *, transform: str | None = None) -> GeneratorFeatureExtractor:
        """Do nothing: activations have more axes than a data frame.

        Parameters
        ----------
        transform : str, default=None
            "default", "pandas", "polars" or ``None``. Accepted so that a Pipeline can
            pass it to its other steps.

        Returns
        -------
        self : GeneratorFeatureExtractor
            The transformer.

        Raises
        ------
        ValueError
            If it is something else.
        """
        if transform is not None:
            check_choice("transform", transform, ("default", "pandas", "polars"))
        return self

    def _takes_several(self) -> bool:
        """Whether ``call`` names several calls, or may do so."""
        return isinstance(self.call, list | slice | str)

    def _calls(self, n_runs: int) -> tuple[int, ...]:
        """The calls asked for, of ``n_runs`` calls."""
        if isinstance(self.call, list):
            chosen = check_indices("call", self.call, n_runs)
            if len(set(chosen)) < len(chosen):
                raise ValueError(f"call must name each call once, got {self.call}.")
            return tuple(sorted(chosen))
        which = self.call if isinstance(self.call, slice) else slice(None)
        found = tuple(sorted(range(n_runs)[which]))
        if not found:
            raise ValueError(
                f"call={self.call} leaves none of the {n_runs} times that layer "
                f"{self.layer!r} runs in a forward pass."
            )
        return found

    def _n_rows(self) -> int:
        """Rows of activations for each sample."""
        return self.n_calls_ if self.calls_as == "samples" else 1

    def _tap(self) -> Tap:
        """The tapped tensor, after ``fit``; raises if there is no such layer."""
        if self._takes_several():
            return self._tap_at(self._calls(self._n_runs))
        call: Any = self.call
        return self._tap_at(None if call is None else (int(call),))

    def _tap_at(self, calls: tuple[int, ...] | None) -> Tap:
        """The tapped tensor at some calls of the layer."""
        check_forward(self.forward)
        if isinstance(self.call, list):
            if not self.call:
                raise ValueError("call is empty: name at least one call.")
            for each in self.call:
                check_count("each of call", each, at_least=0)
        grid = None
        if self.token_grid is not None:
            grid = tuple(check_count("token_grid", size) for size in self.token_grid)
            if not 1 <= len(grid) <= 3:
                raise ValueError(
                    f"token_grid must have one, two or three sizes, got {grid!r}."
                )
        layout = FeatureLayout(self.channel_axis, self.n_prefix_tokens, grid)
        layout.check()
        guidance: Any = self.guidance
        if isinstance(guidance, str):
            guidance = {"first": 0, "last": -1}[guidance]
        return Tap(
            self.layer,
            find_layer(self.generator, self.layer),
            self.tap,
            self.select,
            calls,
            layout,
            self.calls_as,
            guidance,
        )

    def _passes(self, tap: Tap, verbose: int | None = None) -> Passes:
        """Passes of the network with these parameters."""
        return Passes(
            self.generator,
            self.forward,
            tap,
            None if self.device is None else check_device(self.device),
            self._length_of_batches(),
            self._remember_length,
            type(self).__name__,
            self.verbose if verbose is None else verbose,
        )

    def _remember_length(self, size: int) -> None:
        """Remember the batch size that the accelerator's memory holds."""
        self._batch_that_fits = (self.batch_size, self.device, size)

    def _check_new(self, X: ArrayLike) -> ArrayLike:
        """Check latents of any shape, for ``fit``."""
        latents = check_numeric_array(
            self, X, reset=True, keep_dtype=True, shape=SAMPLES
        )
        check_fits(latents, "X", dtype_of(self.generator, torch.float64))
        return latents

    def _check_latents(
        self, X: ArrayLike, name: str = "latents"
    ) -> tuple[ArrayLike, Origin]:
        """Check latents against ``fit``; return them and where they came from.

        Checks the parameters too, which may have changed since.
        """
        check_is_fitted(self)
        check_parameters(self)
        shape = ", ".join(["(n_samples", *map(str, self.latent_shape_)]) + ")"
        latents = check_numeric_array(
            self, X, reset=False, keep_dtype=True, name=name, shape=shape
        )
        if is_floating(latents) != self._takes_floats:
            if not self._takes_floats:
                raise ValueError(
                    f"{name} must be integers, such as classes or token numbers, as "
                    f"{type(self).__name__} was fitted on, got {latents.dtype}."
                )
            if isinstance(latents, Tensor):
                latents = latents.to(torch.float32)
            else:
                latents = latents.astype(np.float32)
        if tuple(latents.shape[1:]) != self.latent_shape_:
            raise ValueError(
                f"{name} has samples of shape {tuple(latents.shape[1:])}, but "
                f"{type(self).__name__} is expecting {self.latent_shape_}, the shape "
                "it was fitted on."
            )
        check_fits(latents, name, dtype_of(self.generator, torch.float64))
        return latents, Origin.of(latents)

    def _check_features(self, features: ArrayLike, n_samples: int) -> Tensor:
        """Check replacement activations; return them as a tensor."""
        expected = (self._n_rows() * n_samples, *self.feature_shape_)
        features = check_values(features, "features", str(expected))
        if tuple(features.shape) != expected:
            raise ValueError(
                f"features must be of shape {expected}, {self._n_rows()} for each of "
                f"the latents, got {tuple(features.shape)}."
            )
        check_fits(features, "features", dtype_of(self.generator, torch.float64))
        return as_tensor(features)

    def _check_shape(self, features: Tensor) -> None:
        """Raise ValueError unless activations have the shape seen by ``fit``."""
        shape = tuple(features.shape[1:])
        if shape != self.feature_shape_:
            raise ValueError(
                f"Layer {self.layer!r} gave activations of shape {shape}, but "
                f"{self.feature_shape_} when {type(self).__name__} was fitted. Fit it "
                "again."
            )

    def _length_of_batches(self) -> int:
        """The batch size that is known to fit, or ``batch_size``."""
        fits = self._batch_that_fits
        if fits is not None and fits[:2] == (self.batch_size, self.device):
            return fits[2]
        return self.batch_size

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory and the batch size, which belong to the process."""
        state = super().__getstate__()
        own = ("_memory", "_batch_that_fits")
        return {name: value for name, value in state.items() if name not in own}

    def __sklearn_clone__(self) -> GeneratorFeatureExtractor:
        """A clone that shares the network and its forward function."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("generator", "forward")}
        copied = {name: clone(value, safe=False) for name, value in params.items()}
        twin = type(self)(**shared, **copied)
        if hasattr(self, "_metadata_request"):  # as scikit-learn's own clone does
            twin._metadata_request = copy.deepcopy(self._metadata_request)
        return twin


def _own(features: Any, original: Tensor) -> Any:
    """A copy of features, unless original: the network may write into them."""
    if isinstance(features, Tensor) and features is not original:
        return features.clone()
    return features


# What editing needs of a fitted extractor besides its methods. The first function
# checks latents; the others trust them.


def check_latents(
    extractor: GeneratorFeatureExtractor, latents: ArrayLike, name: str = "latents"
) -> tuple[ArrayLike, Origin]:
    """Check latents against ``fit``; return them and where they came from."""
    return extractor._check_latents(latents, name)


def takes_floats(extractor: GeneratorFeatureExtractor) -> bool:
    """Whether latents are floating, rather than classes or numbers of tokens."""
    return extractor._takes_floats


def extract(
    extractor: GeneratorFeatureExtractor,
    latents: ArrayLike,
    *,
    first: int = 0,
    verbose: int | None = None,
) -> ArrayLike:
    """Activations of checked latents, without asking a memory.

    ``first`` is the index of the first of these latents among all.
    """
    passes = extractor._passes(extractor._tap(), verbose)
    return extractor._extract(passes, latents, first=first)


def length_of_batches(extractor: GeneratorFeatureExtractor) -> int:
    """The number of samples in a forward pass, as far as is known."""
    return extractor._length_of_batches()


def running_device(extractor: GeneratorFeatureExtractor) -> torch.device:
    """Where to run the network."""
    if extractor.device is None:
        return device_of(extractor.generator)
    return check_device(extractor.device)


def runs_of(extractor: GeneratorFeatureExtractor) -> int:
    """How often the layer runs in a forward pass."""
    return extractor._n_runs


def run_of(extractor: GeneratorFeatureExtractor, undo: Undo) -> Run:
    """Borrow the network: ``run(latents)`` makes a forward pass of checked latents.

    Gradients are off; with ``torch.enable_grad()`` they reach latents that require
    them. Forward-mode derivatives work, too.
    """
    return extractor._passes(extractor._tap()).running(undo)


def tap_of(extractor: GeneratorFeatureExtractor) -> Tap:
    """The tapped tensor; raises if there is no such layer."""
    return extractor._tap()


def generate_changed(
    extractor: GeneratorFeatureExtractor,
    latents: ArrayLike,
    change: Change | None,
    *,
    calls: tuple[int, ...] | None = None,
    others: bool = False,
    rows: Tensor | None = None,
    verbose: int | None = None,
    replays: Replays | None = None,
) -> Tensor:
    """Images of checked latents; see :meth:`panda_sklearn._passes.Passes.images`."""
    passes = extractor._passes(extractor._tap(), verbose)
    return passes.images(
        latents, change, calls=calls, others=others, rows=rows, replays=replays
    )


def recorded(
    extractor: GeneratorFeatureExtractor, latents: Tensor
) -> tuple[Tensor, Replays]:
    """Images of checked latents, and what later passes need not compute again."""
    return extractor._passes(extractor._tap(), 0).recorded(latents)
