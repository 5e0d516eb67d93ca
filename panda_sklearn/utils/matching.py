"""Which of two sets of vectors belong together.

Floor 2: numpy and scipy.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["match_rows", "unit_rows"]


def match_rows(
    one: np.ndarray, two: np.ndarray, *, ignore_sign: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns, (n,) each, whose cosines have the largest sum, and these.

    With ``ignore_sign`` their magnitudes count; the cosines have their signs.
    """
    cosines = np.clip(unit_rows(one) @ unit_rows(two).T, -1, 1)
    sums = abs(cosines) if ignore_sign else cosines
    rows, columns = linear_sum_assignment(sums, maximize=True)
    return rows, columns, cosines[rows, columns]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norms, whatever their scale; zero ones stay so."""
    sizes = abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(sizes > 0, sizes, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
