"""Where concepts are: saliency, localisation, parts refined to single samples.

Floor 3: what a fitted decomposition says of samples, sections 3.5 and 4.1 of the paper.
Reads the decomposition's fitted attributes; fitting, encoding and keeping are the
business of :mod:`panda_sklearn.decomposition`.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.core.objective import batches_of, sample_objectives
from panda_sklearn.solvers import refine_parts
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.arrays import Origin, as_tensor
from panda_sklearn.utils.resizing import check_size, resize
from panda_sklearn.utils.validation import check_index, check_is_fitted, check_values

__all__ = ["InterpretationMixin"]

# Numbers of a saliency map, at its final size, that are thresholded at a time.
BATCH_ELEMENTS = 2**22


class InterpretationMixin:
    """Methods of a fitted decomposition that interpret samples."""

    if TYPE_CHECKING:
        appearances_: Any
        parts_: Any
        map_shape_: tuple[int, ...]
        nonnegative: bool
        saliency_covariance_: Any
        saliency_mean_: Any
        verbose: int

        def _check_maps(
            self, X: Any, *, squared: bool = False
        ) -> tuple[Tensor, Origin]: ...
        def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]: ...

    @property
    def saliency_std_(self):
        """Standard deviation of each appearance's saliency in the training data."""
        covariance = self.saliency_covariance_
        if isinstance(covariance, Tensor):
            return covariance.diagonal().clamp(min=0).sqrt()
        return np.sqrt(np.maximum(np.diagonal(covariance), 0))

    @own_arithmetic
    def saliency(self, X, *, size=None):
        r"""Map how much of each appearance there is at each position (section 4.1).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``.

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
        Z, origin = self._check_maps(X)
        A, _ = self._factors(Z)
        Y = A.T @ Z
        return origin.give(resize(Y.reshape(*Y.shape[:2], *spatial), size))

    @own_arithmetic
    def localize(
        self, X, appearance, threshold="mean", *, size=None, upsample_first=True
    ):
        r"""Find where an appearance is present (section 4.1.2).

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``.

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
            If ``appearance``, ``threshold`` or ``size`` is something else.
        """
        check_is_fitted(self)
        k = check_index("appearance", appearance, len(self.appearances_))
        spatial = self.map_shape_[1:]
        size = spatial if size is None else check_size(size, len(spatial))
        level, quantile = _check_threshold(threshold)
        if level is None:
            level = float(self.saliency_mean_[k])
        Z, origin = self._check_maps(X)
        A, _ = self._factors(Z)

        def present(maps: Tensor) -> Tensor:
            if quantile is None:
                return maps >= level
            return maps >= torch.quantile(
                maps.flatten(1), quantile, dim=1, interpolation="higher"
            ).reshape(-1, *[1] * (maps.ndim - 1))

        masks = []
        for batch in _samples(A[:, k] @ Z, size):
            maps = batch.reshape(-1, 1, *spatial)
            if upsample_first:
                mask = present(resize(maps, size))
            else:
                mask = resize(present(maps).to(maps), size, nearest=True) > 0.5
            masks.append(mask[:, 0])
        return origin.give(torch.cat(masks))

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
            Activations, laid out as for ``fit``.

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
        if not isinstance(max_iter, Integral) or max_iter < 0:
            raise ValueError(f"max_iter must be an int of 0 or more, got {max_iter!r}.")
        Z, origin = self._check_maps(X)
        parts = self._refine(Z, max_iter, self.verbose)
        return origin.give(parts.reshape(*parts.shape[:2], *self.map_shape_[1:]))

    def _refine(self, Z: Tensor, max_iter: int, verbose: int = 0) -> Tensor:
        """Refined parts (N, R_S, S) of checked maps (N, C, S)."""
        A, P = self._factors(Z)
        refined = Z.new_empty(len(Z), *P.T.shape)
        with tqdm(
            total=len(Z),
            desc=f"{type(self).__name__}, refinement",
            disable=not verbose,
            mininterval=1,
        ) as bar:
            for batch, into in zip(batches_of(Z), batches_of(Z, refined), strict=True):
                into[:] = refine_parts(
                    batch, A, P, max_iter=max_iter, nonnegative=self.nonnegative
                ).mT
                bar.update(len(batch))
        return refined

    @own_arithmetic
    def reconstruction_errors(self, X, parts=None):
        r"""Measure how far each sample is from its reconstruction.

        Parameters
        ----------
        X : array of shape (n_samples, n_channels, \*spatial)
            Activations, laid out as for ``fit``.

        parts : array of shape (n_samples, n_parts, \*spatial), default=None
            Parts of each sample, as from ``refine``; ``None`` is ``parts_`` for all.

        Returns
        -------
        errors : array of shape (n_samples,)
            The squared error :math:`\lVert Z_i - A (A^\top Z_i P_i) P_i^\top
            \rVert_F^2` of each sample, equation (6); in double precision.
        """
        Z, origin = self._check_maps(X, squared=True)
        A, P = self._factors(Z)
        if parts is None:
            P = P.expand(len(Z), *P.shape)
        else:
            parts = check_values(parts, "parts")
            spatial = self.map_shape_[1:]
            if parts.ndim != 2 + len(spatial) or parts.shape[2:] != spatial:
                raise ValueError(
                    f"parts must be of shape (n_samples, n_parts, *{spatial}), as from "
                    f"refine, got {tuple(parts.shape)}."
                )
            if len(parts) != len(Z):
                raise ValueError(
                    f"parts must be those of the {len(Z)} samples of X, got those of "
                    f"{len(parts)}."
                )
            P = as_tensor(parts).to(Z).flatten(2).mT
        return origin.give(sample_objectives(Z, A, P))


def _check_threshold(threshold: Any) -> tuple[float | None, float | None]:
    """The level, unless it is the mean, and the quantile, if it is one."""
    if isinstance(threshold, str) and threshold == "mean":
        return None, None
    if _is_number(threshold):
        return float(threshold), None
    if (
        isinstance(threshold, tuple)
        and len(threshold) == 2
        and threshold[0] == "quantile"
        and _is_number(threshold[1])
        and 0 <= threshold[1] <= 1
    ):
        return float("nan"), float(threshold[1])
    raise ValueError(
        "threshold must be 'mean', a finite number, or ('quantile', q) with q from 0 "
        f"to 1, got {threshold!r}."
    )


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and bool(np.isfinite(float(value)))
    )


def _samples(maps: Tensor, size: tuple[int, ...]) -> Iterator[Tensor]:
    """Maps of a few samples each, few enough to be resized at once."""
    n_values = max(maps[0].numel(), int(np.prod(size)))
    yield from maps.split(max(1, BATCH_ELEMENTS // n_values))
