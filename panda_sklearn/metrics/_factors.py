"""Measures of parts and of appearances alone.

Floor 4: numpy, on factors of either kind, whose few numbers are brought to
the host.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.matching import match_rows, unit_rows
from panda_sklearn.utils.validation import check_flag, check_values, is_bool, shown


def match_factors(factors, others, *, ignore_sign=False):
    r"""Match two sets of factors so that the sum of the cosines is the largest.

    Parameters
    ----------
    factors : array of shape (n_factors, \*shape)
        Parts or appearances, one a row.

    others : array of shape (n_others, \*shape)
        Other ones, of the same shape.

    ignore_sign : bool, default=False
        Whether a factor is as good as its negative, as for appearances where their
        sign means nothing.

    Returns
    -------
    rows : ndarray of shape (min(n_factors, n_others),)
        Indices into ``factors``, rising.

    columns : ndarray of shape (min(n_factors, n_others),)
        Index into ``others`` of the match of each.

    cosines : ndarray of shape (min(n_factors, n_others),)
        Cosine of each pair, its magnitude with ``ignore_sign``; 0 where one of them is
        zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, the shapes differ or a value is not finite.

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
            "factors and others must have rows of one shape, got "
            f"{tuple(np.shape(factors))} and {tuple(np.shape(others))}."
        )
    rows, columns, cosines = match_rows(one, two, ignore_sign=ignore_sign)
    return rows, columns, abs(cosines) if ignore_sign else cosines


def parts_overlap(parts):
    r"""Mean cosine of two different parts.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    Returns
    -------
    overlap : float
        0 for parts that share no position, 1 for parts that are all alike; 0 for a
        single part.

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


def dead_parts(parts, *, tol=1e-6):
    r"""Find parts that are as good as zero.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    tol : float, default=1e-6
        Parts whose norm is at most this share of the largest are dead.

    Returns
    -------
    dead : boolean ndarray of shape (n_parts,)
        True for each dead part.
    """
    _check_share("tol", tol)
    norms = np.linalg.norm(_rows(parts, "parts"), axis=1)
    return norms <= tol * norms.max()


def duplicate_parts(parts, *, threshold=0.95):
    r"""Find parts that are much like an earlier one.

    Parameters
    ----------
    parts : array of shape (n_parts, \*spatial)
        The parts.

    threshold : float, default=0.95
        Cosine from which on two parts are duplicates.

    Returns
    -------
    duplicate : boolean ndarray of shape (n_parts,)
        True for each part that duplicates one before it.
    """
    _check_share("threshold", threshold)
    return (np.tril(_cosines(parts), -1) >= threshold).any(axis=1)


def _check_share(name: str, value: Any) -> None:
    if is_bool(value) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {shown(value)}.")


def _rows(factors: Any, name: str) -> np.ndarray:
    """Factors as rows of double precision on the host."""
    shape = "(n_parts, *spatial)" if name == "parts" else "(n_factors, ...)"
    tensor = as_tensor(check_values(factors, name, shape)).double().flatten(1)
    return tensor.cpu().resolve_neg().numpy()


def _cosines(parts: Any) -> np.ndarray:
    unit = unit_rows(_rows(parts, "parts"))
    return unit @ unit.T
