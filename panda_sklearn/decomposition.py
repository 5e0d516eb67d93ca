"""The estimator of parts and appearances.

It checks its input, turns it into tensors of shape (N, C, S) once, and leaves the
mathematics to :mod:`panda_sklearn.core` and :mod:`panda_sklearn.solvers`. It knows
nothing of networks.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from panda_sklearn._alignment import aligned
from panda_sklearn._learning import (
    Found,
    Learnt,
    attributes_of_batch,
    attributes_of_fit,
    batch_size_of,
    constraint_of,
    factors_of,
    fit_samples,
    learn_batch,
    n_tasks_of,
)
from panda_sklearn._ranks import ProcessGroup, fit_together, ranks_of, without_group
from panda_sklearn._state import (
    OF_FILE,
    OF_LATER_STREAM,
    OF_STREAM,
    RECORDS,
    read_file,
    write_file,
)
from panda_sklearn._variations import (
    part_distances,
    part_weights,
    variations_of,
)
from panda_sklearn._watching import progress_bar
from panda_sklearn.core.factors import Factors
from panda_sklearn.core.objective import accumulator_dtype, sample_energies
from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.solvers import SOLVERS, STOPPED, refine_parts
from panda_sklearn.sources import Writer, open_data
from panda_sklearn.sources.blocks import SpreadOverBlocks
from panda_sklearn.sources.ranks import Ranks
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.arrays import ArrayLike, MapLayout, Origin, as_tensor
from panda_sklearn.utils.callbacks import (
    OF_CALLBACKS,
    CallbackSupportMixin,
    Task,
    begin_fit,
)
from panda_sklearn.utils.hashing import fingerprint
from panda_sklearn.utils.parts import as_part, check_given
from panda_sklearn.utils.persistence import from_plain, to_plain
from panda_sklearn.utils.resizing import check_size, resize
from panda_sklearn.utils.starts import Start, check_start
from panda_sklearn.utils.thresholds import check_threshold, masks_of
from panda_sklearn.utils.validation import (
    RANDOM_STATE,
    Interval,
    Options,
    StrOptions,
    check_count,
    check_device,
    check_feature_names_in,
    check_flag,
    check_index,
    check_is_fitted,
    check_kind,
    check_parameters,
    check_same_layout,
    check_scale,
    check_values,
    find_layout,
    fit_method,
    wants_container,
)
from panda_sklearn.utils.values import ValueCheck

__all__ = [
    "PartsAppearanceDecomposition",
    "factors_of",
    "layout_of",
    "samples_of",
]

# Attributes that earlier fits, streams and files have left, which a new fit removes.
OF_EARLIER_FITS = {
    *OF_STREAM,
    *OF_LATER_STREAM,
    *OF_FILE,
    "feature_names_in_",
    "n_bytes_sent_",
}

# Attributes that are not saved: they belong to the process or to the user's code.
NOT_IN_FILES = {
    *OF_CALLBACKS,
    "_metadata_request",
    "_sklearn_output_config",
    "n_bytes_sent_",
}

# Elements that partial_fit reads at a time from data that are not in memory.
LEARNT_AT_ONCE = 2**25


def _learns_from_streams(panda: PartsAppearanceDecomposition) -> bool:
    """Return True if the solver can; otherwise there is no ``partial_fit``."""
    if not SOLVERS[panda.solver].learns_from_streams:
        raise AttributeError(
            f"partial_fit needs solver='spg', got solver={panda.solver!r}. Call fit "
            "with all samples instead."
        )
    return True


@dataclass(frozen=True)
class _AddErrors:
    """Adds up the squared errors and the squares of batches."""

    factors: Factors

    def __call__(self, Z: Tensor, error: Tensor, energy: Tensor) -> None:
        error += self.factors.objective(Z)
        energy += sample_energies(Z).sum()


class PartsAppearanceDecomposition(
    CallbackSupportMixin, TransformerMixin, BaseEstimator
):
    r"""Parts and appearances of feature maps (PandA).

    Given the activations :math:`Z_i` (channels x positions) of many samples at one
    layer, finds the appearances :math:`A` and the non-negative parts :math:`P` that
    minimise

    .. math::

        \sum_i \lVert Z_i - A (A^\top Z_i P) P^\top \rVert_F^2
        \quad \text{subject to } P \ge 0,

    which is equation (3) of [1]_. Parts say *where*, appearances say *what*, and the
    coefficients :math:`A^\top Z_i P` say how much of each appearance a sample has at
    each part. The :ref:`user guide <user_guide>` explains the model and its symbols.

    Parameters
    ----------
    n_parts : int, default=None
        Number of parts, at most the number of positions. ``None`` means 8, or the
        number of positions if that is smaller.

    n_appearances : int, default=None
        Number of appearances, at most the number of channels. ``None`` means as many
        as there are channels.

    solver : {"spg", "pgd", "adam"}, default="spg"
        - "spg": fits some of the samples first, then makes one pass over all samples
          per iteration. It solves alternately for the parts, by spectral projected
          gradients, and for the appearances, nearly in closed form, on second moments.
          It needs no learning rate and few passes, reaches low objectives and returns
          canonical factors; see :ref:`solvers`.
        - "pgd": block-coordinate projected gradient descent with the gradients (4)
          and (5) in closed form, Algorithm 1 of [1]_. Needs the samples in memory.
        - "adam": Adam with automatic differentiation (section 4.3.3). Needs the
          samples in memory.

    init : {"hosvd", "random"} or pair of arrays, default="hosvd"
        The initial factors.

        - "hosvd": appearances are the leading eigenvectors of the channel scatter
          (section 3.4), and parts are drawn from U(0, 0.01). In the first start of
          "spg" the parts are grown around the positions that differ most.
        - "random": appearances are random orthonormal vectors, the same in all starts
          of "spg", and parts are drawn from U(0, 0.01).
        - ``(appearances, parts)``: arrays of shapes (n_appearances, n_channels) and
          (n_parts, \*spatial), like the fitted attributes.

    n_init : int or "auto", default="auto"
        Number of starts. "spg" first descends from each with the appearances held
        fixed, which costs little, and continues from the best. The other solvers make
        a whole fit from each and keep the best. "auto" means 10 for "spg", and 1 for
        the other solvers and for given factors.

    max_iter : int, default=1000
        Maximum number of iterations.

    tol : float, default=1e-6
        The fit stops when the objective, as a fraction of the data's sum of squares,
        falls by less than this in an iteration. "pgd" and "adam" average over ten
        iterations, and over whole passes through the data if there is a
        ``batch_size``. With 0 the fit runs for ``max_iter`` iterations, or until
        nothing lowers the objective.

    learning_rate : float, default=None
        Step size of "pgd" and "adam", for gradients summed over the samples of an
        iteration. ``None`` chooses one that does not depend on the scale of the data:
        "pgd" adapts it so that each step lowers the objective of the samples that it
        uses and, with ``batch_size``, shortens it when whole passes no longer help;
        "adam" uses 0.1 / sqrt(max(n_channels, n_positions)). "spg" does not use it.

    batch_size : int, default=None
        For "pgd" and "adam", the number of samples that an iteration uses. ``None``
        means all of them; with a number, each pass goes through the samples in a new
        random order, in more and much cheaper iterations. "spg" always uses all
        samples; for it, this is the number whose products ``fit`` holds in memory at a
        time. It changes nothing else, and ``None`` chooses a number that takes little
        memory compared to the data.

    nonnegative : bool, default=True
        Whether parts are constrained to be non-negative. ``False`` is the ablation of
        section 4.3.1; "spg" then needs no start for the parts.

    map_shape : tuple of int, default=None
        Shape (n_channels, \*spatial) of one sample, for a 2-D ``X`` whose rows are
        flattened maps. With ``None`` the rows of a 2-D ``X`` are maps with one channel
        and one spatial axis.

    channel_axis : {1, -1}, default=1
        Axis of the channels in an ``X`` with more than two axes: 1 for
        (n_samples, n_channels, \*spatial), -1 for (n_samples, \*spatial, n_channels).

    device : str or torch.device, default=None
        Device for the computations on numpy input; ``None`` means the CPU.
        Computations on tensors run on the tensors' device.

    distributed : {"auto"}, bool or ProcessGroup, default="auto"
        Whether ``fit`` and ``partial_fit`` learn from the samples of all processes of
        a ``torch.distributed`` group; see :ref:`scaling_up`. All processes call the
        method, each with its own shard (or with ``None`` if it has no samples), and
        all get the same factors. "auto" does so if a default group of more than one
        process is initialised; True requires a default group; a group made by
        ``torch.distributed.new_group`` is used itself. The other methods always work
        in one process.

    random_state : int, RandomState instance or None, default=None
        Determines the starts and the order of the batches. Pass an int for the same
        result at every call. Another processor or number of threads rounds
        differently, and may reach another of several competing minima.

    verbose : int, default=0
        Whether to show a progress bar. See also ``set_callbacks`` under Notes.

    Attributes
    ----------
    parts_ : array of shape (n_parts, \*spatial)
        The parts, the columns of P.

    appearances_ : array of shape (n_appearances, n_channels)
        The appearances, the columns of A.

    n_iter_ : int
        Number of iterations; after ``partial_fit``, the number of batches seen.

    n_bytes_sent_ : int
        Number of bytes that this process sent to its group in the last fit or batch;
        only present if that was by several processes.

    n_passes_ : int
        Number of times that the samples were read; the iterations of "pgd" and "adam"
        do not count. It is 1 after ``partial_fit``, and 0 if the estimator is from a
        file that did not store it yet.

    objective_history_ : ndarray of shape (n_iter,)
        Mean over samples of the objective (3) after each iteration. It never rises
        with "spg". If "pgd" and "adam" draw batches, it is over the samples of the
        iteration and before its step; the last value is over all samples at the end.
        After ``partial_fit`` it is over all samples so far, with the second moments of
        earlier batches as they were at the time.

    reconstruction_err_ : float
        Mean over samples of the objective (3) at the fitted factors: the last value of
        ``objective_history_``.

    saliency_mean_ : array of shape (n_appearances,)
        Mean of each appearance's saliency over training samples and positions,
        :math:`\mu_k` of section 4.1.2.

    saliency_covariance_ : array of shape (n_appearances, n_appearances)
        Covariance of the appearances' saliencies over training samples and positions.

    saliency_std_ : array of shape (n_appearances,)
        Standard deviations of the saliencies: the square roots of the diagonal of
        ``saliency_covariance_``.

    coefficient_mean_ : array of shape (n_appearances, n_parts)
        Mean of the coefficients over training samples. This attribute and the next two
        are missing if the estimator is from a file that did not store them yet. After
        ``partial_fit`` they describe earlier batches by the factors of their time; in
        a stream continued from such a file, they cover the samples since.

    coefficient_covariance_ : array of shape (n_parts, n_appearances, n_appearances)
        Covariance of the coefficients at each part over training samples.

    coefficient_cross_covariance_ : array of the same shape
        Covariance between the coefficients at each part and their sum over all parts.

    layer_ : str
        Name of the layer that the activations are from; only present if the estimator
        was loaded from a file that names it.

    network_ : str
        Fingerprint of the network that the activations are from; only present if the
        estimator was loaded from a file that has it.

    n_samples_seen_ : int
        Number of samples that ``partial_fit`` has learnt from; only present after it.

    map_shape_ : tuple of int
        Shape (n_channels, \*spatial) of one sample.

    n_features_in_ : int
        Number of columns of a 2-D ``X``; otherwise the number of channels.

    feature_names_in_ : ndarray of shape (n_features_in,)
        Names of the columns of ``X``; only present if these are all strings.

    See Also
    --------
    GeneratorFeatureExtractor : Returns the activations of a layer of a network.
    LocalEditor : Edits a generator's images with the fitted factors.
    sklearn.decomposition.NMF : Non-negative factors of a matrix.

    Notes
    -----
    Arrays are numpy arrays or torch tensors of float32 or float64; half precision and
    integers are promoted to float32. Every method returns arrays of the kind and dtype
    that it was given, tensors on the same device. The array attributes are of the kind
    and dtype that ``fit`` was given.

    Wherever ``X`` is activations, it may also be an array on disk (a memory map, HDF5,
    Zarr), a torch ``Dataset`` or ``DataLoader``, an object that gives batches each time
    it is iterated over, or ``GeneratorFeatureExtractor.batches(latents)``. Such data
    are read in batches and never loaded whole; see :ref:`large_data`.

    The objective does not change under A -> cAR, P -> P / c with R orthogonal, nor with
    the order of the parts. Of all such pairs "spg" returns the canonical one:

    - A is scaled to be as close as possible to orthonormal columns.
    - The coefficients of different appearances are uncorrelated over samples and
      parts. Appearances are sorted by decreasing energy, and zero beyond the rank of
      the data.
    - Parts are sorted by decreasing contribution to the energy, equal ones by the
      position of their peak.
    - The entry of largest magnitude of each appearance is positive.

    "pgd" and "adam" leave scale and rotation as they end up. The objective has local
    minima, so fits from different starts can differ.

    With scikit-learn 1.9 or later, ``set_callbacks`` registers callbacks on ``fit``,
    whose tasks are the iterations, or the starts with their iterations; see
    :ref:`callbacks`.

    References
    ----------
    .. [1] J. Oldfield, C. Tzelepis, Y. Panagakis, M. A. Nicolaou, I. Patras. "PandA:
       Unsupervised Learning of Parts and Appearances in the Feature Maps of GANs".
       International Conference on Learning Representations (ICLR), 2023.
       https://arxiv.org/abs/2206.00048

    Examples
    --------
    >>> from panda_sklearn import PartsAppearanceDecomposition
    >>> from panda_sklearn.datasets import make_parts_appearances
    >>> X, parts, appearances = make_parts_appearances(
    ...     n_samples=50, n_parts=3, n_appearances=5, random_state=0
    ... )
    >>> X.shape
    (50, 16, 8, 8)
    >>> panda = PartsAppearanceDecomposition(
    ...     n_parts=3, n_appearances=5, random_state=0
    ... ).fit(X)
    >>> panda.parts_.shape, panda.appearances_.shape
    ((3, 8, 8), (5, 16))
    >>> panda.transform(X).shape
    (50, 15)
    >>> panda.score(X) > 0.99
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_parts": [Interval(Integral, 1, None, closed="left"), None],
        "n_appearances": [Interval(Integral, 1, None, closed="left"), None],
        "solver": [StrOptions(set(SOLVERS))],
        "init": [StrOptions({"hosvd", "random"}), tuple, list],
        "n_init": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "nonnegative": ["boolean"],
        "map_shape": [tuple, list, None],
        "channel_axis": [Options(Integral, {1, -1})],
        "device": [str, torch.device, None],
        "distributed": ["boolean", StrOptions({"auto"}), ProcessGroup],
        "random_state": RANDOM_STATE,
        "verbose": ["verbose"],
    }

    _flattened: bool  # whether X was, in fit

    # ``out`` is no metadata of samples, which scikit-learn would take it for.
    __metadata_request__transform: ClassVar[dict] = {"out": UNUSED}

    def __init__(
        self,
        n_parts: int | None = None,
        n_appearances: int | None = None,
        *,
        solver: str = "spg",
        init: str | tuple[ArrayLike, ArrayLike] = "hosvd",
        n_init: int | str = "auto",
        max_iter: int = 1000,
        tol: float = 1e-6,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        nonnegative: bool = True,
        map_shape: tuple[int, ...] | None = None,
        channel_axis: int = 1,
        device: str | torch.device | None = None,
        distributed: Any = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_parts = n_parts
        self.n_appearances = n_appearances
        self.solver = solver
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.nonnegative = nonnegative
        self.map_shape = map_shape
        self.channel_axis = channel_axis
        self.device = device
        self.distributed = distributed
        self.random_state = random_state
        self.verbose = verbose

    # Fitting

    @fit_method
    @own_arithmetic
    def fit(self, X: Any, y: Any = None) -> Self:
        r"""Learn parts and appearances.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations with one, two or three spatial axes, or laid out as
            ``channel_axis`` and ``map_shape`` say. They need not be in memory; see
            :ref:`large_data`.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            If a parameter is invalid, if ``X`` is not numeric, dense, finite and of
            such a shape, if ``n_parts`` or ``n_appearances`` is too large for the data,
            or if the given ``learning_rate`` makes the fit diverge. Also if ``X`` can
            be iterated over only once, gives other samples in a later pass, or is not
            in memory and ``solver`` needs it there.
        OSError
            If ``X`` is on disk and cannot be read.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` iterations did not meet ``tol``.
        """
        for name in OF_EARLIER_FITS:
            self.__dict__.pop(name, None)
        task = begin_fit(self, X, y, n_tasks_of(self))
        ranks = ranks_of(self.distributed)
        if ranks is None:
            samples, layout, origin, start = self._check_fit(X)
            found = fit_samples(self, samples, start, layout, origin, task)
        else:
            found, layout, origin = self._fit_with_others(ranks, X, task)
            self.n_bytes_sent_ = ranks.n_bytes
        self.__dict__.update(attributes_of_fit(found, layout, origin))
        if not found.converged and found.reason != STOPPED and self.tol > 0:
            warnings.warn(
                f"The {self.solver!r} solver stopped since {found.reason}, before "
                f"tol={self.tol:g} was met. Increase max_iter (it is "
                f"{self.max_iter}) or tol.",
                ConvergenceWarning,
                stacklevel=5,  # past the wrappers of fit
            )
        if task is not None:
            task.end({})
        return self

    def _fit_with_others(
        self, ranks: Ranks, X: Any, task: Task | None
    ) -> tuple[Found, MapLayout, Origin]:
        """Fit to the samples of all processes."""

        def check() -> tuple[Samples, MapLayout, Origin]:
            if not SOLVERS[self.solver].reads_in_order:
                raise ValueError(
                    f"solver={self.solver!r} needs all samples in the memory of one "
                    "process. Use solver='spg', or distributed=False."
                )
            return self._check_fit(X)[:3]

        def fit(samples: Samples, layout: MapLayout, origin: Origin) -> Found:
            how = layout, samples.dtype, constraint_of(self)
            start = check_start(self, *how, goes_on=False)
            return fit_samples(self, samples, start, layout, origin, task)

        return fit_together(self, ranks, X, check, fit)

    @available_if(_learns_from_streams)  # type: ignore[untyped-decorator]
    @fit_method
    @own_arithmetic
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        r"""Learn from one more batch of samples, in constant memory.

        The first batch is fitted as by ``fit``, so it should have enough samples to
        tell the parts apart. Of earlier batches only the second moments are kept, as
        they were at the factors of the time:
        3 n_channels^2 + 2 n_positions^2 + 2 n_parts n_appearances^2 numbers. Only
        ``solver="spg"`` has this method. After ``fit``, a new stream begins at the
        fitted factors; the samples of ``fit`` do not count in it.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            A batch of activations, laid out as for ``fit``. Data that are not in
            memory (:ref:`large_data`) are read once and learnt from piece by piece.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The estimator, fitted to all batches so far.

        Raises
        ------
        TypeError, ValueError
            As ``fit``, or if ``X`` is laid out differently from earlier batches.
        OSError
            If ``X`` is on disk and cannot be read.
        """
        first = not hasattr(self, "parts_")
        ranks = ranks_of(self.distributed)
        if ranks is not None:
            learnt, layout, origin = self._learn_with_others(ranks, X, first)
            self.__dict__.update(attributes_of_batch(self, learnt, layout, origin))
            self.n_bytes_sent_ = ranks.n_bytes
            return self
        self.__dict__.pop("n_bytes_sent_", None)
        samples, layout, origin, start = self._check_fit(X, reset=first)
        if samples.spread:
            raise ValueError(
                "partial_fit takes arrays, or data that this process reads, got a "
                "dask array. Call fit, or give partial_fit its blocks one by one."
            )
        if isinstance(samples, InMemory):
            samples.batch_size = samples.n_samples
        elif samples.batch_size is None:
            n_numbers = samples.n_channels * samples.n_positions
            samples.batch_size = max(1, LEARNT_AT_ONCE // n_numbers)

        def learn_from(Z: Tensor) -> None:
            batch = InMemory(Z, batch_size=len(Z))
            learnt = learn_batch(self, batch, start)
            self.__dict__.update(attributes_of_batch(self, learnt, layout, origin))

        samples.accumulate(learn_from)
        return self

    def _learn_with_others(
        self, ranks: Ranks, X: Any, first: bool
    ) -> tuple[Learnt, MapLayout, Origin]:
        """Learn from a batch of which each process has a piece."""

        def check() -> tuple[Samples, MapLayout, Origin]:
            samples, layout, origin, _ = self._check_fit(X, reset=first)
            if not isinstance(samples, InMemory):
                raise ValueError(
                    "partial_fit by several processes takes arrays in memory, got a "
                    f"{type(X).__name__}. Use fit, or distributed=False."
                )
            samples.batch_size = samples.n_samples
            return samples, layout, origin

        def learn_from(samples: Samples, layout: MapLayout, _: Origin) -> Learnt:
            how = layout, samples.dtype, constraint_of(self)
            return learn_batch(
                self, samples, check_start(self, *how, goes_on=not first)
            )

        state = (
            getattr(self, "n_samples_seen_", 0),
            getattr(self, "parts_", ()),
            getattr(self, "appearances_", ()),
        )
        return fit_together(self, ranks, X, check, learn_from, state=state)

    def _check_fit(
        self, X: Any, *, reset: bool = True
    ) -> tuple[Samples, MapLayout, Origin, Start]:
        """Check all but the values; return samples, layout, origin and start."""
        in_memory = not SOLVERS[self.solver].reads_in_order
        if self.device is not None:
            check_device(self.device)
        data = open_data(self, X, reset=reset, in_memory=in_memory)
        if reset:
            layout = find_layout(
                data, map_shape=self.map_shape, channel_axis=self.channel_axis
            )
        else:
            layout = layout_of(self)
            check_same_layout(self, data, layout)
        start = check_start(
            self, layout, data.dtype, constraint_of(self), goes_on=not reset
        )
        check, batch_size = ValueCheck(layout), batch_size_of(self)
        samples = data.samples(
            layout, check=check, batch_size=None if in_memory else batch_size
        )
        if in_memory:
            samples.accumulate(lambda Z: None)  # the pass checks the values
        return samples, layout, data.origin, start

    # Encoding

    @own_arithmetic
    def transform(self, X: Any, *, out: Any = None) -> Any:
        r"""Encode activations as coefficients, one row per sample.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        out : array of shape (n_samples, n_appearances * n_parts), default=None
            Where to write the result, batch by batch; it is also returned. An array,
            tensor, memory map, HDF5 dataset, Zarr array or anything else that supports
            assignment to slices. After an exception it is incomplete.

        Returns
        -------
        T : array of shape (n_samples, n_appearances * n_parts)
            The coefficients A'Z_iP, row by row: all parts of the first appearance,
            then those of the second, and so on.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not numeric, dense and finite, or its samples have another shape
            than in ``fit``; if it can be iterated over only once, or is shuffled in
            each pass; if a parameter was set to an invalid value since ``fit``; or if
            ``out`` has another shape or does not hold floating-point numbers.
        OSError
            If ``X`` cannot be read, or ``out`` cannot be written to.
        """
        T = self._of_samples(X, lambda factors, Z: factors.encode(Z).flatten(1), out)
        if out is None and isinstance(T, Tensor) and wants_container(self):
            return T.cpu().numpy()
        return T

    @own_arithmetic
    def coefficients(self, X: Any, *, out: Any = None) -> Any:
        r"""Encode activations as coefficients, one matrix per sample.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        out : array of shape (n_samples, n_appearances, n_parts), default=None
            Where to write the result, batch by batch; it is also returned. An array,
            tensor, memory map, HDF5 dataset, Zarr array or anything else that supports
            assignment to slices. After an exception it is incomplete.

        Returns
        -------
        L : array of shape (n_samples, n_appearances, n_parts)
            The coefficients A'Z_iP of equation (2).

        Raises
        ------
        TypeError, ValueError, OSError
            As ``transform``.
        """
        return self._of_samples(X, lambda factors, Z: factors.encode(Z), out)

    @own_arithmetic
    def inverse_transform(self, X: Any) -> ArrayLike:
        r"""Reconstruct activations from coefficients.

        Parameters
        ----------
        X : array of shape (n_samples, n_appearances * n_parts)
            Coefficients as from ``transform``, or of shape (n_samples, n_appearances,
            n_parts) as from ``coefficients``.

        Returns
        -------
        X_original : array of shape (n_samples, n_channels, \*spatial)
            The reconstruction A L_i P', laid out like the ``X`` given to ``fit``.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not numeric, dense and finite, or has another shape.
        """
        check_is_fitted(self)
        check_parameters(self)
        R_C, R_S = len(self.appearances_), len(self.parts_)
        shapes = f"(n_samples, {R_C * R_S}) or (n_samples, {R_C}, {R_S})"
        L = check_values(X, "X", shapes)
        if tuple(L.shape[1:]) not in {(R_C, R_S), (R_C * R_S,)}:
            raise ValueError(
                f"X must be coefficients of shape {shapes}, got {tuple(L.shape)}."
            )
        origin, L = Origin.of(L), as_tensor(L, self.device)
        check_scale(L, squared=False)
        maps = factors_of(self, L).decode(L.reshape(-1, R_C, R_S))
        return origin.give(layout_of(self).from_maps(maps))

    @own_arithmetic
    def score(self, X: Any, y: Any = None) -> float:
        r"""Return the fraction of the sum of squares that the factors explain.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            1 - sum of squared errors / sum of squares, uncentred: 1 is perfect.
            Activations that are all zero are reconstructed exactly and score 1.
        """
        samples, _ = samples_of(self, X, squared=True)
        add = _AddErrors(factors_of(self, samples))
        dtype = accumulator_dtype(samples.device)
        totals = torch.zeros(2, dtype=dtype, device=samples.device).unbind()
        error, energy = map(float, samples.accumulate(add, *totals))
        return 1 - max(error, 0.0) / energy if energy > 0 else 1.0

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns of ``transform``.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only compared with the names seen in ``fit``.

        Returns
        -------
        names : ndarray of str objects
            "appearance0_part0", "appearance0_part1" and so on.
        """
        check_is_fitted(self)
        check_feature_names_in(self, input_features)
        names = [
            f"appearance{j}_part{k}"
            for j in range(len(self.appearances_))
            for k in range(len(self.parts_))
        ]
        return np.asarray(names, dtype=object)

    # Interpreting

    @property
    def saliency_std_(self) -> ArrayLike:
        """Standard deviation of each appearance's saliency over the training data."""
        covariance = self.saliency_covariance_
        if isinstance(covariance, Tensor):
            return covariance.diagonal().clamp(min=0).sqrt()
        return np.sqrt(np.maximum(np.diagonal(covariance), 0))

    @own_arithmetic
    def align_to(self, other: PartsAppearanceDecomposition) -> Self:
        """Put parts and appearances into the order of those of another fit.

        A fit to other samples, or from another start, often finds much the same
        factors in another order, and appearances of the opposite sign. Parts and
        appearances are matched with those of ``other``
        (:func:`~panda_sklearn.metrics.match_factors`) and take their indices;
        appearances also take their signs. All fitted attributes are reordered
        accordingly, and nothing else changes. The next ``partial_fit`` restores the
        canonical order.

        Parameters
        ----------
        other : PartsAppearanceDecomposition
            A fitted estimator with the same numbers of parts and appearances, for maps
            of the same shape.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The estimator itself.

        Raises
        ------
        NotFittedError
            If one of the two is not fitted.
        TypeError, ValueError
            If ``other`` is something else, or its factors have other shapes.

        See Also
        --------
        panda_sklearn.metrics.stability : How similar the parts of several fits are.
        """
        check_is_fitted(self)
        check_kind("other", other, PartsAppearanceDecomposition)
        check_is_fitted(other)
        self.__dict__.update(aligned(self, other))
        return self

    @own_arithmetic
    def variations(
        self, part: Any, n_variations: int | None = None, given: str | None = None
    ) -> tuple[ArrayLike, ArrayLike]:
        r"""Find how what a part shows varies over the training samples.

        Let :math:`l_i` be the coefficients of sample i at the part, a column of
        :math:`A^\top Z_i P`. At this part the sample shows the vector of channels
        :math:`A l_i`. The variations are the principal components of these vectors.

        Parameters
        ----------
        part : int, sequence of int, or array of shape (\*spatial)
            Index of a part, several indices, or a mask of the layer's positions with
            values from 0 to 1. For several parts the variations are those of the mean
            of the parts' covariances. For a mask this mean is over all parts, weighted
            by the squared cosine between the mask and each part.

        n_variations : int, default=None
            Number of variations; ``None`` means all, as many as there are independent
            appearances.

        given : "others", default=None
            With "others", what the sum of the other parts' coefficients explains is
            removed first, by means of the partial covariance. What remains varies at
            this part independently, rather than with the light or the colours of the
            whole image. The explaining variances are regularised by a hundredth of
            their mean (ridge). With several parts, this is done for each part on its
            own, where all other parts are its others.

        Returns
        -------
        vectors : array of shape (n_variations, n_channels)
            Orthonormal vectors of channels; the entry of largest magnitude of each is
            positive.

        stds : array of shape (n_variations,)
            Standard deviations of :math:`v^\top A l_i` along them, in decreasing order.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, an index is out of range, there are fewer than
            ``n_variations`` variations, or the estimator is from a file that has no
            covariances of coefficients yet.

        See Also
        --------
        Edit : Moves samples along a variation.
        """
        check_is_fitted(self)
        part = as_part(part)
        check_given(given)
        vectors, stds = variations_of(self, part_weights(self, part), given)
        if n_variations is not None:
            n = check_count("n_variations", n_variations, at_least=1)
            if n > len(stds):
                raise ValueError(
                    f"n_variations={n} exceeds their number, {len(stds)}: as many as "
                    "there are independent appearances."
                )
            vectors, stds = vectors[:n], stds[:n]
        origin, like = Origin.of(self.parts_), as_tensor(self.parts_)
        return origin.give(vectors.to(like)), origin.give(stds.to(like))

    @own_arithmetic
    def part_distances(self, X: Any) -> Any:
        r"""Measure how far coefficients are from those of the training samples.

        This is the Mahalanobis distance of each part's coefficients :math:`l_{ik}`, a
        column of :math:`L_i`, from their mean over the training samples,

        .. math::

            d_{ik}^2 = (l_{ik} - \bar l_k)^\top (C_k + \lambda I)^{-1}
                (l_{ik} - \bar l_k),

        where :math:`C_k` is their covariance (``coefficient_covariance_``) and
        :math:`\lambda` is a ridge of 1 % of its mean variance. It is divided by its
        root mean square over the training samples, so that it is about 1 for similar
        samples. For edited activations it tells how far the edit took them from what
        occurs in the data.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        Returns
        -------
        distances : array of shape (n_samples, n_parts)
            The distances, which are non-negative.

        Raises
        ------
        TypeError, ValueError
            As ``transform``, or if the estimator is from a file that has no covariances
            of coefficients yet.

        See Also
        --------
        LocalEditor.rank_edits : Reports this distance for the edits that it tries.
        """
        check_is_fitted(self)
        of_parts = [part_distances(self, k) for k in range(len(self.parts_))]

        def measure(factors: Factors, Z: Tensor) -> Tensor:
            L = factors.encode(Z)
            columns = zip(of_parts, L.unbind(dim=2), strict=True)
            return torch.stack([of(column) for of, column in columns], dim=1).to(L)

        return self._of_samples(X, measure)

    @own_arithmetic
    def saliency(self, X: Any, *, size: int | tuple[int, ...] | None = None) -> Any:
        r"""Map how much of each appearance is at each position (section 4.1).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        size : int or tuple of int, default=None
            Spatial sizes of the returned maps, such as those of the images. Maps are
            resized linearly; ``None`` keeps the sizes of the layer.

        Returns
        -------
        maps : array of shape (n_samples, n_appearances, \*spatial)
            The inner products a_k'Z_i.
        """
        check_is_fitted(self)
        spatial = self.map_shape_[1:]
        size = spatial if size is None else check_size(size, len(spatial))

        def maps(factors: Factors, Z: Tensor) -> Tensor:
            return resize(factors.saliency(Z).unflatten(2, spatial), size)

        return self._of_samples(X, maps)

    @own_arithmetic
    def localize(
        self,
        X: Any,
        appearance: int,
        threshold: str | float | tuple[str, float] = "mean",
        *,
        size: int | tuple[int, ...] | None = None,
        upsample_first: bool = True,
    ) -> Any:
        r"""Find where an appearance is present (section 4.1.2).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        appearance : int
            Index of the appearance, from 0.

        threshold : "mean", float or ("quantile", float), default="mean"
            The appearance is present where its saliency is at least this.

            - "mean": the appearance's mean over the training data, the paper's choice.
            - A number, in the units of ``saliency``.
            - ("quantile", q): the q-quantile of each sample's own map, which selects
              about a fraction 1 - q of the positions.

        size : int or tuple of int, default=None
            Spatial sizes of the mask, such as those of the images. ``None`` keeps the
            sizes of the layer.

        upsample_first : bool, default=True
            With ``size``, whether to resize the saliency linearly and then apply the
            threshold, which gives masks with smooth outlines. Otherwise the mask is
            made at the layer's size and resized by nearest neighbours.

        Returns
        -------
        mask : boolean array of shape (n_samples, \*spatial)
            True where the appearance is present.

        Raises
        ------
        TypeError, ValueError
            If ``appearance``, ``threshold``, ``size`` or ``upsample_first`` is
            invalid.
        """
        check_is_fitted(self)
        k = check_index("appearance", appearance, len(self.appearances_))
        spatial = self.map_shape_[1:]
        size = spatial if size is None else check_size(size, len(spatial))
        level, quantile = check_threshold(threshold)
        check_flag("upsample_first", upsample_first)
        if level is None:
            level = float(self.saliency_mean_[k])

        def masks(factors: Factors, Z: Tensor) -> Tensor:
            maps = (factors.A[:, k] @ Z).unflatten(1, spatial)
            return masks_of(maps, size, level, quantile, upsample_first=upsample_first)

        return self._of_samples(X, masks)

    @own_arithmetic
    def refine(self, X: Any, max_iter: int = 100) -> ArrayLike:
        r"""Refine the parts to each sample (section 3.5).

        Minimises equation (6) by descent from ``parts_``, with the appearances held
        fixed. Each sample is refined independently until it has converged, and its
        objective never ends higher than it began. A few samples are refined at a time,
        so apart from the result the memory does not grow with their number.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        max_iter : int, default=100
            Maximum number of projected gradient steps.

        Returns
        -------
        parts : array of shape (n_samples, n_parts, \*spatial)
            Parts of each sample.

        See Also
        --------
        reconstruction_errors : Measures by how much the objective falls.
        """
        check_is_fitted(self)
        max_iter = check_count("max_iter", max_iter, at_least=0)
        samples, origin = samples_of(self, X)
        factors, spatial = factors_of(self, samples), self.map_shape_[1:]
        with progress_bar(self, ", refinement", samples.n_samples) as bar:
            refined = samples.map(
                lambda Z: refine_parts(
                    Z, factors, max_iter=max_iter, done=bar.update
                ).unflatten(2, spatial)
            )
            return origin.give(_joined(refined, samples.n_samples))

    @own_arithmetic
    def reconstruction_errors(self, X: Any, parts: ArrayLike | None = None) -> Any:
        r"""Measure how far each sample is from its reconstruction.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``. They need not be in memory; see
            :ref:`large_data`.

        parts : array of shape (n_samples, n_parts, \*spatial), default=None
            Parts of each sample, as from ``refine``; ``None`` means ``parts_`` for all.

        Returns
        -------
        errors : array of shape (n_samples,)
            The squared error :math:`\lVert Z_i - A (A^\top Z_i P_i) P_i^\top
            \rVert_F^2` of each sample, equation (6), in double precision.
        """
        if parts is None:
            return self._of_samples(
                X, lambda factors, Z: factors.sample_objectives(Z), squared=True
            )
        samples, origin = samples_of(self, X, squared=True)
        spatial = self.map_shape_[1:]
        shape = f"(n_samples, n_parts, *{spatial})"
        parts = check_values(parts, "parts", shape)
        if parts.ndim != 2 + len(spatial) or parts.shape[2:] != spatial:
            raise ValueError(
                f"parts must be of shape {shape}, as from refine, got "
                f"{tuple(parts.shape)}."
            )
        if samples.n_samples not in (None, len(parts)):
            raise ValueError(
                f"parts must have one entry for each of the {samples.n_samples} samples"
                f" of X, got {len(parts)}."
            )
        factors = factors_of(self, samples)
        left = as_tensor(parts).to(factors.A).flatten(2)

        def errors(Z: Tensor) -> Tensor:
            nonlocal left
            own, left = left[: len(Z)], left[len(Z) :]
            return factors.sample_objectives(Z, own)

        return origin.give(torch.cat(list(samples.map(errors))))

    # Keeping

    def save(
        self,
        path: str | os.PathLike,
        *,
        layer: str | None = None,
        network: torch.nn.Module | str | None = None,
    ) -> None:
        """Write the fitted estimator to a safetensors file.

        The file holds the arrays by name (``parts_``, ``appearances_`` and so on), and
        the parameters and the versions of the packages as JSON. Reading it runs no
        code.

        Parameters
        ----------
        path : str or os.PathLike
            The file. An existing file is replaced.

        layer : str, default=None
            Name of the layer that the activations are from, as information for users
            of the file. ``None`` keeps the name from the file that this estimator was
            loaded from, if any.

        network : torch.nn.Module or str, default=None
            The network that the activations are from, or its
            :func:`~panda_sklearn.generators.fingerprint`. The file keeps the
            fingerprint, by which a :class:`LocalEditor` warns about a network with
            other weights. ``None`` keeps the fingerprint from the file that this
            estimator was loaded from, if any.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        FileNotFoundError
            If the folder does not exist.
        TypeError
            If ``path`` is not a path, or a parameter has a type that cannot be written
            without code.
        ValueError
            If parameters that were set since ``fit`` do not match the factors, so that
            the file could not be loaded.
        """
        check_is_fitted(self)
        if layer is not None and not isinstance(layer, str):
            raise TypeError(
                f"layer must be the name of a layer or None, got {layer!r} of type "
                f"{type(layer).__name__}."
            )
        if network is not None and not isinstance(network, str):
            network = fingerprint(network)
        of_file = {"layer_": layer, "network_": network}
        state = vars(self) | {k: v for k, v in of_file.items() if v is not None}
        names = self.get_params(deep=False)
        params = without_group({name: state.pop(name) for name in names})
        for name in NOT_IN_FILES:
            state.pop(name, None)
        # Refuse here what load would refuse, while it can still be fixed.
        self._check_kept()
        write_file(path, params, state)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read an estimator from a file written by ``save``.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        panda : PartsAppearanceDecomposition
            The fitted estimator. Tensors are on the device that they were on. If this
            machine does not have it, they are on the CPU and the parameter ``device``
            is ``None``.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is truncated, does not hold an estimator that works, or has a
            later format.
        """
        params, attributes = read_file(path, cls().get_params(deep=False))
        panda = cls(**params)
        panda.__dict__.update(attributes)
        try:
            panda._check_kept()
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"The parameters in {os.fspath(path)!r} do not match its arrays: "
                f"{error} Save the estimator again."
            ) from error
        return panda

    def _check_kept(self) -> None:
        """Raise ValueError unless the parameters match the fitted attributes."""
        self._validate_params()
        if self.map_shape is not None:
            expected = tuple(self.map_shape)
        else:
            expected = (1, self.n_features_in_) if self._flattened else self.map_shape_
        if self.map_shape_ != expected:
            raise ValueError(f"map_shape={self.map_shape!r}, not {self.map_shape_}.")
        dtype = as_tensor(self.parts_[:1]).dtype
        check_start(self, layout_of(self), dtype, constraint_of(self), goes_on=True)
        if not constraint_of(self).allows(as_tensor(self.parts_)):
            raise ValueError("nonnegative=True, but parts_ has negative values.")

    def __getstate__(self) -> dict:
        return to_plain(without_group(super().__getstate__()), RECORDS)

    def __sklearn_clone__(self) -> Self:
        """Clone, sharing a process group given as ``distributed``."""
        if not isinstance(self.distributed, ProcessGroup):
            return super().__sklearn_clone__()
        alone = copy.copy(self)
        alone.distributed = "auto"
        return clone(alone).set_params(distributed=self.distributed)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(from_plain(state, RECORDS))

    # Helpers

    def _of_samples(
        self,
        X: Any,
        function: Callable[[Factors, Tensor], Tensor],
        out: Any = None,
        *,
        squared: bool = False,
    ) -> Any:
        """Apply a function to the factors and all samples, a few (n, C, S) at a time.

        Returns the results as one array, or ``out``; for a dask array, a dask array
        that is not computed yet.
        """
        samples, origin = samples_of(self, X, squared=squared)
        if samples.spread:
            if out is not None:
                raise ValueError(
                    "out is for results that this process computes, but X is a dask "
                    "array. Leave it at None, and store the returned array with its "
                    "to_zarr or store."
                )
            assert isinstance(samples, SpreadOverBlocks)
            check = ValueCheck(layout_of(self), squared=squared)
            return samples.mapped(function, factors_of(self, samples), check)
        factors = factors_of(self, samples)
        if out is None:
            results = samples.map(lambda Z: function(factors, Z))
            return origin.give(_joined(results, samples.n_samples))
        like = torch.zeros(
            1,
            samples.n_channels,
            samples.n_positions,
            dtype=samples.dtype,
            device=samples.device,
        )
        one = function(factors, like)
        with Writer(out, (samples.n_samples, *one.shape[1:]), one.dtype) as writer:
            for some in samples.map(lambda Z: function(factors, Z)):
                writer.write(some)
        return out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def layout_of(panda: PartsAppearanceDecomposition) -> MapLayout:
    """The layout of maps in the user's arrays, as in ``fit``."""
    return MapLayout(panda.map_shape_, panda.channel_axis, panda._flattened)


def varying_parts(panda: PartsAppearanceDecomposition) -> list[int]:
    """Indices of the parts that are not constant."""
    low, high = as_tensor(panda.parts_).flatten(1).aminmax(dim=1)
    return (high > low).nonzero()[:, 0].tolist()


def samples_of(
    panda: PartsAppearanceDecomposition, X: Any, *, squared: bool = False
) -> tuple[Samples, Origin]:
    """Samples laid out as those of ``fit``, and where they came from.

    Also checks the parameters, which may have changed since. Values are checked when
    they are read; ``squared`` means that they must be small enough to be squared.
    """
    check_is_fitted(panda)
    check_parameters(panda)
    data = open_data(panda, X, reset=False)
    layout = layout_of(panda)
    check_same_layout(panda, data, layout)
    check = ValueCheck(layout, squared=squared)
    return data.samples(layout, check=check), data.origin


def _joined(results: Iterator[Tensor], n_samples: int | None) -> Tensor:
    """Results of batches as one tensor; each batch is freed once it is copied."""
    first = next(results)
    if n_samples is None:
        return torch.cat([first, *results])
    if len(first) == n_samples:
        (*_,) = results  # the end of the pass
        return first
    whole = first.new_empty(n_samples, *first.shape[1:])
    whole[: len(first)] = first
    done = len(first)
    for some in results:
        whole[done : done + len(some)] = some
        done += len(some)
    return whole
