"""The estimator of parts and appearances.

Floor 3: turns arrays into (N, C, S) tensors once, at the door, and leaves the
mathematics to :mod:`panda_sklearn.core` and :mod:`panda_sklearn.solvers`. Knows
nothing of networks.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if
from torch import Tensor
from tqdm import tqdm

from panda_sklearn._alignment import aligned
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
    check_known,
    part_distances,
    part_weights,
    variations_of,
)
from panda_sklearn.core.channels import ChannelMoments, ChannelSums
from panda_sklearn.core.coefficients import (
    CoefficientMoments,
    CoefficientSums,
)
from panda_sklearn.core.constraint import FREE, NONNEGATIVE, Constraint
from panda_sklearn.core.factors import Factors
from panda_sklearn.core.objective import accumulator_dtype, sample_energies
from panda_sklearn.core.samples import InMemory, Samples, Sums, in_one_pass
from panda_sklearn.solvers import (
    SOLVERS,
    Callback,
    Past,
    SolverResult,
    best_fit,
    learn,
    refine_parts,
)
from panda_sklearn.sources import Writer, open_data
from panda_sklearn.sources.blocks import SpreadOverBlocks
from panda_sklearn.sources.ranks import Ranks
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.arrays import (
    MapLayout,
    Origin,
    as_tensor,
    randomness,
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
    check_random_state,
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

# Numbers of samples that partial_fit learns from at a time, of data not in memory.
LEARNT_AT_ONCE = 2**25

# How often partial_fit solves for parts and for appearances, at most.
STEPS_PER_BATCH = 10


def _learns_from_streams(panda: PartsAppearanceDecomposition) -> bool:
    """Whether the solver can; else the estimator has no ``partial_fit``."""
    if not SOLVERS[panda.solver].learns_from_streams:
        raise AttributeError(
            f"partial_fit needs solver='spg', got solver={panda.solver!r}. Fit all "
            "samples at once instead."
        )
    return True


@dataclass(frozen=True)
class _AddErrors:
    """Adds the squared errors of a batch, and its sum of squares."""

    factors: Factors

    def __call__(self, Z: Tensor, error: Tensor, energy: Tensor) -> None:
        error += self.factors.objective(Z)
        energy += sample_energies(Z).sum()


@dataclass(frozen=True)
class _Found:
    """What a fit finds: the factors, what is known of samples there, and its course."""

    A: Tensor
    P: Tensor
    saliencies: ChannelMoments
    coefficients: CoefficientMoments
    n_passes: int
    history: list[float]
    converged: bool
    reason: str


@dataclass(frozen=True)
class _Learnt:
    """What is known after a batch of a stream, and of how many samples before it."""

    A: Tensor
    P: Tensor
    past: Past
    channels: ChannelMoments
    coefficients: CoefficientMoments
    n_before: int
    objective: float


class PartsAppearanceDecomposition(TransformerMixin, BaseEstimator):
    r"""Parts and appearances of feature maps (PandA).

    Learns from the activations :math:`Z_i` (channels x positions) of many samples at
    one layer the appearances :math:`A` and the non-negative parts :math:`P` that
    minimise

    .. math::

        \sum_i \lVert Z_i - A (A^\top Z_i P) P^\top \rVert_F^2
        \quad \text{subject to } P \ge 0,

    equation (3) of [1]_. Parts say *where*, appearances say *what*, and the
    coefficients :math:`A^\top Z_i P` say how much of each appearance a sample has at
    each part. The :ref:`user guide <user_guide>` explains the model and its symbols.

    Parameters
    ----------
    n_parts : int, default=None
        Number of parts, at most the number of positions. ``None`` means 8, or every
        position where there are fewer.

    n_appearances : int, default=None
        Number of appearances, at most the number of channels. ``None`` means every
        channel.

    solver : {"spg", "pgd", "adam"}, default="spg"
        - "spg": fits some samples first, then goes through all of them once an
          iteration. Solves for parts and for appearances by turns on second moments,
          by spectral projected gradients and in nearly closed form. No learning rate,
          few passes, low objectives, canonical factors; see :ref:`solvers`.
        - "pgd": block-coordinate projected gradient descent with the gradients (4)
          and (5) in closed form, Algorithm 1 of [1]_. Needs the samples in memory.
        - "adam": Adam through automatic differentiation (section 4.3.3). Needs the
          samples in memory.

    init : {"hosvd", "random"} or pair of arrays, default="hosvd"
        Where to start from.

        - "hosvd": appearances are the leading eigenvectors of the channel scatter
          (section 3.4), parts are drawn from U(0, 0.01); of the starts of "spg" the
          first has parts grown around the positions that differ most.
        - "random": appearances are random orthonormal vectors, for "spg" the same for
          all starts, and parts are drawn from U(0, 0.01).
        - ``(appearances, parts)`` of shapes (n_appearances, n_channels) and
          (n_parts, \*spatial), as the fitted attributes.

    n_init : int or "auto", default="auto"
        Number of starts. "spg" descends from each with the appearances held, which
        costs little, and goes on from the best; the others make a whole fit from each
        and keep the best. "auto" is 10 for "spg" and 1 for the others and for a given
        start.

    max_iter : int, default=1000
        Number of iterations, at most.

    tol : float, default=1e-6
        The fit ends when the objective, as a fraction of the data's sum of squares,
        falls by less than this in an iteration. "pgd" and "adam" take the average of
        ten iterations, with ``batch_size`` of whole passes over the data. 0 goes on
        for ``max_iter`` iterations, or until nothing lowers the objective.

    learning_rate : float, default=None
        Step size of "pgd" and "adam", of the gradients summed over the samples of an
        iteration. ``None`` chooses one that does not depend on the scale of the data:
        "pgd" adapts it so that each step lowers the objective of the samples that it
        used, and with ``batch_size`` makes it shorter when whole passes no longer
        help; "adam" takes 0.1 / sqrt(max(n_channels, n_positions)). "spg" has none to
        choose.

    batch_size : int, default=None
        For "pgd" and "adam" the number of samples that an iteration uses. ``None``
        means all of them; with a number, each pass goes through the samples in a
        random order, in more and much cheaper iterations. For "spg", which always uses
        all samples, the number whose products are in memory at a time in ``fit``; it
        changes nothing else, and ``None`` takes few beside the size of the data.

    nonnegative : bool, default=True
        Whether parts are constrained to be non-negative. ``False`` is the ablation of
        section 4.3.1; "spg" then solves for the parts without a start.

    map_shape : tuple of int, default=None
        Shape (n_channels, \*spatial) of one sample, for a 2-D ``X`` whose rows are
        flattened maps. ``None`` takes a 2-D ``X`` as one-channel maps with one
        spatial axis.

    channel_axis : {1, -1}, default=1
        Where the channels are in an ``X`` of more than two axes: 1 for
        (n_samples, n_channels, \*spatial), -1 for (n_samples, \*spatial, n_channels).

    device : str or torch.device, default=None
        Where the work is done for numpy input; ``None`` is the CPU. Tensors are worked
        on where they are.

    distributed : {"auto"}, bool or ProcessGroup, default="auto"
        Whether ``fit`` learns from the samples of all processes of a
        ``torch.distributed`` group, which all call it, each with a shard of its own (or
        with ``None``, if it has none): see :ref:`scaling_up`. "auto" does so in an
        initialised group of more than one; True needs one; a group of
        ``torch.distributed.new_group`` is that. All end with the same factors. Other
        methods are of the one process.

    random_state : int, RandomState instance or None, default=None
        Draws the start and the order of the batches. Pass an int for the same result
        at every call; another processor or number of threads rounds otherwise, and
        where minima compete may end in another.

    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    parts_ : array of shape (n_parts, \*spatial)
        The parts, the columns of P.

    appearances_ : array of shape (n_appearances, n_channels)
        The appearances, the columns of A.

    n_iter_ : int
        Number of iterations taken; of batches seen by ``partial_fit``.

    n_bytes_sent_ : int
        How many bytes this process gave to its group in the last fit or batch; only
        after one by several processes.

    n_passes_ : int
        Number of times that the samples were read, all told; the iterations of "pgd"
        and "adam" do not count. 1 after ``partial_fit``, and 0 in files of before it
        was counted.

    objective_history_ : ndarray of shape (n_iter,)
        Mean over samples of the objective (3) after each iteration. "spg" never raises
        it. Where "pgd" and "adam" draw batches: over the samples of the iteration,
        before its step, but for the last value, which is over all samples at the end.
        After ``partial_fit``: over all samples so far, with the second moments of
        earlier batches as they were when these came.

    reconstruction_err_ : float
        Mean over samples of the objective (3) at the fitted factors, the last value
        of ``objective_history_``.

    saliency_mean_ : array of shape (n_appearances,)
        Mean of each appearance's saliency over training samples and positions,
        :math:`\mu_k` of section 4.1.2.

    saliency_covariance_ : array of shape (n_appearances, n_appearances)
        Covariance of the appearances' saliencies over training samples and positions.

    saliency_std_ : array of shape (n_appearances,)
        Standard deviations, the roots of its diagonal.

    coefficient_mean_ : array of shape (n_appearances, n_parts)
        Mean of the coefficients over training samples. This and the next two are
        missing in estimators from files of before they were kept. After
        ``partial_fit`` they have the samples of earlier batches as far as the factors
        of their time tell; in a stream from such a file, those since.

    coefficient_covariance_ : array of shape (n_parts, n_appearances, n_appearances)
        Covariance of the coefficients at each part over training samples.

    coefficient_cross_covariance_ : array of the same shape
        Covariance of the coefficients at each part and of their sum over all parts.

    layer_ : str
        Name of the layer that the activations are from; only if ``load`` found one.

    network_ : str
        Fingerprint of the network that they are from; only if ``load`` found one.

    n_samples_seen_ : int
        Number of samples that ``partial_fit`` has learnt from; only after it.

    map_shape_ : tuple of int
        Shape (n_channels, \*spatial) of one sample.

    n_features_in_ : int
        Number of columns of a 2-D ``X``, else number of channels.

    feature_names_in_ : ndarray of shape (n_features_in,)
        Names of the columns of ``X``; only where it has string names.

    See Also
    --------
    GeneratorFeatureExtractor : Takes the activations of a layer of a network.
    LocalEditor : Edits a generator's images with the fitted factors.
    sklearn.decomposition.NMF : Non-negative factors of a matrix.

    Notes
    -----
    Arrays are numpy arrays or torch tensors of float32 or float64 (half precision and
    integers are promoted to float32). Every method answers with the kind and dtype
    that it was given, tensors on the same device; so do the array attributes with
    what ``fit`` was given.

    Wherever ``X`` is activations, it may also be an array on disk (a memory map, HDF5,
    Zarr), a torch ``Dataset`` or ``DataLoader``, an object that gives batches each time
    that it is iterated over, or ``GeneratorFeatureExtractor.batches(latents)``. Such
    data are read in batches, never loaded whole; see :ref:`large_data`.

    The objective does not change under A -> cAR, P -> P / c with R orthogonal, nor with
    the order of the parts. "spg" returns the canonical pair of these: A as near to
    orthonormal columns as a factor can bring it; coefficients of different appearances
    uncorrelated over samples and parts, and appearances by their falling energy, zero
    beyond the rank of the data; parts by the energy that each contributes, falling,
    and of equal ones that first which peaks first; the entry of largest magnitude of
    each appearance positive. "pgd" and "adam" leave scale and rotation as they end up.
    The objective has local minima: fits from different starts can differ.

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

    # ``out`` is no metadata of samples, which scikit-learn would take it for.
    __metadata_request__transform: ClassVar[dict] = {"out": UNUSED}

    def __init__(
        self,
        n_parts=None,
        n_appearances=None,
        *,
        solver="spg",
        init="hosvd",
        n_init="auto",
        max_iter=1000,
        tol=1e-6,
        learning_rate=None,
        batch_size=None,
        nonnegative=True,
        map_shape=None,
        channel_axis=1,
        device=None,
        distributed="auto",
        random_state=None,
        verbose=0,
    ):
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
    def fit(self, X, y=None):
        r"""Learn parts and appearances.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations with one, two or three spatial axes; or laid out as
            ``channel_axis`` and ``map_shape`` say.
            Or data that are not in memory: see :ref:`large_data`.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            If a parameter is something else, if ``X`` is not numeric, dense, finite and
            of such a shape, if a rank exceeds the data's, or if the given
            ``learning_rate`` makes the fit diverge. If ``X`` can be iterated over only
            once, gives other samples in a later pass, or is not in memory while
            ``solver`` needs it there.
        OSError
            If ``X`` is on disk and cannot be read.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` iterations did not meet ``tol``.
        """
        ranks = ranks_of(self.distributed)
        if ranks is None:
            samples, layout, origin, start = self._check_fit(X)
            found = self._fit_to(samples, start)
        else:
            found, layout, origin = self._fit_with_others(ranks, X)
            self.n_bytes_sent_ = ranks.n_bytes
        with torch.inference_mode(False):
            self._store(
                found.A, found.P, found.saliencies, found.coefficients, layout, origin
            )
        for name in OF_STREAM | OF_LATER_STREAM | OF_FILE:
            self.__dict__.pop(name, None)
        if ranks is None:
            self.__dict__.pop("n_bytes_sent_", None)
        self.n_iter_ = len(found.history)
        self.n_passes_ = found.n_passes
        self.objective_history_ = np.array(found.history)
        self.reconstruction_err_ = found.history[-1]
        if not found.converged and self.tol > 0:
            warnings.warn(
                f"The {self.solver!r} solver stopped since {found.reason}, before "
                f"tol={self.tol:g} was met. Increase max_iter (it is "
                f"{self.max_iter}) or tol.",
                ConvergenceWarning,
                stacklevel=5,  # past the wrappers of fit
            )
        return self

    def _fit_to(self, samples: Samples, start: Start) -> _Found:
        """What a fit to samples finds."""
        with torch.inference_mode(False):
            result = self._best_fit(samples, start)
            A, P, channels = result.A, result.P, result.channels
            sums: list[Sums] = [CoefficientSums(A, P)]
            if channels is None or not channels.tells(A, torch.finfo(A.dtype).eps):
                sums.append(ChannelSums(samples, A))
            coefficients, *others = in_one_pass(samples, *sums)
            saliencies = channels.turned(A) if channels and not others else others[0]
        return _Found(
            A,
            P,
            saliencies,
            coefficients,
            n_passes=samples.n_passes,
            history=result.objective_history,
            converged=result.converged,
            reason=result.reason,
        )

    def _fit_with_others(
        self, ranks: Ranks, X: Any
    ) -> tuple[_Found, MapLayout, Origin]:
        """What a fit to the samples of all processes finds."""

        def check() -> tuple[Samples, MapLayout, Origin]:
            if not SOLVERS[self.solver].reads_in_order:
                raise ValueError(
                    f"solver={self.solver!r} needs all samples in the memory of one "
                    "process. Use solver='spg', or distributed=False."
                )
            return self._check_fit(X)[:3]

        def fit(samples: Samples, layout: MapLayout) -> _Found:
            how = layout, samples.dtype, self._constraint
            return self._fit_to(samples, check_start(self, *how, goes_on=False))

        return fit_together(self, ranks, X, check, fit)

    @available_if(_learns_from_streams)
    @fit_method
    @own_arithmetic
    def partial_fit(self, X, y=None):
        r"""Learn from one more batch of samples, in memory that does not grow.

        The first batch is fitted as by ``fit``, so it should have enough samples to
        tell the parts apart. Of earlier batches their second moments are kept, of
        3 n_channels^2 + 2 n_positions^2 + 2 n_parts n_appearances^2 numbers, as they
        were at the factors of their time. There is no such method with other solvers
        than "spg". After ``fit``, a new stream begins at the fitted factors, in which
        the samples of ``fit`` do not count.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            A batch of activations, laid out as for ``fit``. Data that are not in
            memory (:ref:`large_data`) are read once, and learnt from piece by piece.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The estimator, with what it learnt so far.

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
            self._keep(*self._learn_with_others(ranks, X, first))
            self.n_bytes_sent_ = ranks.n_bytes
            return self
        self.__dict__.pop("n_bytes_sent_", None)
        samples, layout, origin, start = self._check_fit(X, reset=first)
        if samples.spread:
            raise ValueError(
                "partial_fit takes arrays, or data that are read here, got a dask "
                "array. Call fit, or give partial_fit its blocks one by one."
            )
        if isinstance(samples, InMemory):
            samples.batch_size = samples.n_samples
        elif samples.batch_size is None:
            n_numbers = samples.n_channels * samples.n_positions
            samples.batch_size = max(1, LEARNT_AT_ONCE // n_numbers)

        def learn_from(Z: Tensor) -> None:
            batch = InMemory(Z, batch_size=len(Z))
            self._keep(self._learn(batch, start), layout, origin)

        samples.accumulate(learn_from)
        return self

    def _learn_with_others(
        self, ranks: Ranks, X: Any, first: bool
    ) -> tuple[_Learnt, MapLayout, Origin]:
        """What is learnt from a batch of which each process has a piece."""

        def check() -> tuple[Samples, MapLayout, Origin]:
            samples, layout, origin, _ = self._check_fit(X, reset=first)
            if not isinstance(samples, InMemory):
                raise ValueError(
                    "partial_fit of several processes takes arrays in memory, got a "
                    f"{type(X).__name__}. Use fit, or distributed=False."
                )
            samples.batch_size = samples.n_samples
            return samples, layout, origin

        def learn_from(samples: Samples, layout: MapLayout) -> _Learnt:
            how = layout, samples.dtype, self._constraint
            return self._learn(samples, check_start(self, *how, goes_on=not first))

        state = (
            getattr(self, "n_samples_seen_", 0),
            getattr(self, "parts_", ()),
            getattr(self, "appearances_", ()),
        )
        return fit_together(self, ranks, X, check, learn_from, state=state)

    def _learn(self, samples: Samples, start: Start) -> _Learnt:
        """What is learnt from a batch."""
        with torch.inference_mode(False):
            return self._learnt(samples, start)

    def _learnt(self, samples: Samples, start: Start) -> _Learnt:
        past, earlier = getattr(self, "_past", None), getattr(self, "_channels", None)
        coefficients = getattr(self, "_coefficients", None)
        device = samples.device
        if hasattr(self, "parts_"):
            factors = factors_of(self, samples)
            A, P = factors.A, factors.P
        else:
            result = self._best_fit(samples, start)
            A, P = result.A, result.P
        before = A, P
        A, P, past, objective = learn(
            samples,
            A,
            P,
            past.to(device) if past is not None else None,
            max_iter=STEPS_PER_BATCH,
            tol=self.tol,
            constraint=self._constraint,
            generator=randomness(check_random_state(self.random_state)),
        )
        wide = accumulator_dtype(device)  # later batches turn it, unseen
        channels = ChannelMoments.of_data(samples, products=wide)
        if earlier is not None:
            channels = earlier.to(device) + channels
        A, P = A.to(samples.dtype), P.to(samples.dtype)
        (of_batch,) = in_one_pass(samples, CoefficientSums(A, P))
        if coefficients is not None:
            of_batch = coefficients.to(device).turned(before, (A, P)) + of_batch
        assert samples.n_samples is not None  # it has been gone through
        n_before = past.n_samples - samples.n_samples
        return _Learnt(A, P, past, channels, of_batch, n_before, objective)

    def _keep(self, learnt: _Learnt, layout: MapLayout, origin: Origin) -> None:
        """Set the attributes of a stream."""
        A, P = learnt.A, learnt.P
        with torch.inference_mode(False):
            saliencies = learnt.channels.turned(A)
            self._store(A, P, saliencies, learnt.coefficients, layout, origin)
        history = self.objective_history_ if learnt.n_before else []
        self._past = learnt.past.to(origin.device)
        self._channels = learnt.channels.to(origin.device)
        self._coefficients = learnt.coefficients.to(origin.device)
        self.n_samples_seen_ = learnt.past.n_samples
        self.objective_history_ = np.append(history, learnt.objective)
        self.n_iter_ = len(self.objective_history_)
        self.n_passes_ = 1
        self.reconstruction_err_ = learnt.objective

    def _check_fit(
        self, X: Any, *, reset: bool = True
    ) -> tuple[Samples, MapLayout, Origin, Start]:
        """The samples, whose values are still to be checked, layout, kind and start."""
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
            self, layout, data.dtype, self._constraint, goes_on=not reset
        )
        check, batch_size = ValueCheck(layout), self._batch_size
        samples = data.samples(
            layout, check=check, batch_size=None if in_memory else batch_size
        )
        if in_memory:
            samples.accumulate(_nothing)  # but a look at the values
        return samples, layout, data.origin, start

    def _best_fit(self, samples: Samples, start: Start) -> SolverResult:
        """The best result of all starts."""
        R_C, R_S, given = start
        solver = SOLVERS[self.solver]
        options: dict[str, Any] = {}
        if solver.takes_rate:
            options["learning_rate"] = self.learning_rate
            options["batch_size"] = self._batch_size
        return best_fit(
            samples,
            R_C,
            R_S,
            solver=solver,
            init=self.init if given is None else given,
            n_init=None if self.n_init == "auto" else self.n_init,
            generator=randomness(check_random_state(self.random_state)),
            watched=self._watched,
            max_iter=self.max_iter,
            tol=self.tol,
            constraint=self._constraint,
            **options,
        )

    @contextlib.contextmanager
    def _watched(self, note: str) -> Iterator[Callback]:
        """A progress bar for a solver to report to."""
        with self._bar(note, self.max_iter) as bar:

            def show(n_iter, objective):
                bar.set_postfix(objective=f"{objective:.5g}", refresh=False)
                bar.update()

            yield show
            bar.total = bar.n  # done, whatever max_iter was

    def _bar(self, note: str, total: int | None) -> tqdm:
        """A progress bar, if one is wanted."""
        return tqdm(
            total=total,
            desc=type(self).__name__ + note,
            disable=not self.verbose,
            mininterval=1,
        )

    def _store(
        self,
        A: Tensor,
        P: Tensor,
        saliencies: ChannelMoments,
        coefficients: CoefficientMoments,
        layout: MapLayout,
        origin: Origin,
    ) -> None:
        """Set the attributes that hold the factors, and what is known of A'z and L."""
        if len(layout.sample_shape) > 1:
            self.n_features_in_ = layout.n_channels
            self.__dict__.pop("feature_names_in_", None)
        else:
            self.n_features_in_ = layout.sample_shape[0]
        self.map_shape_ = layout.map_shape
        self._flattened = layout.flattened
        self.appearances_ = origin.give(A.T.contiguous())
        self.parts_ = origin.give(P.T.reshape(-1, *layout.spatial).contiguous())
        self.saliency_mean_ = origin.give(saliencies.mean.to(A))
        covariance = saliencies.scatter / saliencies.n
        self.saliency_covariance_ = origin.give(covariance.to(A))
        n = coefficients.n
        self.coefficient_mean_ = origin.give(coefficients.mean.T.to(A).contiguous())
        self.coefficient_covariance_ = origin.give((coefficients.own / n).to(A))
        self.coefficient_cross_covariance_ = origin.give((coefficients.cross / n).to(A))

    # Encoding

    @own_arithmetic
    def transform(self, X, *, out=None):
        r"""Encode activations as coefficients, one row a sample.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        out : array of shape (n_samples, n_appearances * n_parts), default=None
            What to write the result into, batch by batch, and to return: an array, a
            tensor, a memory map, an HDF5 dataset, a Zarr array or anything else that
            can be assigned to by slices. After an exception it is not complete.

        Returns
        -------
        T : array of shape (n_samples, n_appearances * n_parts)
            The coefficients A'Z_iP, row by row: all parts of the first appearance,
            then of the second.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not numeric, dense and finite, or its samples are of another
            shape than in ``fit``; if it can be iterated over only once, or is shuffled
            in each pass; if a parameter was set to something else since ``fit``; or if
            ``out`` is of another shape or holds no floating-point numbers.
        OSError
            If ``X`` cannot be read, or ``out`` cannot be written to.
        """
        T = self._of_samples(X, lambda factors, Z: factors.encode(Z).flatten(1), out)
        if out is None and isinstance(T, Tensor) and wants_container(self):
            return T.cpu().numpy()
        return T

    @own_arithmetic
    def coefficients(self, X, *, out=None):
        r"""Encode activations as coefficients, one matrix a sample.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        out : array of shape (n_samples, n_appearances, n_parts), default=None
            What to write the result into, batch by batch, and to return: an array, a
            tensor, a memory map, an HDF5 dataset, a Zarr array or anything else that
            can be assigned to by slices. After an exception it is not complete.

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
    def inverse_transform(self, X):
        r"""Reconstruct activations from coefficients.

        Parameters
        ----------
        X : array of shape (n_samples, n_appearances * n_parts)
            Coefficients as from ``transform``, or of shape (n_samples, n_appearances,
            n_parts) as from ``coefficients``.

        Returns
        -------
        X_original : array of shape (n_samples, n_channels, \*spatial)
            The reconstruction A L_i P', laid out as the ``X`` given to ``fit``.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not numeric, dense and finite, or of another shape.
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
    def score(self, X, y=None):
        r"""Return the share of the sum of squares that the factors reconstruct.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            1 - sum of squared errors / sum of squares, uncentred: 1 is perfect. For
            activations that are all zero it is 1, since zero is what they are
            reconstructed to.
        """
        samples, _ = samples_of(self, X, squared=True)
        add = _AddErrors(factors_of(self, samples))
        dtype = accumulator_dtype(samples.device)
        totals = torch.zeros(2, dtype=dtype, device=samples.device).unbind()
        error, energy = map(float, samples.accumulate(add, *totals))
        return 1 - max(error, 0.0) / energy if energy > 0 else 1.0

    def get_feature_names_out(self, input_features=None):
        """Name the columns of ``transform``.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Only compared with the names seen by ``fit``.

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
    def saliency_std_(self):
        """Standard deviation of each appearance's saliency in the training data."""
        covariance = self.saliency_covariance_
        if isinstance(covariance, Tensor):
            return covariance.diagonal().clamp(min=0).sqrt()
        return np.sqrt(np.maximum(np.diagonal(covariance), 0))

    @own_arithmetic
    def align_to(self, other):
        """Bring parts and appearances into the order of another fit's.

        A fit to other samples, or from another start, has much the same factors in
        another order, and appearances with the other sign. Each is matched with the one
        of ``other`` that it is most like (:func:`~panda_sklearn.metrics.match_factors`)
        and takes its index, each appearance its sign too, and all fitted attributes
        follow. What the estimator computes stays the same but for that. The next
        ``partial_fit`` brings the factors into canonical order again.

        Parameters
        ----------
        other : PartsAppearanceDecomposition
            Fitted, with as many parts and appearances, on maps of the same shape.

        Returns
        -------
        self : PartsAppearanceDecomposition
            The estimator.

        Raises
        ------
        NotFittedError
            If one of the two is not fitted.
        TypeError, ValueError
            If ``other`` is something else, or its factors are of other shapes.

        See Also
        --------
        panda_sklearn.metrics.stability : How much alike the parts of fits are.
        """
        check_is_fitted(self)
        check_kind("other", other, PartsAppearanceDecomposition)
        check_is_fitted(other)
        vars(self).update(aligned(self, other))
        return self

    @own_arithmetic
    def variations(self, part, n_variations=None, given=None):
        r"""Find how what a part shows varies over the training samples.

        With :math:`l_i` the coefficients of sample i at the part, the column of
        :math:`A^\top Z_i P`, the part shows the vector of channels :math:`A l_i`. The
        variations are the principal components of these vectors, and so what the data
        do there.

        Parameters
        ----------
        part : int, sequence of int, or array of shape (\*spatial)
            Index of the part; several; or a mask of the layer's positions, with values
            from 0 to 1. Of several parts, and of those that a mask is made of, it is
            the mean of their covariances, weighted by the square of the cosine between
            the mask and each.

        n_variations : int, default=None
            How many; ``None`` is all, as many as there are independent appearances.

        given : "others", default=None
            With "others" what the sum of the other parts' coefficients explains is
            taken out first, by the partial covariance: what is left is what varies
            there by itself, not with the light or the colours of the whole image. To
            the variances of what explains a hundredth of their mean is added (ridge).
            Of several parts each is taken by itself: its others are all the others.

        Returns
        -------
        vectors : array of shape (n_variations, n_channels)
            Orthonormal vectors of channels; the entry of largest magnitude of each is
            positive.

        stds : array of shape (n_variations,)
            Standard deviations along them, of :math:`v^\top A l_i`; falling.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, an index is out of range, there are fewer
            variations, or the estimator is from a file of before coefficient
            covariances were kept.

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
    def part_distances(self, X):
        r"""Measure how unlike those of the training samples the coefficients are.

        The Mahalanobis distance of each part's coefficients :math:`l_{ik}`, a column of
        :math:`L_i`, to their mean over the training samples,

        .. math::

            d_{ik}^2 = (l_{ik} - \bar l_k)^\top (C_k + \lambda I)^{-1}
                (l_{ik} - \bar l_k),

        with their covariance :math:`C_k` (``coefficient_covariance_``) and a ridge
        :math:`\lambda` of 1 % of its mean variance; divided by its root mean square
        over the training samples, so that it is about 1 of samples like those. How far
        an edit takes activations from what occurs is the distance of the edited ones.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        Returns
        -------
        distances : array of shape (n_samples, n_parts)
            At least 0.

        Raises
        ------
        TypeError, ValueError
            As ``transform``, or if the estimator is from a file of before coefficient
            covariances were kept.

        See Also
        --------
        LocalEditor.rank_edits : Reports this of the edits that it tries.
        """
        check_is_fitted(self)
        check_known(self)
        of_parts = [part_distances(self, k) for k in range(len(self.parts_))]

        def measure(factors: Factors, Z: Tensor) -> Tensor:
            L = factors.encode(Z)
            columns = zip(of_parts, L.unbind(dim=2), strict=True)
            return torch.stack([of(column) for of, column in columns], dim=1).to(L)

        return self._of_samples(X, measure)

    @own_arithmetic
    def saliency(self, X, *, size=None):
        r"""Map how much of each appearance there is at each position (section 4.1).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        size : int or tuple of int, default=None
            Spatial sizes of the maps, such as those of the images; they are resized
            linearly. ``None`` is the layer's own.

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
        self, X, appearance, threshold="mean", *, size=None, upsample_first=True
    ):
        r"""Find where an appearance is present (section 4.1.2).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        appearance : int
            Index of the appearance, from 0.

        threshold : "mean", float or ("quantile", float), default="mean"
            Positions count where the saliency is at least this.

            - "mean": the appearance's mean over the training data, the paper's choice.
            - A number, in the units of ``saliency``.
            - ("quantile", q): the q-quantile of each sample's own map, so that about
              1 - q of its positions count.

        size : int or tuple of int, default=None
            Spatial sizes of the mask, such as those of the images. ``None`` is the
            layer's own.

        upsample_first : bool, default=True
            With ``size``, whether to resize the saliency, linearly, and threshold
            that: masks with smooth outlines. Otherwise the mask of the layer's size
            is resized, to the nearest position.

        Returns
        -------
        mask : boolean array of shape (n_samples, \*spatial)
            True where the appearance is present.

        Raises
        ------
        TypeError, ValueError
            If ``appearance``, ``threshold``, ``size`` or ``upsample_first`` is
            something else.
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
    def refine(self, X, max_iter=100):
        r"""Refine the parts to each sample (section 3.5).

        Descends equation (6) from ``parts_`` with the appearances held, for each
        sample on its own until it has converged; no sample's objective ends higher
        than it began. Samples are refined some at a time, so that the memory beside
        the result does not grow with their number.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        max_iter : int, default=100
            Number of projected gradient steps, at most.

        Returns
        -------
        parts : array of shape (n_samples, n_parts, \*spatial)
            Parts of each sample.

        See Also
        --------
        reconstruction_errors : By how much the objective falls.
        """
        check_is_fitted(self)
        max_iter = check_count("max_iter", max_iter, at_least=0)
        samples, origin = samples_of(self, X)
        factors, spatial = factors_of(self, samples), self.map_shape_[1:]
        with self._bar(", refinement", samples.n_samples) as bar:
            refined = samples.map(
                lambda Z: refine_parts(
                    Z, factors, max_iter=max_iter, done=bar.update
                ).unflatten(2, spatial)
            )
            return origin.give(_joined(refined, samples.n_samples))

    @own_arithmetic
    def reconstruction_errors(self, X, parts=None):
        r"""Measure how far each sample is from its reconstruction.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``; also such as are not in memory, see
            :ref:`large_data`.

        parts : array of shape (n_samples, n_parts, \*spatial), default=None
            Parts of each sample, as from ``refine``; ``None`` is ``parts_`` for all.

        Returns
        -------
        errors : array of shape (n_samples,)
            The squared error :math:`\lVert Z_i - A (A^\top Z_i P_i) P_i^\top
            \rVert_F^2` of each sample, equation (6); in double precision.
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
                f"parts must be those of the {samples.n_samples} samples of X, got "
                f"those of {len(parts)}."
            )
        factors = factors_of(self, samples)
        left = as_tensor(parts).to(factors.A).flatten(2)

        def errors(Z: Tensor) -> Tensor:
            nonlocal left
            own, left = left[: len(Z)], left[len(Z) :]
            return factors.sample_objectives(Z, own)

        return origin.give(torch.cat(list(samples.map(errors))))

    # Keeping

    def save(self, path, *, layer=None, network=None):
        """Write the fitted estimator to a safetensors file.

        Its arrays are in the file by name (``parts_``, ``appearances_`` and so on),
        its parameters and the versions that made it as JSON. Reading it runs no code.

        Parameters
        ----------
        path : str or os.PathLike
            The file; it is replaced if there is one.

        layer : str, default=None
            Name of the layer that the activations are from, for whoever loads the
            file. ``None`` keeps that of the file that this estimator was loaded from.

        network : torch.nn.Module or str, default=None
            The network that they are from, or its
            :func:`~panda_sklearn.generators.fingerprint`, which is what the file keeps:
            a :class:`LocalEditor` with other weights then warns. ``None`` keeps that of
            the file that this estimator was loaded from.

        Raises
        ------
        NotFittedError
            If there is nothing to save yet.
        FileNotFoundError
            If there is no such folder.
        TypeError
            If ``path`` is no path, or a parameter is of a type that cannot be written
            without code.
        ValueError
            If parameters were set, since ``fit``, that do not go with the factors: what
            is saved can be loaded.
        """
        check_is_fitted(self)
        check_parameters(self)  # what is saved can be loaded
        if layer is not None and not isinstance(layer, str):
            raise TypeError(
                f"layer must be the name of a layer or None, got {layer!r} of type "
                f"{type(layer).__name__}."
            )
        if network is not None and not isinstance(network, str):
            network = fingerprint(network)
        of_file = {"layer_": layer, "network_": network}
        state = vars(self) | {k: v for k, v in of_file.items() if v is not None}
        state.pop("n_bytes_sent_", None)  # of the processes that made the fit
        names = self.get_params(deep=False)
        params = without_group({name: state.pop(name) for name in names})
        for name in ("_sklearn_output_config", "_metadata_request"):
            state.pop(name, None)
        # What load would refuse is refused here, while it can still be mended.
        self._check_kept()
        write_file(path, params, state)

    @classmethod
    def load(cls, path):
        """Read an estimator that ``save`` has written.

        Parameters
        ----------
        path : str or os.PathLike
            The file.

        Returns
        -------
        panda : PartsAppearanceDecomposition
            The fitted estimator. Tensors are on the device that they were on, or on
            the CPU if there is no such device here; the parameter ``device`` is then
            ``None``.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is cut off, holds something else, or what makes no estimator
            that works, or is of a later format.
        """
        params, attributes = read_file(path, cls().get_params(deep=False))
        panda = cls(**params)
        vars(panda).update(attributes)
        try:
            panda._check_kept()
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"The parameters in {os.fspath(path)!r} do not go with its arrays: "
                f"{error} Save the estimator again."
            ) from error
        return panda

    def _check_kept(self) -> None:
        """Raise ValueError unless parameters and fitted attributes go together."""
        self._validate_params()
        if self.map_shape is not None:
            expected = tuple(self.map_shape)
        else:
            expected = (1, self.n_features_in_) if self._flattened else self.map_shape_
        if self.map_shape_ != expected:
            raise ValueError(f"map_shape={self.map_shape!r}, not {self.map_shape_}.")
        dtype = as_tensor(self.parts_[:1]).dtype
        check_start(self, layout_of(self), dtype, self._constraint, goes_on=True)
        if not self._constraint.allows(as_tensor(self.parts_)):
            raise ValueError("nonnegative=True, but parts_ has negative values.")

    def __getstate__(self) -> dict:
        return to_plain(without_group(super().__getstate__()), RECORDS)

    def __sklearn_clone__(self):
        """A clone that shares the process group, if that is a parameter."""
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
        """What a function makes of samples and the factors, as one array or in ``out``.

        It is given some samples (n, C, S) at a time. Of a dask array it makes another,
        when that is computed.
        """
        samples, origin = samples_of(self, X, squared=squared)
        if samples.spread:
            if out is not None:
                raise ValueError(
                    "out is for results that are made here, but X is a dask array: "
                    "leave it at None, and store what is returned with its to_zarr or "
                    "store."
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

    @property
    def _constraint(self) -> Constraint:
        """What parts may be."""
        return NONNEGATIVE if self.nonnegative else FREE

    @property
    def _batch_size(self) -> int | None:
        """The parameter as an int that torch takes: not numpy's, nor too long."""
        return None if self.batch_size is None else min(int(self.batch_size), 2**62)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def layout_of(panda: PartsAppearanceDecomposition) -> MapLayout:
    """How maps lie in users' arrays, as ``fit`` saw them."""
    return MapLayout(panda.map_shape_, panda.channel_axis, panda._flattened)


def varying_parts(panda: PartsAppearanceDecomposition) -> list[int]:
    """Indices of the parts that are not constant."""
    low, high = as_tensor(panda.parts_).flatten(1).aminmax(dim=1)
    return (high > low).nonzero()[:, 0].tolist()


def factors_of(panda: PartsAppearanceDecomposition, like: Tensor | Samples) -> Factors:
    """The fitted factors, of the type and on the device of a tensor or samples."""
    A, P = as_tensor(panda.appearances_).T, as_tensor(panda.parts_).flatten(1).T
    return Factors(A, P, panda._constraint).to(like.device, like.dtype)


def samples_of(
    panda: PartsAppearanceDecomposition, X: Any, *, squared: bool = False
) -> tuple[Samples, Origin]:
    """Samples laid out as those of ``fit``, and where they came from.

    With the parameters, which may have changed since. Values are checked as they are
    read; ``squared`` says that powers of them will be taken.
    """
    check_is_fitted(panda)
    check_parameters(panda)
    data = open_data(panda, X, reset=False)
    layout = layout_of(panda)
    check_same_layout(panda, data, layout)
    check = ValueCheck(layout, squared=squared)
    return data.samples(layout, check=check), data.origin


def _joined(results: Iterator[Tensor], n_samples: int | None) -> Tensor:
    """Results of batches as one tensor; each is let go when it has been copied."""
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


def _nothing(Z: Tensor) -> None:
    pass
