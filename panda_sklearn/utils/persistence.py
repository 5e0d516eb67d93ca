"""Fitted state as plain values, in a file, and what is read from it.

Plain values are numbers, strings, numpy arrays and containers of these: what pickle,
joblib and skops take anywhere, with or without the device that the state was on. How
they lie in a file is the business of :mod:`panda_sklearn.utils.statefile`; what a
fitted estimator has is said beside it, as a :class:`Kind`.

Floor 2: numpy and torch.
"""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.statefile import read_parts, reading, write_parts

__all__ = [
    "LARGEST_SUM",
    "ROUNDING",
    "Kind",
    "from_plain",
    "is_count",
    "is_covariance",
    "is_finite",
    "is_of",
    "largest",
    "read_state",
    "to_plain",
    "write_state",
]

# Sums of squares are at most this, as of data that `fit` takes.
LARGEST_SUM = 1e270

# Covariances may be as far from what they should be by rounding, as a share of the
# second moments that they are differences of.
ROUNDING = 1e-3

# Rows of a matrix that are checked at a time, so that it takes little memory.
STRIP = 256

#: Classes of records, by name.
Records = Mapping[str, type]


@dataclass(frozen=True)
class Kind:
    """What the files of a fitted estimator hold.

    Attributes
    ----------
    name : str
        As what such a file knows itself.

    version : int
        Of files that are written; those of a later one are refused.

    attributes : collection of str
        Fitted attributes that may be in a file.

    records : mapping
        Dataclasses that attributes may be, or hold, by name.

    migrations : mapping of int to callable
        What makes attributes of the next version of those of a version.

    check : callable
        Raises ValueError unless the estimator works with given attributes.
    """

    name: str
    version: int
    attributes: Collection[str]
    records: Records
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
    check: Callable[[dict[str, Any]], None]


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
    if isinstance(value, dict):
        return {name: to_plain(item, records) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [to_plain(item, records) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def from_plain(value: Any, records: Records) -> Any:
    """What :func:`to_plain` was given; on the CPU where a device is missing here."""
    if isinstance(value, dict):
        if set(value) == {"tensor", "device"}:
            return _onto(as_tensor(value["tensor"]), value["device"])
        if set(value) == {"torch.device"}:
            return torch.device(value["torch.device"])
        if set(value) == {"record", "fields"}:
            return records[value["record"]](**from_plain(value["fields"], records))
        return {name: from_plain(item, records) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [from_plain(item, records) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _onto(T: Tensor, device: str) -> Tensor:
    """The tensor on a device, or where it is if torch has no such device here."""
    try:
        moved = T.to(torch.device(device))
    except (RuntimeError, AssertionError, ImportError):
        return T
    return T if moved.is_meta else moved


def write_state(
    path: str | os.PathLike, kind: Kind, params: dict, attributes: dict
) -> None:
    """Write a fitted estimator's plain values to a file.

    Raises
    ------
    TypeError
        If a value has no place in such a file, or an attribute none in this class.
    """
    for name in set(attributes) - set(kind.attributes):
        raise TypeError(
            f"{name} is of type {type(attributes[name]).__name__} and no attribute "
            "that such a file holds. Delete it, or keep the estimator with joblib.dump "
            "instead."
        )
    parts = {"params": params, "attributes": attributes}
    write_parts(path, kind.name, kind.version, parts)


def read_state(
    path: str | os.PathLike, kind: Kind, known: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, of the ``known`` names, and attributes of a fitted estimator.

    The values of parameters are the estimator's to check, but for the device, which
    is None where it is missing here. Attributes of earlier versions are brought to the
    present one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no whole file of that kind and of a known version, or its attributes
        do not make a fitted estimator.
    """
    names = {"params": known, "attributes": kind.attributes}
    parts, version, unread = read_parts(path, kind.name, kind.version, names)
    with reading(path):
        params, attributes = (from_plain(parts[name], kind.records) for name in names)
        if isinstance(device := params.get("device"), str | torch.device):
            params["device"] = _device_here(device)
        for earlier in range(version, kind.version):
            attributes = kind.migrations[earlier](attributes)
    try:
        kind.check(attributes)
        if unread:
            raise ValueError(f"nothing refers to {reprlib.repr(sorted(unread))}")
    except ValueError as error:
        raise ValueError(
            f"The arrays in {os.fspath(path)!r} do not fit together: {error}. Save "
            "the estimator again."
        ) from error
    return params, attributes


def _device_here(device: str | torch.device) -> str | torch.device | None:
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
