"""Fitted state as plain values, and checks of values read from a file.

Plain values are numbers, strings, numpy arrays and containers of these: pickle, joblib
and skops take them anywhere, with or without the device that the state was on.
:mod:`panda_sklearn.utils.statefile` writes them to a file; a module beside the
estimator says what a fitted one has.
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

# The largest sum of squares of data that `fit` takes.
LARGEST_SUM = 1e270

# How far rounding may put covariances off, as a fraction of the second moments whose
# differences they are.
ROUNDING = 1e-3

# Rows of a matrix that are checked at a time, to save memory.
STRIP = 256

#: Dataclasses that state may hold, by name.
Records = Mapping[str, type]


def to_plain(value: Any, records: Records) -> Any:
    """Turn tensors, devices and records into dicts that say what they were."""
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
    """Undo :func:`to_plain`; tensors of a device that is missing go to the CPU."""
    if isinstance(value, dict):
        if set(value) == {"tensor", "device"}:
            return _onto(as_tensor(value["tensor"]), value["device"])
        if set(value) == {"torch.device"}:
            return torch.device(value["torch.device"])
        if set(value) == {"record", "fields"}:
            return records[value["record"]](**from_plain(value["fields"], records))
    return _each(value, lambda item: from_plain(item, records))


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each item of a container; return other values as they are."""
    if isinstance(value, dict):
        return {name: function(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [function(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _onto(T: Tensor, device: str) -> Tensor:
    """The tensor on a device; where it is, if torch has no such device here."""
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
    """Whether a matrix can hold second moments, or covariances about ``mean``.

    It must be symmetric, with no entry larger than the diagonal allows.
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
    """Whether a value is of a type; a boolean is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def is_count(n: Any) -> bool:
    """Whether a value is an integer above 0."""
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0


def largest(T: Tensor) -> float:
    """The largest magnitude."""
    return max(abs(float(edge)) for edge in torch.aminmax(T))


def is_finite(array: np.ndarray | Tensor) -> bool:
    """Whether an array is finite, of single or double precision."""
    floats = {torch.float32, torch.float64, np.dtype("f4"), np.dtype("f8")}
    if array.dtype not in floats:
        return False
    return bool(as_tensor(array).isfinite().all())
