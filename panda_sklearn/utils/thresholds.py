"""Thresholds that users give, and masks of where maps reach them."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import shown

__all__ = ["check_threshold", "masks_of"]

# Elements of maps, at their final size, that are compared at a time.
BATCH_ELEMENTS = 2**22


def check_threshold(threshold: Any) -> tuple[float | None, float | None]:
    """Return a threshold as (level, quantile).

    "mean" is (None, None), a number (number, None), and a quantile (NaN, quantile).
    """
    if isinstance(threshold, str) and threshold == "mean":
        return None, None
    if _is_number(threshold):
        return float(threshold), None
    if (
        isinstance(threshold, tuple)
        and len(threshold) == 2
        and isinstance(threshold[0], str)
        and threshold[0] == "quantile"
        and _is_number(threshold[1])
        and 0 <= threshold[1] <= 1
    ):
        return float("nan"), float(threshold[1])
    raise ValueError(
        "threshold must be 'mean', a finite number, or ('quantile', q) with q from 0 "
        f"to 1, got {shown(threshold)}."
    )


def masks_of(
    maps: Tensor,
    size: tuple[int, ...],
    level: float,
    quantile: float | None,
    *,
    upsample_first: bool,
) -> Tensor:
    """Where maps (N, *spatial) reach a level, or each map its quantile, (N, *size).

    A few samples at a time, to save memory. With ``upsample_first`` maps are resized
    linearly and then compared; without, masks are resized to the nearest position.
    """

    def present(some: Tensor) -> Tensor:
        if quantile is None:
            return some >= level
        return some >= torch.quantile(
            some.flatten(1), quantile, dim=1, interpolation="higher"
        ).reshape(-1, *[1] * (some.ndim - 1))

    masks = []
    n_values = max(maps[0].numel(), int(np.prod(size)))
    for some in maps[:, None].split(max(1, BATCH_ELEMENTS // n_values)):
        if upsample_first:
            mask = present(resize(some, size))
        else:
            mask = resize(present(some).to(some), size, nearest=True) > 0.5
        masks.append(mask[:, 0])
    return torch.cat(masks)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and bool(np.isfinite(float(value)))
    )
