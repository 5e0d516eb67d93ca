"""Which of two sets of vectors belong together.

Imports numpy and scipy.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["match_rows", "unit_rows"]


def match_rows(
    one: np.ndarray, two: np.ndarray, *, ignore_sign: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match rows of one with rows of two so that the sum of cosines is largest.

    Returns the rows of one, those of two, and their cosines, of shape (n,) each. With
    ``ignore_sign`` the magnitudes of cosines are summed; those returned are signed.
    """
    cosines = np.clip(unit_rows(one) @ unit_rows(two).T, -1, 1)
    sums = abs(cosines) if ignore_sign else cosines
    rows, columns = linear_sum_assignment(sums, maximize=True)
    return rows, columns, cosines[rows, columns]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, whatever their scale; rows of zeros stay zero."""
    sizes = abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(sizes > 0, sizes, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
