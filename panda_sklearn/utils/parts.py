"""What users may pass as a part, and as the variations that they mean."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    as_numeric,
    check_index,
    check_mask,
    is_bool,
    shown,
)

__all__ = ["as_part", "check_given", "indices_of", "is_mask"]

# What a part may be, for messages.
PART = "an int, a sequence of ints, or a mask of shape ([n_samples,] *spatial)"

# Axes of a mask: samples, and three of space.
MOST_AXES = 4


def as_part(part: Any) -> Any:
    """Return an index as an int, several as a tuple of int, a mask as an array.

    Raises
    ------
    TypeError, ValueError
        If it is something else. Whether indices are in range, and what shape a mask
        has, is not checked.
    """
    if isinstance(part, Integral) and not is_bool(part):
        return int(part)
    array = as_numeric(part, "part", PART)
    if array.ndim == 1 and len(array) == 0:
        raise ValueError("part must name one part at least, got an empty sequence.")
    if array.ndim == 1 and _is_integer(array):
        indices = tuple(int(k) for k in array)
        if len(set(indices)) < len(indices):
            raise ValueError(f"part must name each part once, got {list(indices)}.")
        return indices
    if array.ndim > MOST_AXES:
        raise ValueError(f"part must be {PART}, got {shown(array)}.")
    check_mask(array, "part")
    return array


def indices_of(part: int | tuple[int, ...], n_parts: int) -> list[int]:
    """The indices that :func:`as_part` returned, as a list, once they are checked.

    Raises
    ------
    TypeError, ValueError
        If one is out of range.
    """
    indices = part if isinstance(part, tuple) else (part,)
    return [check_index("part", k, n_parts) for k in indices]


def check_given(given: Any) -> None:
    """Raise ValueError unless ``given`` is ``None`` or "others"."""
    if not (given is None or (isinstance(given, str) and given == "others")):
        raise ValueError(f"given must be None or 'others', got {shown(given)}.")


def is_mask(part: Any) -> bool:
    """Whether a part, as :func:`as_part` returns it, is a mask."""
    return not isinstance(part, int | tuple)


def _is_integer(array: ArrayLike) -> bool:
    if isinstance(array, Tensor):
        return not array.is_floating_point() and array.dtype != torch.bool
    return array.dtype.kind in "iu"
