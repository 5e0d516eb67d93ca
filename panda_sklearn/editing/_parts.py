"""Functions on parts, whose results can be given to ``Edit`` as its part."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.validation import check_number, check_values, shown

__all__ = ["intersect_part", "merge_parts", "scale_part", "scaled", "split_part"]


def scale_part(part: ArrayLike) -> ArrayLike:
    r"""Scale a part linearly to the range 0 to 1.

    Parameters
    ----------
    part : array of shape (\*spatial)
        A part, such as ``parts_[3]``.

    Returns
    -------
    mask : array of shape (\*spatial)
        (part - min) / (max - min), the mask that an edit uses.

    Raises
    ------
    TypeError, ValueError
        If the part is constant, or not an array of finite numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.editing import scale_part
    >>> scale_part(np.array([0.0, 0.5, 2.0]))
    array([0.  , 0.25, 1.  ])
    """
    values, origin = _check_part(part, "part")
    return origin.give(scaled(values, "part"))


def merge_parts(*parts: ArrayLike) -> ArrayLike:
    r"""Join parts into one.

    Parameters
    ----------
    *parts : arrays of shape (\*spatial)
        Parts, or masks.

    Returns
    -------
    mask : array of shape (\*spatial)
        Their sum, scaled to the range 0 to 1: the mask that an edit at several indices
        uses.

    Raises
    ------
    TypeError, ValueError
        If there are no parts, a list or an index was given, their shapes differ, or
        their sum is constant.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.editing import merge_parts
    >>> merge_parts(np.array([4.0, 0, 0]), np.array([0, 2.0, 0]))
    array([1. , 0.5, 0. ])
    """
    if not parts:
        raise ValueError("merge_parts needs one part at least.")
    _check_arrays(parts)
    checked = [_check_part(part, f"part {n}") for n, part in enumerate(parts)]
    first, origin = checked[0]
    for n, (part, _) in enumerate(checked):
        if part.shape != first.shape:
            raise ValueError(
                f"Parts must be of one shape: the first is of shape "
                f"{tuple(first.shape)}, part {n} of {tuple(part.shape)}."
            )
    total = torch.stack([part.to(first) for part, _ in checked]).sum(dim=0)
    return origin.give(scaled(total, "The sum of the parts"))


def intersect_part(part: ArrayLike, mask: ArrayLike) -> ArrayLike:
    r"""Restrict a part to a mask.

    Parameters
    ----------
    part : array of shape (\*spatial)
        A part; it is scaled to the range 0 to 1 first.

    mask : array of shape (\*spatial)
        Values from 0 to 1, or booleans; or another part, which is scaled too.

    Returns
    -------
    mask : array of shape (\*spatial)
        Their product.

    Raises
    ------
    TypeError, ValueError
        If one is not an array of finite numbers, their shapes differ, or they share no
        position.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.editing import intersect_part
    >>> intersect_part(np.array([0, 1.0, 2.0]), np.array([True, True, False]))
    array([0. , 0.5, 0. ])
    """
    values, origin = _check_part(part, "part")
    other, _ = _check_part(mask, "mask")
    if other.shape != values.shape:
        raise ValueError(
            f"part and mask must be of one shape, got {tuple(values.shape)} and "
            f"{tuple(other.shape)}."
        )
    low, high = (float(edge) for edge in torch.aminmax(other))
    if low < 0 or high > 1:
        other = scaled(other, "mask")
    both = scaled(values, "part") * other.to(values)
    if not bool(both.any()):
        raise ValueError("part and mask share no position.")
    return origin.give(both)


def split_part(part: ArrayLike, *, threshold: float = 0.5) -> list[ArrayLike]:
    r"""Split a part into its connected components, such as two eyes.

    Parameters
    ----------
    part : array of shape (\*spatial)
        A part.

    threshold : float, default=0.5
        Positions belong to a component where the part, scaled to the range 0 to 1, is
        at least this; above 0 and at most 1. Positions that share a side are
        connected; those that share only a corner are not.

    Returns
    -------
    masks : list of arrays of shape (\*spatial)
        A mask for each component, the one with the largest sum first: the scaled part
        within the component, and zero elsewhere.

    Raises
    ------
    TypeError, ValueError
        If the part is constant or not an array of finite numbers, or the threshold is
        out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.editing import split_part
    >>> eyes = np.array([[0, 2.0, 0, 4.0, 3.0], [0, 0, 0, 0, 0]])
    >>> right, left = split_part(eyes)
    >>> right[0], left[0]
    (array([0.  , 0.  , 0.  , 1.  , 0.75]), array([0. , 0.5, 0. , 0. , 0. ]))
    """
    threshold = check_number("threshold", threshold, above=0, at_most=1)
    values, origin = _check_part(part, "part")
    values = scaled(values, "part")
    labels, n_found = ndimage.label((values >= threshold).cpu().numpy())
    where = torch.from_numpy(labels).to(values.device)
    found = [torch.where(where == n, values, 0) for n in range(1, n_found + 1)]
    found.sort(key=lambda mask: -float(mask.sum()))
    return [origin.give(mask) for mask in found]


def scaled(values: Tensor, what: str) -> Tensor:
    """Values scaled to the range 0 to 1; ``what`` names them in the error."""
    low, high = torch.aminmax(values)
    if not bool(high > low):
        raise ValueError(
            f"{what} is constant ({float(high):g} everywhere) and cannot be scaled to "
            "the range 0 to 1. Choose another part."
        )
    return (values - low) / (high - low)


def _check_part(part: Any, name: str) -> tuple[Tensor, Origin]:
    """Return a part as a tensor, and its origin."""
    values = check_values(part, name, "(*spatial)", n_axes=1)
    if values.ndim > 3:
        raise ValueError(
            f"{name} must have one, two or three spatial axes, got an array of shape "
            f"{tuple(values.shape)}."
        )
    return as_tensor(values), Origin.of(values)


def _check_arrays(parts: tuple) -> None:
    """Raise TypeError if indices, or a list of arrays, were given instead of arrays."""
    first = parts[0]
    if any(isinstance(part, Integral) for part in parts):
        raise TypeError(
            f"parts must be arrays, such as parts_[1], got {shown(first)}. An edit "
            "takes indices of several parts directly: Edit(appearance, part=[1, 2])."
        )
    if len(parts) == 1 and isinstance(first, list | tuple):
        if not any(isinstance(part, np.ndarray | Tensor) for part in first):
            return
        raise TypeError(
            f"parts must be separate arguments, got a {type(first).__name__} of "
            f"{len(first)}. Use merge_parts(*parts)."
        )
