"""The transformer that takes activations out of a network.

Floor 3: joins :mod:`panda_sklearn.utils.hooks` to scikit-learn's conventions. Knows
nothing of the decomposition.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Generator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.metadata_routing import UNUSED
from torch import Tensor, nn
from tqdm import tqdm

from panda_sklearn.generators._calls import (
    Run,
    check_forward,
    device_of,
    dtype_of,
    explained_failures,
    running,
)
from panda_sklearn.generators._layers import list_layers
from panda_sklearn.sources import ExtractedBatches, Writer
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor, is_floating
from panda_sklearn.utils.batches import Batches
from panda_sklearn.utils.borrowing import move
from panda_sklearn.utils.hooks import (
    Moment,
    can_be_stopped,
    capture,
    find_layer,
    replace,
    watch,
)
from panda_sklearn.utils.layouts import FeatureLayout
from panda_sklearn.utils.replay import Replay
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

# Latents of a batch of samples -> the activations that the network has there.
Take = Callable[[ArrayLike], Tensor]
# What is known of the passes of batches, by where these begin and end.
Replays = dict[tuple[int, int], Replay]
# Which samples a batch has -> a function of its activations and of when they are made,
# that gives what to put in their place. The first is called before the network runs,
# and may run it elsewhere.
Change = Callable[[slice, Take], Callable[[Tensor, Moment], Tensor]]


class GeneratorFeatureExtractor(  # type: ignore[call-arg]
    TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    r"""Activations of a layer of a network, from the network's inputs.

    Made for generators, whose inputs are latents, and good for any
    ``torch.nn.Module``. ``transform`` runs the network up to the layer;
    ``generate`` runs it whole, with the layer's activations replaced if wanted: the
    edit of section 3.3 of [1]_ with everything else that the network computes left in
    place.

    Parameters
    ----------
    generator : torch.nn.Module
        The network. It is run in evaluation mode and without gradients, and left as
        it was: its hooks, each submodule's mode, its device, ``requires_grad``. It is
        shared by clones, never copied.

    layer : str
        Dotted name of the layer, as in ``generator.named_modules()``. See
        ``list_layers``.

    forward : callable, default=None
        ``forward(generator, latents)`` returns the images; ``None`` is
        ``generator(latents)``. Truncation, class labels and the like go here. If it
        has an argument ``rows``, that is a tensor (n_samples,) on the CPU of the
        numbers that these latents have among all that a method was given: for what
        differs from sample to sample, such as prompts.

    tap : {"output", "input", "update"}, default="output"
        Whether to take the layer's output; its first input; or what its output has more
        than its input, which is what a residual block adds. Where several layers read
        one tensor, replacing it as an output changes what all of them see, as an input
        what that layer sees.

    select : int or str, default=None
        Index or key, where the layer's output (or input) is a tuple, a list or a dict
        of several; or, with ``tap="input"``, the name of a keyword input, such as
        "hidden_states". A tensor that a layer returns in several places is replaced in
        all of them.

    call : int, list of int, slice or "all", default=None
        Which calls of the layer, from 0, where it runs several times in a forward pass,
        as in the steps of a diffusion model.

    calls_as : {"samples", "channels", "mean"}, default="samples"
        What several calls become.

        - "samples": each call of each sample is a row; the rows of a sample follow each
          other. ``split_calls`` says which row is which.
        - "channels": the calls' channels follow each other, so that parts are shared,
          and appearances have a slice for each call.
        - "mean": their mean.

    guidance : {"first", "last"} or int, default=None
        Which part of the layer's rows are the samples', where it sees a multiple of
        them, as with classifier-free guidance; ``None`` if it sees the samples alone.
        Replacing activations leaves the other parts.

    channel_axis : {1, -1}, default=1
        Where the channels are in the layer's activations. With -1, those of shape
        (n_samples, \*spatial, n_channels) are brought to (n_samples, n_channels,
        \*spatial).

    n_prefix_tokens : int, default=0
        With ``channel_axis=-1`` and tokens (n_samples, n_tokens, n_channels), how many
        at the start to leave out: class tokens, registers. ``generate`` leaves them as
        they are.

    token_grid : tuple of int, default=None
        With ``channel_axis=-1``, the spatial shape in which the other tokens are laid
        out row by row, such as (14, 14). ``None`` leaves them on one axis.

    batch_size : int, default=32
        Number of samples in a forward pass. If the accelerator's memory does not hold
        so many, the number is halved until it does, with a warning.

    device : str or torch.device, default=None
        Where to run the network; ``None`` is where it is. It is brought back after
        each call.

    verbose : int, default=0
        Whether to show a progress bar.

    stream : bool, default=False
        Whether ``transform`` and ``fit_transform`` return what ``batches`` does, rather
        than an array: for activations that memory does not hold, in a Pipeline with a
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
    each batch of each call, so that images with and without an edit of the same latents
    can be compared; the global random state is restored. It depends on a sample's place
    in its batch, and so on the size of batches; as do the last bits of activations and
    images, of any network.

    Latents may be numpy arrays or torch tensors; answers are of the same kind, on the
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

    # ``out`` is no metadata of samples, which scikit-learn would take it for.
    __metadata_request__transform: ClassVar[dict] = {"out": UNUSED}

    list_layers = staticmethod(list_layers)

    # Set by a TensorMemory through which the transformer was fitted.
    _memory: Any = None

    # Whether fit saw floating latents, rather than classes or token numbers.
    _takes_floats = True

    # Type of the activations that fit saw.
    _feature_dtype = torch.float32

    # How often the layer ran in fit's pass; of extractors fitted before that was kept,
    # which took one call.
    n_calls_ = 1
    _n_runs = 1

    # Where the accelerator's memory ran out: batch_size, device, and what it holds.
    _batch_that_fits: tuple[int, Any, int] | None = None

    def __init__(
        self,
        generator,
        layer,
        *,
        forward=None,
        tap="output",
        select=None,
        call=None,
        calls_as="samples",
        guidance=None,
        channel_axis=1,
        n_prefix_tokens=0,
        token_grid=None,
        batch_size=32,
        device=None,
        verbose=0,
        stream=False,
    ):
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
    def fit(self, X, y=None):
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
            If the network is scripted, or the layer gives no tensor.
        """
        tap, latents = self._tap_for(X)
        self._fit(tap, latents)
        return self

    def _tap_for(self, X: ArrayLike) -> tuple[Tap, ArrayLike]:
        """The tapped tensor and checked latents, for ``fit``."""
        tap = self._tap(calls=None)
        latents = self._check_new(X)
        if self._takes_several():
            tap = self._tap(calls=self._calls(self._count_runs(tap, latents)))
        elif self.call is not None:
            tap = self._tap(calls=(self.call,))
        return tap, latents

    def _fit(self, tap: Tap, latents: ArrayLike) -> None:
        """Set the fitted attributes from a pass of at most two samples."""
        with Undo() as undo, undo:
            run = self._running(undo)

            def learn(rows: slice) -> Tensor:
                return self._learn(run, tap, latents[rows], latents.shape)

            next(Batches(min(2, len(latents)), 2).map(learn))

    def _count_runs(self, tap: Tap, latents: ArrayLike) -> int:
        """How often the layer runs in a pass, of one sample."""
        n = 0

        def count(output: Any, base: Any) -> None:
            nonlocal n
            n += 1

        with Undo() as undo, undo:
            run = self._running(undo)
            watch(undo, Tap(tap.name, tap.layer), count)
            with explained_failures(latents, self.forward):
                run(latents[:1])
        return n

    @fit_method
    def fit_transform(self, X, y=None):
        r"""Check that the layer can be tapped, and extract its activations.

        Each sample passes the network once; with ``stream=True`` at most two do, until
        the batches are iterated over.

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
        tap, latents = self._tap_for(X)
        if self.stream:
            self._fit(tap, latents)
            return self._stream(latents)
        return self._extract(tap, latents, learn=True)

    def transform(self, X, out=None):
        r"""Extract the activations of the layer.

        The forward pass ends where they are known.

        Parameters
        ----------
        X : array of shape (n_samples, ...)
            Latents.

        out : array of shape (n_samples, n_channels, \*spatial), default=None
            Where to write the activations, batch by batch: a memory map, an HDF5
            dataset, a Zarr array, an array or tensor, or anything else that can be
            assigned to by slices. After an exception it is not complete.

        Returns
        -------
        features : array of shape (n_samples, n_channels, \*spatial)
            The layer's activations; ``out``, if given; with ``stream=True``, what
            ``batches`` returns.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is of another shape than in ``fit``, holds something else than
            finite numbers, or a parameter was set to a value that is none; if ``out``
            is of another shape, holds no floating-point numbers, or is given with
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
        """Activations of checked latents; what a memory remembers."""
        return self._extract(self._tap(), latents, learn=False)

    def batches(self, latents):
        r"""Make the activations anew each time that they are iterated over.

        Nothing is stored: for activations that memory does not hold. A
        :class:`~panda_sklearn.PartsAppearanceDecomposition` takes them as ``X``.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        Returns
        -------
        batches : ExtractedBatches
            An object to iterate over as often as wanted, with a length: in each pass it
            runs the network on all latents and gives the layer's activations, arrays of
            shape (batch_size, n_channels, \*spatial), batch by batch. Changes of the
            transformer do not reach it. The network is borrowed for each batch; with
            ``device`` set it stays there until the pass ends, or the iterator is closed
            or deleted.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` are of another shape than in ``fit``, hold something else
            than finite numbers, or a parameter was set to a value that is none.

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
        """Activations of checked latents, batch by batch.

        Between batches network and process are as they were, but for the network's
        device, and other threads have their turns.
        """
        extract = self._extraction(self._tap(), latents)
        origin = Origin.of(latents)

        def make(where: slice) -> Tensor:
            with Undo() as undo, undo:
                return extract(self._running(undo), where)

        with Undo() as undo, undo:
            move(undo, self.generator, self._destination())
            rows = self._n_rows()
            for _, part in self._each(make, latents, "activations", rows=rows):
                yield origin.give(part)

    def _write(self, latents: ArrayLike, out: Any) -> Any:
        """Activations of checked latents, written to ``out``."""
        extract = self._extraction(self._tap(), latents)
        shape = (self._n_rows() * len(latents), *self.feature_shape_)
        with Writer(out, shape, self._feature_dtype) as writer, Undo() as undo, undo:
            make = functools.partial(extract, self._running(undo))
            rows = self._n_rows()
            for _, part in self._each(make, latents, "activations", rows=rows):
                writer.write(part)
        return out

    def _extract(
        self,
        tap: Tap,
        latents: ArrayLike,
        *,
        learn: bool,
        first: int = 0,
        verbose: int | None = None,
    ) -> ArrayLike:
        """Activations, in one; ``learn`` from the first batch as ``fit`` does."""
        fitted = not learn
        extract = self._extraction(tap, latents, first)

        def make(run: Run, where: slice) -> Tensor:
            nonlocal fitted
            if fitted:
                return extract(run, where)
            found = self._learn(run, tap, latents[where], latents.shape)
            fitted = True
            return found

        found = self._collect(make, latents, "activations", verbose, tap.n_rows)
        return Origin.of(latents).give(found)

    def _extraction(
        self, tap: Tap, latents: ArrayLike, first: int = 0
    ) -> Callable[[Run, slice], Tensor]:
        """A function that gives the activations of slices of checked latents.

        ``first`` is the number of the first of them among all.
        """
        stop = can_be_stopped(self.generator)

        def extract(run: Run, where: slice) -> Tensor:
            batch = latents[where]
            rows = slice(first + where.start, first + where.stop)
            n = len(batch)
            seen = capture(tap, lambda: run(batch, rows), n_samples=n, stop=stop)
            found = seen.found()
            self._check_shape(found)
            return found

        return extract

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

    def generate(self, latents, features=None):
        r"""Generate images, with the layer's activations replaced if wanted.

        Parameters
        ----------
        latents : array of shape (n_samples, ...)
            Latents.

        features : array of shape (n_samples, n_channels, \*spatial), default=None
            What to put in the place of the layer's activations, shaped as ``transform``
            gives them. Or a callable: it is given each batch's activations at each of
            the calls, a tensor on the network's device, and returns their replacement.
            ``None`` leaves them.

        Returns
        -------
        images : array of shape (n_samples, ...)
            What the network gives.

        Raises
        ------
        TypeError, ValueError
            If ``latents`` or ``features`` are of another shape, or hold something else
            than finite numbers.
        """
        latents, origin = self._check_latents(latents)
        if features is None:
            return origin.give(generate_changed(self, latents, None))
        replacement = self._replacement(features, len(latents))

        def change(where: slice, take: Take) -> Callable[[Tensor, Moment], Tensor]:
            return lambda old, moment: _own(replacement(where, old, moment), old)

        return origin.give(generate_changed(self, latents, change))

    def _replacement(
        self, features: Any, n_samples: int
    ) -> Callable[[slice, Tensor, Moment], Any]:
        """What takes the place of activations, by samples and call."""
        if callable(features):
            return lambda where, old, moment: features(old)
        given = self._check_features(features, n_samples)
        split, calls = self._by_calls(given, n_samples), self._tap().calls or (0,)
        return lambda where, old, moment: split[where, calls.index(moment.call)]

    def split_calls(self, features):
        r"""Arrange activations by the calls that they are of.

        Parameters
        ----------
        features : array
            As ``transform`` gives them, or anything else with its rows, such as what a
            decomposition makes of them; with ``calls_as="channels"`` with its channels,
            too.

        Returns
        -------
        split : array of shape (n_samples, n_calls, ...)
            A view. Without the axis of calls each entry is as if that call alone were
            taken.

        Raises
        ------
        TypeError, ValueError
            If it has other rows or channels, or of means, which have no calls left.
        """
        check_is_fitted(self)
        features = check_values(features, "features", "(n_rows, ...)")
        n, how = self.n_calls_, self.calls_as
        if how == "mean" and n > 1:
            raise ValueError("calls_as='mean' leaves one row, which is of no one call.")
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

    def _by_calls(self, features: Tensor, n_samples: int) -> Tensor:
        """Checked activations with an axis of calls after that of the samples."""
        if self.calls_as == "mean" and self.n_calls_ > 1:
            raise ValueError(
                "features are means of calls, from which those of each call are not "
                "known: give a callable, which gets them call by call."
            )
        split = self.split_calls(features)
        assert isinstance(split, Tensor) and len(split) == n_samples
        return split

    def get_feature_names_out(self, input_features=None):
        """Name the channels.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only compared with the names seen by ``fit``.

        Returns
        -------
        names : ndarray of str objects
            "channel0", "channel1" and so on, for the second axis of ``transform``.
        """
        check_is_fitted(self)
        check_feature_names_in(self, input_features)
        names = [f"channel{c}" for c in range(self.feature_shape_[0])]
        return np.asarray(names, dtype=object)

    def set_output(self, *, transform=None):
        """Do nothing: activations have more axes than a data frame.

        Parameters
        ----------
        transform : str, default=None
            Accepted so that a Pipeline can pass it on to its other steps: "default",
            "pandas", "polars" or ``None``.

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
        """Whether several calls are asked for, if need be of one."""
        return isinstance(self.call, list | slice | str)

    def _calls(self, n_runs: int) -> tuple[int, ...]:
        """The calls that are asked for, of so many."""
        if isinstance(self.call, list):
            chosen = check_indices("call", self.call, n_runs)
            if len(set(chosen)) < len(chosen):
                raise ValueError(f"call must name each call once, got {self.call}.")
            return tuple(sorted(chosen))
        which = slice(None) if isinstance(self.call, str) else self.call
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

    def _tap(self, **known: Any) -> Tap:
        """The tapped tensor; raises if there is no such layer.

        ``calls`` are those of the layer, if they are not known from ``fit``.
        """
        check_forward(self.forward)
        if isinstance(self.call, list):
            if not self.call:
                raise ValueError("call is empty: name one call at least.")
            for each in self.call:
                check_count("each of call", each, at_least=0)
        grid = self.token_grid
        if grid is not None:
            if not 1 <= len(grid) <= 3:
                raise ValueError(
                    f"token_grid must have one, two or three sizes, got {grid!r}."
                )
            grid = tuple(check_count("token_grid", size) for size in grid)
        layout = FeatureLayout(self.channel_axis, self.n_prefix_tokens, grid)
        layout.check()
        layer = find_layer(self.generator, self.layer)
        if "calls" in known:
            calls = known["calls"]
        elif self._takes_several():
            calls = self._calls(self._n_runs)
        else:
            calls = None if self.call is None else (int(self.call),)
        guidance = {"first": 0, "last": -1}.get(self.guidance, self.guidance)
        return Tap(
            self.layer,
            layer,
            self.tap,
            self.select,
            calls,
            layout,
            self.calls_as,
            guidance,
        )

    def _running(self, undo: Undo) -> Run:
        """Borrow the network; it is moved only if ``device`` says so."""
        return running(undo, self.generator, self.forward, self._destination())

    def _destination(self) -> torch.device | None:
        """Where to move the network; ``None`` is nowhere."""
        return None if self.device is None else check_device(self.device)

    def _check_new(self, X: ArrayLike) -> ArrayLike:
        """Latents of any shape, for ``fit``."""
        latents = check_numeric_array(
            self, X, reset=True, keep_dtype=True, shape=SAMPLES
        )
        check_fits(latents, "X", dtype_of(self.generator, torch.float64))
        return latents

    def _check_latents(
        self, X: ArrayLike, name: str = "latents"
    ) -> tuple[ArrayLike, Origin]:
        """Latents of the shape seen by fit, and where they came from.

        With the parameters, which may have changed since.
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
        """Replacement activations as a tensor."""
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
        """Raise unless activations are of the shape that fit saw."""
        shape = tuple(features.shape[1:])
        if shape != self.feature_shape_:
            raise ValueError(
                f"Layer {self.layer!r} gave activations of shape {shape}, but "
                f"{self.feature_shape_} when {type(self).__name__} was fitted. Fit it "
                "again."
            )

    def _collect(
        self,
        make: Callable[[Run, slice], Tensor],
        latents: ArrayLike,
        what: str,
        verbose: int | None = None,
        rows: int = 1,
    ) -> Tensor:
        """What ``make(run, where)`` gives for slices of the latents, as one.

        So many rows for each latent, where the latents are. Holds the result and one
        batch; borrows the network meanwhile.
        """
        device = Origin.of(latents).device
        whole: Tensor | None = None
        with Undo() as undo, undo:
            make_one = functools.partial(make, self._running(undo))
            for where, part in self._each(make_one, latents, what, verbose, rows):
                if whole is None:
                    shape = (rows * len(latents), *part.shape[1:])
                    whole = torch.empty(shape, dtype=part.dtype, device=device)
                whole[rows * where.start : rows * where.stop].copy_(part)
                del part
        assert whole is not None  # there is a sample at least
        return whole

    def _each(
        self,
        make: Callable[[slice], Tensor],
        latents: ArrayLike,
        what: str,
        verbose: int | None = None,
        rows: int = 1,
    ) -> Generator[tuple[slice, Tensor], None, None]:
        """Slices of the latents and what ``make`` gives for each, which is not kept."""
        batches = Batches(len(latents), self._length_of_batches())
        with tqdm(
            total=len(latents),
            desc=f"{type(self).__name__}, {what}",
            disable=not (self.verbose if verbose is None else verbose),
            mininterval=1,
        ) as bar:

            def make_and_check(where: slice) -> Tensor:
                part = make(where)
                n = where.stop - where.start
                if part.ndim == 0 or len(part) != rows * n:
                    raise ValueError(
                        f"The network gave {what} of shape {tuple(part.shape)} for {n} "
                        "samples: their first axis must be the samples."
                    )
                bar.update(n)
                return part.detach()

            yield from batches.map(make_and_check)
        if batches.shrank:
            self._batch_that_fits = (self.batch_size, self.device, batches.size)
            batches.warn()

    def _length_of_batches(self) -> int:
        """Number of samples in a batch, as far as is known."""
        fits = self._batch_that_fits
        if fits is not None and fits[:2] == (self.batch_size, self.device):
            return fits[2]
        return self.batch_size

    def __getstate__(self):
        """Without the memory and the batch size, which belong to the process."""
        state = super().__getstate__()
        own = ("_memory", "_batch_that_fits")
        return {name: value for name, value in state.items() if name not in own}

    def __sklearn_clone__(self):
        """A clone that shares the network and its forward function."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("generator", "forward")}
        copied = {name: clone(value, safe=False) for name, value in params.items()}
        twin = type(self)(**shared, **copied)
        if hasattr(self, "_metadata_request"):  # as scikit-learn's own clone does
            twin._metadata_request = copy.deepcopy(self._metadata_request)
        return twin


def _own(features: Any, original: Tensor) -> Any:
    """Features in memory of their own: the network may write into them."""
    if isinstance(features, Tensor) and features is not original:
        return features.clone()
    return features


# What editing needs of a fitted extractor, beside its methods. Latents are checked by
# the first; the others trust them.


def check_latents(
    extractor: GeneratorFeatureExtractor, latents: ArrayLike, name: str = "latents"
) -> tuple[ArrayLike, Origin]:
    """Latents of the shape seen by ``fit``, and where they came from."""
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
    """Activations of checked latents, of which no memory is asked.

    ``first`` is the number of the first of them among all.
    """
    tap = extractor._tap()
    return extractor._extract(tap, latents, learn=False, first=first, verbose=verbose)


def length_of_batches(extractor: GeneratorFeatureExtractor) -> int:
    """Number of samples in a forward pass, as far as is known."""
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

    Gradients are off. Where they are put on, they reach latents that require them, and
    derivatives in forward mode pass.
    """
    return extractor._running(undo)


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
    """Images of checked latents, on their device, with activations changed.

    At the calls that the extractor takes, or at others; in the samples' own part of
    batches that guidance multiplies, or in the others, too. ``rows`` are the numbers of
    the latents among all, from 0 if they are not given. ``replays`` are of the same
    latents, from :func:`recorded`.
    """
    tap = extractor._tap()
    changed = tap if calls is None else dataclasses.replace(tap, calls=calls)
    stop = can_be_stopped(extractor.generator)
    if replays and (changed.calls or (0,))[0] < (tap.calls or (0,))[0]:
        replays = None  # what they know ends later

    def make(run: Run, where: slice) -> Tensor:
        of = where if rows is None else rows[where]
        n = where.stop - where.start

        def take(others: ArrayLike) -> Tensor:
            return capture(tap, lambda: run(others, of), n_samples=n, stop=stop).found()

        def whole() -> Any:
            return run(latents[where], of)

        replay = (replays or {}).get((where.start, where.stop))
        if change is None:
            made = whole()
        else:
            apply = change(where, take)

            def edited() -> Any:
                return replace(
                    changed,
                    apply,
                    whole,
                    n_samples=n,
                    others=others,
                    n_skipped=0 if replay is None else replay.n_skipped,
                )

            made = edited() if replay is None else replay.again(edited)
        if not isinstance(made, Tensor):
            raise TypeError(
                f"The network returned a {type(made).__name__}, expected a tensor "
                "of images. Pass a forward that returns that."
            )
        return made

    return extractor._collect(make, latents, "images", verbose)


def recorded(
    extractor: GeneratorFeatureExtractor, latents: Tensor
) -> tuple[Tensor, Replays]:
    """Images of checked latents, and what later passes of them need not compute again.

    Nothing, of networks of which a pass that is given what is known makes other images:
    where layers leave something for others, past what they return. What a pass of other
    latents leaves is tried.
    """
    tap, replays = extractor._tap(), Replays()

    def make(run: Run, where: slice) -> Tensor:
        replay = Replay(extractor.generator, tap)
        made = replay.record(lambda: run(latents[where], where))
        batch = latents[where]
        others = -batch if is_floating(batch) else batch.flip(0)
        try:
            run(others, where)
            again = replay.again(lambda: run(batch, where))
            same = isinstance(made, Tensor) and torch.equal(made, again)
        except Exception:  # of layers that miss what others left them
            same = False
        if same:
            replays[where.start, where.stop] = replay
        return made

    return extractor._collect(make, latents, "images", 0), replays
