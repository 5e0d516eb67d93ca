"""Scorers of a fitted decomposition, or of a Pipeline that holds one.

Reads the decomposition by its public attributes, and activations by the functions of
its module.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from panda_sklearn._pipelines import find_decomposition, transformed
from panda_sklearn.core.objective import cancels
from panda_sklearn.decomposition import (
    factors_of,
    samples_of,
)
from panda_sklearn.metrics._factors import (
    dead_parts,
    duplicate_parts,
    match_factors,
    parts_overlap,
)
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.validation import (
    check_choice,
    check_random_state,
    is_bool,
    shown,
)


def reconstruction(estimator: Any, X: Any, y: Any = None) -> float:
    """Score the fraction of the sum of squares that is reconstructed.

    This never prefers fewer parts or appearances, not even on unseen samples: the
    coefficients of a sample are computed from the very values that they reconstruct.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : array of shape (n_samples, ...)
        Input of the estimator.

    y : Ignored
        Not used, present for API consistency by convention.

    Returns
    -------
    score : float
        ``PartsAppearanceDecomposition.score``; 1 is perfect.
    """
    before, panda = find_decomposition(estimator)
    return panda.score(transformed(X, before))


@own_arithmetic
def heldout_reconstruction(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    held_out: str = "positions",
    n_folds: int = 5,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    r"""Score the prediction of positions, or channels, that were held out.

    The positions are split into random folds. A sample's values in each fold h are
    predicted from its values at the other positions o, which give its coefficients by
    least squares:

    .. math::

        \hat Z_{\cdot h} = A A^+ Z_{\cdot o} (P_{o\cdot}^+)^\top P_{h\cdot}^\top.

    Parts and appearances that fit noise make the prediction worse. Where the noise of
    different positions is independent, the score therefore peaks at the ranks of the
    signal. Fit with ``nonnegative=False`` to choose ranks: where non-negative parts
    overlap, P P' is not the projection onto their span, and further parts that come
    closer to it raise the score. The method follows the bi-cross-validation of Owen
    and Perry [1]_, whose blocks are those of ``held_out="both"``.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : array of shape (n_samples, ...)
        What the estimator takes, of samples that it was not fitted to.

    y : Ignored
        Not used, present for API consistency by convention.

    held_out : {"positions", "both"}, default="positions"
        "both" splits the channels into as many folds too, and predicts each block
        from the entries that share no channel and no position with it.

    n_folds : int, default=5
        Number of folds. With more folds, more is known of each sample, and further
        parts and appearances cost less.

    random_state : int, RandomState instance or None, default=0
        Draws the folds. With an int, all candidates of a search are compared on the
        same folds.

    Returns
    -------
    score : float
        1 - sum of squared errors / sum of squares; 1 is perfect, 0 is as good as
        predicting 0, and less is worse.

    Raises
    ------
    ValueError
        If there are fewer positions outside a fold than parts or, with "both", fewer
        channels than appearances: the coefficients are then not determined.

    References
    ----------
    .. [1] A. B. Owen, P. O. Perry. "Bi-Cross-Validation of the SVD and the
       Nonnegative Matrix Factorization". The Annals of Applied Statistics 3(2), 2009.
       https://arxiv.org/abs/0908.2062
    """
    check_choice("held_out", held_out, ("positions", "both"))
    if is_bool(n_folds) or not isinstance(n_folds, Integral) or n_folds < 2:
        raise ValueError(f"n_folds must be an int of 2 or more, got {shown(n_folds)}.")
    n_folds = int(n_folds)
    random = check_random_state(random_state)
    before, panda = find_decomposition(estimator)
    whole_channels = held_out == "positions"
    _check_folds(panda.parts_, n_folds, "parts", "positions")
    if not whole_channels:
        _check_folds(panda.appearances_, n_folds, "appearances", "channels")
    samples, _ = samples_of(panda, transformed(X, before), squared=True)
    factors = factors_of(panda, samples)
    A, P = factors.A.double(), factors.P.double()
    positions = _predictors(P, n_folds, random)
    if whole_channels:
        # Z turned into a basis of the appearances, and what is outside it.
        basis = torch.linalg.qr(A)[0] if A.shape[1] < len(A) else None
    else:
        channels = _predictors(A, n_folds, random)

    def add(batch: Tensor, error: Tensor, energy: Tensor) -> None:
        total = _sum_of_squares(batch)
        energy += total
        if whole_channels and basis is not None:
            inside = basis.to(batch).T @ batch
            outside = total - _sum_of_squares(inside)
            if cancels(outside, total, batch):
                wide = batch.double()
                outside = _sum_of_squares(wide - basis @ (basis.T @ wide))
            error += outside
            batch = inside
        for h, o, right in positions:
            seen, wanted = batch[:, :, o] @ right.to(batch).T, batch[:, :, h]
            if whole_channels:
                error += _sum_of_squares(wanted - seen)
                continue
            for c_h, c_o, left in channels:
                error += _sum_of_squares(wanted[:, c_h] - left.to(batch) @ seen[:, c_o])

    totals = torch.zeros(2, dtype=torch.float64, device=samples.device).unbind()
    error, energy = samples.accumulate(add, *totals)
    return 1 - float(error / energy) if float(energy) > 0 else 1.0


def stability(estimator: Any, X: Any, y: Any = None, *, of: str = "parts") -> float:
    """Score how well a fit to other samples finds the same parts.

    A clone with the same parameters is fitted to ``X``, samples that the estimator has
    not seen. The factors of both are matched so that they agree best.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one. The steps before it are not
        refitted.

    X : array of shape (n_samples, ...)
        Input of the estimator, with samples that it was not fitted to.

    y : Ignored
        Not used, present for API consistency by convention.

    of : {"parts", "appearances"}, default="parts"
        Which factors to compare; appearances are compared up to their sign.

    Returns
    -------
    score : float
        Mean cosine of the matched pairs; 1 if both fits found the same.

    See Also
    --------
    match_factors : The pairs and their cosines.
    """
    check_choice("of", of, ("parts", "appearances"))
    before, panda = find_decomposition(estimator)
    other = clone(panda).set_params(distributed=False).fit(transformed(X, before))
    one, two = getattr(panda, f"{of}_"), getattr(other, f"{of}_")
    cosines = match_factors(one, two, ignore_sign=of == "appearances")[2]
    return float(np.mean(cosines))


def neg_parts_overlap(estimator: Any, X: Any, y: Any = None) -> float:
    """Score how little the parts overlap.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : Ignored
        Not used, present for API consistency by convention.

    y : Ignored
        Not used, present for API consistency by convention.

    Returns
    -------
    score : float
        The negative of ``parts_overlap`` of the fitted parts; 0 if they share no
        position.
    """
    return 0.0 - parts_overlap(find_decomposition(estimator)[1].parts_)


def distinct_parts(estimator: Any, X: Any, y: Any = None) -> float:
    """Score the fraction of parts that are neither dead nor duplicates.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : Ignored
        Not used, present for API consistency by convention.

    y : Ignored
        Not used, present for API consistency by convention.

    Returns
    -------
    score : float
        From 0 to 1.

    See Also
    --------
    dead_parts : Finds parts that are practically zero.
    duplicate_parts : Finds parts that are nearly the same as an earlier one.
    """
    parts = find_decomposition(estimator)[1].parts_
    return float(np.mean(~dead_parts(parts) & ~duplicate_parts(parts)))


def _check_folds(factors: Any, n_folds: int, rank: str, rows: str) -> None:
    """Raise ValueError unless positions, or channels, can be held out in folds."""
    r, *shape = factors.shape
    n = math.prod(shape)
    if n < n_folds:
        raise ValueError(
            f"{n} {rows} cannot be split into {n_folds} folds. Use a smaller n_folds; "
            "one alone cannot be held out."
        )
    if n - -(-n // n_folds) < r:
        raise ValueError(
            f"{r} {rank} cannot be told apart by {n} {rows} less one fold. Use at most "
            f"n_{rank}={n - -(-n // n_folds)} with this scorer, or a larger n_folds."
        )


def _predictors(
    factor: Tensor, n_folds: int, random: np.random.RandomState
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each fold of a factor's rows: its indices h, the others o, and a predictor.

    The predictor (len(h), len(o)) takes coefficients from the rows o by least squares,
    and reconstructs the rows h from these.
    """
    n = len(factor)
    folds = np.array_split(random.permutation(n), n_folds)
    predictors = []
    for fold in folds:
        h = torch.from_numpy(np.sort(fold)).to(factor.device)
        o = torch.from_numpy(np.setdiff1d(np.arange(n), fold)).to(factor.device)
        predictors.append((h, o, factor[h] @ torch.linalg.pinv(factor[o])))
    return predictors


def _sum_of_squares(T: Tensor) -> Tensor:
    return T.square().sum(dtype=torch.float64)
