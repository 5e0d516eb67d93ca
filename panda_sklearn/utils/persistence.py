"""Fitted state as plain values, and checks of what a file of them holds.

Plain values are numbers, strings, numpy arrays and containers of these: what pickle,
joblib and skops take anywhere, with or without the device that the state was on. How
they lie in a file is the business of :mod:`panda_sklearn.utils.statefile`, and what a
fitted estimator has that of a module beside it.

Floor 2: numpy and torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.arrays import as_tensor

__all__ = [
    "LARGEST_SUM",
    "ROUNDING",
    "device_here",
    "from_plain",
    "is_count",
    "is_covariance",
    "is_finite",
    "is_of",
    "largest",
    "to_plain",
]

# Sums of squares are at most this, as of data that `fit` takes.
LARGEST_SUM = 1e270

# Covariances may be as far from what they should be by rounding, as a share of the
# second moments that they are differences of.
ROUNDING = 1e-3

# Rows of a matrix that are checked at a time, so that it takes little memory.
STRIP = 256

#: Dataclasses that state may hold, by name.
Records = Mapping[str, type]


def to_plain(value: Any, records: Records) -> Any:
    """Tensors, devices and records as dicts that say what they were."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().numpy()
        return {"tensor": array, "device": str(value.device)}
    if isinstance(value, torch.device):
        return {"torch.device": str(value)}
    if type(value) in records.values():
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": to_plain(fields, records)}
    return _each(value, lambda item: to_plain(item, records))


def from_plain(value: Any, records: Records) -> Any:
    """What :func:`to_plain` was given; on the CPU where a device is missing here."""
    if isinstance(value, dict):
        if set(value) == {"tensor", "device"}:
            return _onto(as_tensor(value["tensor"]), value["device"])
        if set(value) == {"torch.device"}:
            return torch.device(value["torch.device"])
        if set(value) == {"record", "fields"}:
            return records[value["record"]](**from_plain(value["fields"], records))
    return _each(value, lambda item: from_plain(item, records))


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """A container with a function of each item in it; anything else as it is."""
    if isinstance(value, dict):
        return {name: function(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [function(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _onto(T: Tensor, device: str) -> Tensor:
    """The tensor on a device, or where it is if torch has no such device here."""
    try:
        moved = T.to(torch.device(device))
    except (RuntimeError, AssertionError, ImportError):
        return T
    return T if moved.is_meta else moved


def device_here(device: str | torch.device) -> str | torch.device | None:
    """The device, or None if torch has no such device here."""
    there = torch.device(device)
    if there.type == "meta":
        raise ValueError("device='meta' holds no values")
    here = _onto(torch.empty(0, device="cpu"), str(there)).device
    return device if here.type == there.type else None


def is_covariance(M: Tensor, mean: float) -> bool:
    """Whether a matrix can be one of second moments, or what is left above the mean's.

    Such are symmetric, and no entry is larger than those of the diagonal allow.
    """
    most = max(mean * mean, largest(M))
    slack = ROUNDING * most
    roots = (M.diagonal().clamp(min=0) + slack).sqrt() * (1 + ROUNDING)
    if most > min(LARGEST_SUM, torch.finfo(M.dtype).max):
        return False
    if bool((M.diagonal() < -slack).any()):
        return False
    strips = (T.split(STRIP) for T in (M, M.T, roots))
    for rows, columns, some in zip(*strips, strict=True):
        if bool((rows.abs() > torch.outer(some, roots)).any()):
            return False
        if bool(((rows - columns).abs() > slack).any()):
            return False
    return True


def is_of(value: Any, kind: type) -> bool:
    """Whether a value is of that kind, as which a boolean is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def is_count(n: Any) -> bool:
    """Whether a value is an integer above 0."""
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0


def largest(T: Tensor) -> float:
    """The largest magnitude."""
    return max(abs(float(edge)) for edge in torch.aminmax(T))


def is_finite(array: np.ndarray | Tensor) -> bool:
    """Whether an array is of our floating types, and finite."""
    floats = {torch.float32, torch.float64, np.dtype("f4"), np.dtype("f8")}
    if array.dtype not in floats:
        return False
    return bool(as_tensor(array).isfinite().all())
