"""Checks of arrays that users pass: dense, real, finite, of some shape.

Imports numpy, scipy and torch. :mod:`panda_sklearn.utils.validation` re-exports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse
import torch

from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.scalars import shown
from panda_sklearn.utils.values import check_finite

__all__ = [
    "NO_ARRAYS",
    "SAMPLES",
    "as_numeric",
    "check_array_like",
    "check_mask",
    "check_values",
    "is_numeric",
]

# A shape of input, in the words of the docstrings.
SAMPLES = "(n_samples, ...)"

# Types that numpy would turn into arrays, though none was meant.
NO_ARRAYS = (str, bytes, Set, Mapping)


def check_array_like(values: Any, name: str, expected: str) -> None:
    """Raise unless ``values`` may be an array of numbers; its entries are not checked.

    ``expected`` describes, for messages, which array.

    Raises
    ------
    TypeError
        If it is not an array, is sparse, or holds dates.
    ValueError
        If it is complex, or a masked array with masked entries.
    """
    wanted = f"{name} must be {expected}, got"
    if isinstance(values, torch.Tensor):
        for unfit, found, remedy in (
            (values.is_quantized, "a quantized tensor", f"Use {name}.dequantize()."),
            (values.is_nested, "a nested tensor", "Give all samples one shape."),
            (values.is_meta, "a tensor without values, on 'meta'", "Load it first."),
        ):
            if unfit:
                raise TypeError(f"{wanted} {found}. {remedy}")
        if values.layout != torch.strided:
            raise TypeError(
                f"Sparse input is not supported: {wanted} a tensor of layout "
                f"{values.layout}. Use {name}.to_dense()."
            )
    if scipy.sparse.issparse(values):
        raise TypeError(
            f"Sparse input is not supported: {wanted} a {type(values).__name__}. Use "
            f"{name}.toarray()."
        )
    if values is None or isinstance(values, NO_ARRAYS) or _has_no_axis(values):
        raise TypeError(f"{wanted} {shown(values)}.")
    if isinstance(values, list | tuple):
        arrays = [value for value in values if isinstance(value, ArrayLike)]
        shapes = dict.fromkeys(tuple(array.shape) for array in arrays)
        if len(shapes) > 1:
            raise ValueError(
                f"{wanted} a {type(values).__name__} of arrays of shapes "
                f"{', '.join(map(str, shapes))}. Give one array. (Join inputs of a "
                "network that takes several as columns, and take them apart in the "
                "function given as forward.)"
            )
    if n_masked := _n_masked(values):
        raise ValueError(
            f"{wanted} a masked array with {n_masked} masked entries. Fill them with "
            f"{name}.filled(value), or leave out such samples."
        )
    kind = _kind(values)
    if kind == "c":
        raise ValueError(
            f"Complex data not supported: {wanted} {shown(values)}. Pass real and "
            "imaginary parts as channels."
        )
    if kind in ("m", "M"):
        raise TypeError(f"{wanted} {shown(values)}. Turn dates into numbers first.")


def _has_no_axis(values: Any) -> bool:
    """Whether it is a single number, or an array without axes."""
    return isinstance(values, Number) or getattr(values, "ndim", 1) == 0


def _n_masked(values: Any) -> int:
    """How many entries are masked in a masked array, or in those of a list."""
    if isinstance(values, np.ma.MaskedArray):
        return int(np.ma.count_masked(values))
    if isinstance(values, list | tuple):
        return sum(_n_masked(v) for v in values if isinstance(v, np.ma.MaskedArray))
    return 0


def _kind(values: Any) -> str | None:
    """Numpy's letter for the type of an array; ``None`` if unknown."""
    if isinstance(values, torch.Tensor):
        return "c" if values.is_complex() else None
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    return kind if isinstance(kind, str) else None


def check_values(
    values: Any, name: str, shape: str = SAMPLES, *, n_axes: int = 2
) -> ArrayLike:
    """Return a numeric, dense, finite array or tensor that is not empty.

    It must have ``n_axes`` axes or more; ``shape`` describes it in messages.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    array = as_numeric(values, name, f"an array of shape {shape}")
    if array.ndim < n_axes or 0 in array.shape:
        raise ValueError(
            f"{name} must be an array of shape {shape}, got one of shape "
            f"{tuple(array.shape)}."
        )
    check_finite(array, name)
    return array


def check_mask(mask: Any, name: str, shape: str = "(*spatial)") -> torch.Tensor:
    """Return a mask as a floating tensor.

    Raises
    ------
    TypeError, ValueError
        If it is not an array of numbers, its values are not from 0 to 1, or all are 0.
    """
    array = check_values(mask, name, shape, n_axes=1)
    values = as_tensor(array)
    low, high = (float(edge) for edge in torch.aminmax(values))
    if low < 0 or high > 1:
        raise ValueError(
            f"A mask has values from 0 to 1, but {name} has values from {low:g} to "
            f"{high:g}. Divide it by its largest value, or scale a part with "
            "panda_sklearn.editing.scale_part."
        )
    if high == 0:
        raise ValueError(f"{name} is a mask of zeros: it marks no position.")
    return values


def as_numeric(
    values: Any, name: str, expected: str = "an array of numbers"
) -> ArrayLike:
    """Return an array or tensor of real numbers, of any shape.

    ``expected`` describes it in messages.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    check_array_like(values, name, expected)
    if isinstance(values, torch.Tensor):
        return values
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        # Rows of different lengths, or things that are not numbers.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must be {expected}, got {shown(values)}: {error}") from None
    check_array_like(array, name, expected)
    if not is_numeric(array):
        raise TypeError(f"{name} must be {expected}, got {shown(values)}.")
    return array


def is_numeric(array: ArrayLike) -> bool:
    """Whether an array holds real numbers or booleans, densely."""
    if isinstance(array, torch.Tensor):
        return not array.is_complex() and array.layout == torch.strided
    return array.dtype.kind in "fiub"
