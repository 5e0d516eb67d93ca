"""Activations with planted parts and appearances.

Imports numpy and scikit-learn's check of random states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from panda_sklearn.utils.validation import (
    check_count,
    check_number,
    check_random_state,
    check_rank,
    shown,
)

# Beyond this, powers overflow or underflow double precision.
MOST_DECIBELS = 1000.0


def make_parts_appearances(
    n_samples: int = 100,
    n_parts: int = 4,
    n_appearances: int = 8,
    *,
    n_channels: int = 16,
    spatial_shape: Sequence[int] = (8, 8),
    snr_db: float | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Make activations with planted parts and appearances, and noise.

    Parts are disjoint blocks of neighbouring positions with random positive weights,
    scaled to unit norm, so that P'P = I. Appearances are random orthonormal vectors.
    Coefficients are normal; their scale falls geometrically from the first appearance
    to a tenth at the last, so that the appearances can be told apart.

    Parameters
    ----------
    n_samples : int, default=100
        Number of samples.

    n_parts : int, default=4
        Number of parts, at most the number of positions.

    n_appearances : int, default=8
        Number of appearances, at most ``n_channels``.

    n_channels : int, default=16
        Number of channels.

    spatial_shape : tuple of int, default=(8, 8)
        Sizes of the spatial axes.

    snr_db : float, default=None
        Ratio of the expected sums of squares of signal and normal noise, in decibels.
        ``None`` adds no noise.

    random_state : int, RandomState instance or None, default=None
        Draws everything. Pass an int for the same data at every call.

    Returns
    -------
    X : ndarray of shape (n_samples, n_channels, \*spatial_shape)
        Activations, float64.

    parts : ndarray of shape (n_parts, \*spatial_shape)
        Planted parts.

    appearances : ndarray of shape (n_appearances, n_channels)
        Planted appearances.

    Raises
    ------
    TypeError, ValueError
        If a count is not a positive int, a rank exceeds the number of positions or
        channels, or ``snr_db`` is not a number from -1000 to 1000.

    Examples
    --------
    >>> from panda_sklearn.datasets import make_parts_appearances
    >>> X, parts, appearances = make_parts_appearances(n_samples=10, random_state=0)
    >>> X.shape, parts.shape, appearances.shape
    ((10, 16, 8, 8), (4, 8, 8), (8, 16))
    """
    for name, value in {
        "n_samples": n_samples,
        "n_parts": n_parts,
        "n_appearances": n_appearances,
        "n_channels": n_channels,
    }.items():
        check_count(name, value)
    if not isinstance(spatial_shape, Sequence) or isinstance(spatial_shape, str):
        raise TypeError(
            f"spatial_shape must be a tuple of ints, got {shown(spatial_shape)}."
        )
    if not spatial_shape:
        raise ValueError("spatial_shape must have at least one size, got none.")
    spatial_shape = [check_count("each of spatial_shape", n) for n in spatial_shape]
    n_positions = math.prod(spatial_shape)
    check_rank("n_parts", n_parts, 0, n_positions, "positions")
    check_rank("n_appearances", n_appearances, 0, n_channels, "channels")
    if snr_db is not None:
        check_number("snr_db", snr_db, at_least=-MOST_DECIBELS, at_most=MOST_DECIBELS)
    random = check_random_state(random_state)

    owner = np.arange(n_positions) * n_parts // n_positions  # part of each position
    weights = random.uniform(0.5, 1.0, n_positions)
    P = np.where(owner == np.arange(n_parts)[:, None], weights, 0.0)
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    A = np.linalg.qr(random.standard_normal((n_channels, n_appearances)))[0].T
    L = random.standard_normal((n_samples, n_appearances, n_parts))
    L *= np.geomspace(1.0, 0.1, n_appearances)[:, None]
    X = A.T @ L @ P
    if snr_db is not None:
        power = np.mean(X**2) / 10 ** (snr_db / 10)
        X += math.sqrt(power) * random.standard_normal(X.shape)
    return (
        X.reshape(n_samples, n_channels, *spatial_shape),
        P.reshape(n_parts, *spatial_shape),
        A,
    )
