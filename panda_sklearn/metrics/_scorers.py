"""Scorers of a fitted decomposition, or of a Pipeline that holds one.

Floor 4: reads the decomposition through its public attributes and, for activations as
(N, C, S), its own door.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from panda_sklearn.core.objective import batches_of
from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.metrics._factors import (
    dead_parts,
    duplicate_parts,
    match_factors,
    parts_overlap,
)
from panda_sklearn.utils.validation import check_is_fitted, check_random_state


def reconstruction(estimator, X, y=None):
    """Score the share of the sum of squares that is reconstructed.

    Never prefers fewer parts or appearances, on unseen samples neither: each sample's
    coefficients are taken from the very values that they reconstruct.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : array of shape (n_samples, ...)
        What the estimator takes.

    y : Ignored
        Not used, present for API consistency by convention.

    Returns
    -------
    score : float
        ``PartsAppearanceDecomposition.score``; 1 is perfect.
    """
    panda, X = _find(estimator, X)
    return panda.score(X)


@torch.no_grad()
def heldout_reconstruction(
    estimator, X, y=None, *, held_out="positions", n_splits=5, random_state=0
):
    r"""Score the reconstruction of positions, or channels, that were left out.

    Positions are split into two random halves. From one half of each sample its
    coefficients are estimated by least squares and the other half is predicted,

    .. math::

        \hat Z_{\cdot h} = A A^+ Z_{\cdot o} (P_{o\cdot}^+)^\top P_{h\cdot}^\top,

    and the other way around. Parts and appearances that fit noise predict worse than
    none, so that the score has its maximum at ranks of the signal's where the noise
    of different positions is independent. After the bi-cross-validation of Owen and
    Perry [1]_, whose left-out blocks are those of ``held_out="both"``.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one.

    X : array of shape (n_samples, ...)
        What the estimator takes, of samples that it was not fitted to.

    y : Ignored
        Not used, present for API consistency by convention.

    held_out : {"positions", "both"}, default="positions"
        "both" splits the channels too, and predicts each of the four blocks from the
        one that shares no channel and no position with it. It needs twice as many
        channels as appearances.

    n_splits : int, default=5
        Number of random splits to average over.

    random_state : int, RandomState instance or None, default=0
        Draws the splits. The same for all candidates of a search, so that they are
        compared on the same ones.

    Returns
    -------
    score : float
        1 - sum of squared errors / sum of squares; 1 is perfect, 0 is as good as
        predicting 0, and less is worse.

    Raises
    ------
    ValueError
        If there are less than two positions for each part or, with "both", less than
        two channels for each appearance: coefficients cannot be told from half.

    References
    ----------
    .. [1] A. B. Owen, P. O. Perry. "Bi-Cross-Validation of the SVD and the
       Nonnegative Matrix Factorization". The Annals of Applied Statistics 3(2), 2009.
       https://arxiv.org/abs/0908.2062
    """
    if held_out not in ("positions", "both"):
        raise ValueError(f"held_out must be 'positions' or 'both', got {held_out!r}.")
    if isinstance(n_splits, bool) or not isinstance(n_splits, int) or n_splits < 1:
        raise ValueError(f"n_splits must be an int of 1 or more, got {n_splits!r}.")
    panda, X = _find(estimator, X)
    Z, _ = panda._check_maps(X)
    A, P = (factor.double() for factor in panda._factors(Z))
    (C, R_C), (S, R_S) = A.shape, P.shape
    if S < 2 * R_S:
        raise ValueError(
            f"{R_S} parts cannot be told from half of {S} positions. Use at most "
            f"n_parts={S // 2} with this scorer."
        )
    if held_out == "both" and C < 2 * R_C:
        raise ValueError(
            f"{R_C} appearances cannot be told from half of {C} channels. Use at most "
            f"n_appearances={C // 2} with held_out='both', or held_out='positions'."
        )
    random = check_random_state(random_state)
    # Z_hat = left Z right' for each of the splits' blocks; where channels are kept,
    # left projects onto the appearances, and Z is turned into their basis instead.
    basis = torch.linalg.qr(A)[0] if held_out == "positions" and R_C < C else None
    blocks = []
    for _ in range(n_splits):
        channels = _halves(C, random, Z) if held_out == "both" else [None]
        for h, o, right in _predictors(P, _halves(S, random, Z)):
            for pair in _predictors(A, channels) if held_out == "both" else [None]:
                blocks.append((h, o, right.to(Z), pair))
    error = torch.zeros((), dtype=torch.float64, device=Z.device)
    energy = torch.zeros_like(error)
    for batch in batches_of(Z):
        whole = batch.square().sum(dtype=torch.float64)
        energy += whole
        if basis is not None:
            batch = basis.to(batch).T @ batch
            error += n_splits * (whole - batch.square().sum(dtype=torch.float64))
        for h, o, right, pair in blocks:
            if pair is None:
                seen, wanted = batch[:, :, o], batch[:, :, h]
            else:
                c_h, c_o, left = pair
                seen, wanted = batch[:, c_o][:, :, o], batch[:, c_h][:, :, h]
                seen = left.to(batch) @ seen
            error += (wanted - seen @ right.T).square().sum(dtype=torch.float64)
    if float(energy) == 0:
        return 1.0
    return 1 - float(error / energy) / n_splits


def stability(estimator, X, y=None, *, of="parts"):
    """Score how well a fit to other samples finds the same parts.

    A clone is fitted to ``X``, with the same parameters and samples that the estimator
    has not seen; their factors are matched so that they agree best.

    Parameters
    ----------
    estimator : PartsAppearanceDecomposition or Pipeline
        Fitted decomposition, or a pipeline with one. The steps before it are not
        fitted anew.

    X : array of shape (n_samples, ...)
        What the estimator takes, of samples that it was not fitted to.

    y : Ignored
        Not used, present for API consistency by convention.

    of : {"parts", "appearances"}, default="parts"
        Which factors to compare; appearances up to their sign.

    Returns
    -------
    score : float
        Mean cosine of the matched pairs; 1 if both fits found the same.

    See Also
    --------
    match_factors : The pairs and their cosines.
    """
    if of not in ("parts", "appearances"):
        raise ValueError(f"of must be 'parts' or 'appearances', got {of!r}.")
    panda, X = _find(estimator, X)
    other = clone(panda).fit(X)
    one, two = getattr(panda, f"{of}_"), getattr(other, f"{of}_")
    cosines = match_factors(one, two, ignore_sign=of == "appearances")[2]
    return float(np.mean(cosines))


def neg_parts_overlap(estimator, X, y=None):
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
        - ``parts_overlap`` of the fitted parts; 0 if they share no position.
    """
    return -parts_overlap(_find(estimator).parts_)


def distinct_parts(estimator, X, y=None):
    """Score the share of the parts that are neither dead nor duplicates.

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
    dead_parts : Which are as good as zero.
    duplicate_parts : Which are much like an earlier one.
    """
    parts = _find(estimator).parts_
    return float(np.mean(~dead_parts(parts) & ~duplicate_parts(parts)))


def _steps(estimator: Any) -> tuple[list, PartsAppearanceDecomposition]:
    """The transformers before the decomposition in a pipeline, and itself."""
    before: list = []
    for _, step in getattr(estimator, "steps", [("", estimator)]):
        if isinstance(step, PartsAppearanceDecomposition):
            check_is_fitted(step)
            return before, step
        if step not in (None, "passthrough"):
            before.append(step)
    raise TypeError(
        "Expected a PartsAppearanceDecomposition or a Pipeline with one as a step, got "
        f"a {type(estimator).__name__}."
    )


def _find(estimator: Any, X: Any = None) -> Any:
    """The decomposition and its input; without X the decomposition alone."""
    before, panda = _steps(estimator)
    if X is None:
        return panda
    for step in before:
        X = step.transform(X)
    return panda, X


def _halves(n: int, random: np.random.RandomState, Z: Tensor) -> list:
    """Two random halves of n indices, each with the other: held out, observed."""
    order = torch.from_numpy(random.permutation(n)).to(Z.device)
    one, two = order[: n // 2].sort().values, order[n // 2 :].sort().values
    return [(one, two), (two, one)]


def _predictors(factor: Tensor, halves: list) -> list:
    """Indices held out and observed, and the matrix that predicts one from the other.

    Rows of the factor that were observed give coefficients by least squares.
    """
    return [(h, o, factor[h] @ torch.linalg.pinv(factor[o])) for h, o in halves]
