"""Maps at other sizes: a layer's at the size of images, and drawn masks at a layer's.

Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_size", "resize"]

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(maps: Tensor, size: Sequence[int], *, nearest: bool = False) -> Tensor:
    """Resize maps (N, K, *spatial) to (N, K, *size).

    They are enlarged linearly along each axis, or to the nearest value; they are made
    smaller by the mean over the area that each new position covers.
    """
    old, size = tuple(maps.shape[2:]), tuple(size)
    if old == size:
        return maps
    if nearest:
        return F.interpolate(maps, size=size, mode="nearest-exact")
    if all(new <= was for new, was in zip(size, old, strict=True)):
        return F.interpolate(maps, size=size, mode="area")
    return F.interpolate(maps, size=size, mode=LINEAR[len(size)], align_corners=False)


def check_size(size: Any, n_axes: int) -> tuple[int, ...]:
    """Return a size for each of ``n_axes`` spatial axes.

    Raises
    ------
    TypeError, ValueError
        If ``size`` is neither a positive int nor that many of them.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * n_axes
    if isinstance(size, str) or not all(
        isinstance(n, Integral) and not isinstance(n, bool) for n in sizes
    ):
        raise TypeError(
            f"size must be an int or a tuple of {n_axes} ints, got {size!r}."
        )
    if len(sizes) != n_axes or any(n < 1 for n in sizes):
        raise ValueError(
            f"size must be {n_axes} positive ints, one for each spatial axis of the "
            f"maps, got {size!r}."
        )
    return tuple(int(n) for n in sizes)
