"""Measures of parts and appearances alone.

Factors may be arrays or tensors; the few numbers are copied to the CPU.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.matching import match_rows, unit_rows
from panda_sklearn.utils.validation import check_flag, check_values, is_bool, shown


def match_factors(
    factors: ArrayLike, others: ArrayLike, *, ignore_sign: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Match two sets of factors one to one, with the largest sum of cosines.

    Parameters
    ----------
    factors : array of shape (n_factors, \*shape)
        Parts or appearances, one a row.

    others : array of shape (n_others, \*shape)
        Other factors of the same shape.

    ignore_sign : bool, default=False
        Whether a factor counts the same as its negative, as for appearances, whose
        sign may be arbitrary.

    Returns
    -------
    rows : ndarray of shape (min(n_factors, n_others),)
        Indices into ``factors``, ascending.

    columns : ndarray of shape (min(n_factors, n_others),)
        Indices into ``others`` of their matches.

    cosines : ndarray of shape (min(n_factors, n_others),)
        Cosine of each pair, or its magnitude with ``ignore_sign``; 0 if either is zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, the shapes differ or a value is not finite.

    See Also
    --------
    stability : Matches the parts of two fits.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.metrics import match_factors
    >>> rows, columns, cosines = match_factors(np.eye(3), 2 * np.eye(3)[::-1])
    >>> columns, cosines
    (array([2, 1, 0]), array([1., 1., 1.]))
    """
    check_flag("ignore_sign", ignore_sign)
    one, two = _rows(factors, "factors"), _rows(others, "others")
    if one.shape[1:] != two.shape[1:]:
        raise ValueError(
            "factors and others must have rows of the same shape, got "
            f"{tuple(np.shape(factors))} and {tuple(np.shape(others))}."
        )
    rows, columns, cosines = match_rows(one, two, ignore_sign=ignore_sign)
    return rows, columns, abs(cosines) if ignore_sign else cosines


def parts_overlap(parts: ArrayLike) -> float:
    r"""Compute the mean cosine of pairs of different parts.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    Returns
    -------
    overlap : float
        0 if parts share no position, 1 if all are alike up to scale; 0 for a single
        part.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.metrics import parts_overlap
    >>> parts_overlap(np.eye(3)), parts_overlap(np.ones((3, 4)))
    (0.0, 1.0)
    """
    cosines = _cosines(parts)
    n = len(cosines)
    if n == 1:
        return 0.0
    return float((cosines.sum() - np.trace(cosines)) / (n * (n - 1)))


def dead_parts(parts: ArrayLike, *, tol: float = 1e-6) -> np.ndarray:
    r"""Find parts that are practically zero.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    tol : float, default=1e-6
        Parts whose norm is at most this fraction of the largest norm are dead.

    Returns
    -------
    dead : boolean ndarray of shape (n_parts,)
        True for each dead part.
    """
    _check_fraction("tol", tol)
    norms = np.linalg.norm(_rows(parts, "parts"), axis=1)
    return norms <= tol * norms.max()


def duplicate_parts(parts: ArrayLike, *, threshold: float = 0.95) -> np.ndarray:
    r"""Find parts that are nearly the same as an earlier one.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    threshold : float, default=0.95
        Two parts are duplicates if their cosine is at least this.

    Returns
    -------
    duplicate : boolean ndarray of shape (n_parts,)
        True for each part that duplicates an earlier one.
    """
    _check_fraction("threshold", threshold)
    return np.tril(_cosines(parts), -1).max(axis=1) >= threshold


def _check_fraction(name: str, value: Any) -> None:
    if is_bool(value) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {shown(value)}.")


def _rows(factors: Any, name: str) -> np.ndarray:
    """Factors as rows in double precision on the CPU."""
    shape = "(n_parts, *spatial)" if name == "parts" else "(n_factors, ...)"
    tensor = as_tensor(check_values(factors, name, shape)).double().flatten(1)
    return tensor.cpu().resolve_neg().numpy()


def _cosines(parts: Any) -> np.ndarray:
    unit = unit_rows(_rows(parts, "parts"))
    return unit @ unit.T
