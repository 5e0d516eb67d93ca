"""Checks of the values of arrays: finite, and neither too large nor too small.

They check whole arrays or, for data that are read in batches, one batch after the
other, with the same messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike, MapLayout, as_tensor

__all__ = [
    "ValueCheck",
    "check_factor_scale",
    "check_finite",
    "check_fits",
    "check_scale",
]


class ValueCheck:
    """Checks the values of samples in one pass, batch by batch.

    A :class:`panda_sklearn.core.samples.Check`. Values that are too large are found in
    their batch; whether all are too small is known at the end.

    Parameters
    ----------
    layout : MapLayout
        How samples lie in the user's array.

    name : str, default="X"
        The user's name for that array.

    squared : bool, default=True
        Whether powers of the values will be taken.
    """

    def __init__(
        self, layout: MapLayout, name: str = "X", *, squared: bool = True
    ) -> None:
        self.layout, self.name, self.squared = layout, name, squared
        self._largest = 0.0
        self._dtype = torch.float32

    def see(self, batch: Tensor, start: int) -> None:
        """Raise ValueError if samples (n, C, S) hold a value too large or not finite.

        ``start`` is the index of the first sample.
        """
        largest = _largest(batch)
        if not math.isfinite(largest):
            finite = batch.isfinite().flatten(1).all(1)
            i = int((~finite).nonzero()[0])
            raise _not_finite(
                self.layout.from_maps(batch[i : i + 1]), self.name, start + i
            )
        self._dtype = batch.dtype
        if largest > _limits(batch.dtype, self.squared)[1]:
            i = int(batch.abs().flatten(1).amax(1).argmax())
            self._check(largest, f"{self.name}[{start + i}]")
        self._largest = max(self._largest, largest)

    def join(self, other: ValueCheck) -> None:
        """Add what another check has seen of other samples."""
        self._largest = max(self._largest, other._largest)
        self._dtype = other._dtype

    def finish(self) -> None:
        """Raise ValueError if all values are too small."""
        self._check(self._largest, self.name)

    def _check(self, largest: float, where: str) -> None:
        least, most = _limits(self._dtype, self.squared)
        _check_range(largest, where, self.name, self._dtype, least, most)


def check_finite(X: ArrayLike, name: str) -> None:
    """Raise ValueError that names the first entry that is NaN or infinite."""
    if isinstance(X, Tensor):
        if not X.is_floating_point():
            return
    elif X.dtype.kind != "f":
        return
    for start, batch in _batches(X):
        T = as_tensor(batch, keep_type=True)
        if T.numel() and not math.isfinite(_largest(T)):
            raise _not_finite(T, name, start)


def check_scale(Z: Tensor, *, squared: bool = True) -> None:
    """Raise ValueError if sums of the values would leave the range of their dtype.

    With ``squared``, sums of their powers.
    """
    _check_range(_largest(Z), "X", "X", Z.dtype, *_limits(Z.dtype, squared))


def check_factor_scale(factor: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise ValueError for a factor too large or too small for data of a dtype.

    The objective contains the fourth power of each factor.
    """
    limit = torch.finfo(dtype).max ** 0.125
    _check_range(_largest(factor), name, name, dtype, 1 / limit, limit)


def check_fits(values: Any, name: str, dtype: torch.dtype) -> None:
    """Raise ValueError if values are too large for a narrower dtype."""
    tensor = isinstance(values, Tensor)
    floating = values.is_floating_point() if tensor else values.dtype.kind == "f"
    if not floating or values.dtype.itemsize <= dtype.itemsize:
        return
    largest = max(abs(float(values.min())), abs(float(values.max())))
    if largest > torch.finfo(dtype).max:
        raise ValueError(
            f"{name} has values up to {largest:g}, which do not fit in {dtype}. Scale "
            "them down."
        )


def _batches(X: ArrayLike) -> Iterator[tuple[int, ArrayLike]]:
    """Yield views of about 8 M elements along the first axis, each with its start."""
    size = max(1, 2**23 // max(1, math.prod(X.shape[1:])))
    for start in range(0, len(X), size):
        yield start, X[start : start + size]


def _largest(T: Tensor) -> float:
    """The largest magnitude; NaN or infinity if there is such a value."""
    low, high = torch.stack(torch.aminmax(T)).tolist()  # in one pass; NaN if any is
    return max(abs(low), abs(high))


def _not_finite(T: Tensor, name: str, start: int) -> ValueError:
    """The error for samples from ``start`` on, some of which are not finite."""
    first = tuple((~T.isfinite()).nonzero()[0].tolist())
    kind = "NaN" if math.isnan(float(T[first])) else "infinity"
    where = ", ".join(map(str, (start + first[0], *first[1:])))
    return ValueError(
        f"Input {name} contains {kind}, first at {name}[{where}]. Remove or replace "
        "such samples."
    )


def _limits(dtype: torch.dtype, squared: bool) -> tuple[float, float]:
    """The least and the most that the largest magnitude of data may be, unless 0."""
    most = torch.finfo(dtype).max ** (0.4 if squared else 0.9)
    return (1 / most if squared else 0.0), most


def _check_range(
    largest: float, where: str, name: str, dtype: torch.dtype, least: float, most: float
) -> None:
    if largest > most or 0 < largest < least:
        raise ValueError(
            f"The largest magnitude in {where} is {largest:.3g}, too large or small to "
            f"compute with in {dtype}: it must be between {least:.0e} and {most:.0e}. "
            f"Divide {name} by its largest magnitude."
        )
