"""Fitted state as plain values, in a file, and what must be so for it to work.

Plain values are numbers, strings, numpy arrays and containers of these: what pickle,
joblib and skops take anywhere, with or without the device that the state was on. How
they lie in a file is the business of :mod:`panda_sklearn.utils.statefile`.

Floor 2: numpy and torch, and the records of the floors below.
"""

from __future__ import annotations

import dataclasses
import math
import os
import reprlib
from collections.abc import Collection
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.core.channels import ChannelMoments
from panda_sklearn.core.moments import Moments
from panda_sklearn.solvers import Past
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.statefile import (
    FORMAT_VERSION,
    read_parts,
    reading,
    write_parts,
)

__all__ = [
    "FORMAT_VERSION",
    "check_attributes",
    "from_plain",
    "read_state",
    "to_plain",
    "write_state",
]

# What a fitted decomposition has, and what it may have besides.
ATTRIBUTES = {
    "_flattened",
    "appearances_",
    "map_shape_",
    "n_features_in_",
    "n_iter_",
    "objective_history_",
    "parts_",
    "reconstruction_err_",
    "saliency_covariance_",
    "saliency_mean_",
}
OPTIONAL = {
    "_channels",
    "_past",
    "feature_names_in_",
    "layer_",
    "n_samples_seen_",
}

# What is kept of a stream, all of it or nothing.
OF_STREAM = OPTIONAL - {"feature_names_in_", "layer_"}

KINDS = {
    "_channels": ChannelMoments,
    "_flattened": bool,
    "_past": Past,
    "layer_": str,
    "n_features_in_": int,
    "n_iter_": int,
    "n_samples_seen_": int,
    "reconstruction_err_": float,
}

# Magnitude of the factors, and of their products, at most: the fourth power of it,
# which an error's square has, is then far within float32. Fitted ones are near 1.
LARGEST_FACTOR = 1e8

# Sums of squares are at most this, as of data that `fit` takes.
LARGEST_SUM = 1e270

# Covariances may be as far from what they should be by rounding, as a share of the
# second moments that they are differences of.
ROUNDING = 1e-3

# Rows of a matrix that are checked at a time, so that it takes little memory.
STRIP = 256

RECORDS = {record.__name__: record for record in (ChannelMoments, Moments, Past)}


def to_plain(value: Any) -> Any:
    """Tensors, devices and records as dicts that say what they were."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().numpy()
        return {"tensor": array, "device": str(value.device)}
    if isinstance(value, torch.device):
        return {"torch.device": str(value)}
    if type(value) in RECORDS.values():
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": to_plain(fields)}
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [to_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def from_plain(value: Any) -> Any:
    """What :func:`to_plain` was given; on the CPU where a device is missing here."""
    if isinstance(value, dict):
        if set(value) == {"tensor", "device"}:
            return _onto(as_tensor(value["tensor"]), value["device"])
        if set(value) == {"torch.device"}:
            return torch.device(value["torch.device"])
        if set(value) == {"record", "fields"}:
            return RECORDS[value["record"]](**from_plain(value["fields"]))
        return {name: from_plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [from_plain(item) for item in value]
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
    path: str | os.PathLike, kind: str, params: dict, attributes: dict
) -> None:
    """Write a fitted decomposition's plain values to a file.

    Raises
    ------
    TypeError
        If a value has no place in such a file, or an attribute none in this class.
    """
    for name in set(attributes) - ATTRIBUTES - OPTIONAL:
        raise TypeError(
            f"{name} is of type {type(attributes[name]).__name__} and no attribute "
            "that such a file holds. Delete it, or keep the estimator with joblib.dump "
            "instead."
        )
    write_parts(path, kind, {"params": params, "attributes": attributes})


def read_state(
    path: str | os.PathLike, kind: str, known: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, of the ``known`` names, and attributes of a fitted decomposition.

    The values of parameters are the estimator's to check, but for the device, which
    is None where it is missing here.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no whole file of that kind and of a known version, or its attributes
        do not make a fitted decomposition.
    """
    names = {"params": known, "attributes": ATTRIBUTES | OPTIONAL}
    parts, unread = read_parts(path, kind, names)
    with reading(path):
        params, attributes = (from_plain(parts[name]) for name in names)
        if isinstance(device := params.get("device"), str | torch.device):
            params["device"] = _device_here(device)
    try:
        check_attributes(attributes)
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


def check_attributes(attributes: dict) -> None:
    """Raise ValueError unless a decomposition works with these attributes."""
    problem = _misfit(attributes) or _bad_values(attributes)
    if problem:
        raise ValueError(problem)


def _misfit(attributes: dict) -> str:
    """What is wrong with names, types and shapes of fitted attributes, or nothing."""
    missing = ATTRIBUTES - set(attributes)
    if OF_STREAM & set(attributes):
        missing |= OF_STREAM - set(attributes)
    if missing:
        return f"{sorted(missing)} are missing"
    shape = attributes["map_shape_"]
    if not isinstance(shape, tuple) or not all(_is_count(n) for n in shape):
        return f"map_shape_ is {reprlib.repr(shape)}, expected (n_channels, *spatial)"
    if not 2 <= len(shape) <= 4:
        return f"map_shape_ has {len(shape) - 1} spatial axes, expected one to three"
    for name, kind in KINDS.items():
        value = attributes.get(name)
        if name in attributes and not _is_of(value, kind):
            return f"{name} is of type {type(value).__name__}, expected {kind.__name__}"
    C, S = shape[0], math.prod(shape[1:])
    n_features = C * S if attributes["_flattened"] else C
    if attributes["n_features_in_"] != n_features:
        return (
            f"n_features_in_ is {attributes['n_features_in_']}, expected {n_features}"
        )
    R_C = np.shape(attributes["appearances_"])[:1]
    kind = Tensor if isinstance(attributes["parts_"], Tensor) else np.ndarray
    # The kind and shape of each array.
    expected: dict[str, tuple[Any, tuple]] = {
        "parts_": (kind, ("n_parts", *shape[1:])),
        "appearances_": (kind, ("n_appearances", C)),
        "saliency_mean_": (kind, R_C),
        "saliency_covariance_": (kind, 2 * R_C),
        "objective_history_": (np.ndarray, (attributes["n_iter_"],)),
    }
    arrays: dict[str, Any] = {name: attributes[name] for name in expected}
    if past := attributes.get("_past"):
        channels = attributes["_channels"]
        expected["mean of channels"] = (Tensor, (C,))
        expected["scatter of channels"] = (Tensor, (C, C))
        arrays["mean of channels"] = channels.mean
        arrays["scatter of channels"] = channels.scatter
        for name, moments, n in (
            ("parts", past.of_parts, S),
            ("appearances", past.of_appearances, C),
        ):
            if not isinstance(moments, Moments):
                return f"what is kept of {name} is no {Moments.__name__}"
            for which, wanted in (("M1", (n, n)), ("M2", (n, n)), ("energy", ())):
                label = f"{which} of {name}"
                expected[label] = (Tensor, wanted)
                arrays[label] = getattr(moments, which)
    if "feature_names_in_" in attributes:
        expected["feature_names_in_"] = (np.ndarray, (n_features,))
        arrays["feature_names_in_"] = attributes["feature_names_in_"]
    for name, (kind, wanted) in expected.items():
        array = arrays[name]
        if not isinstance(array, kind):
            return f"{name} is no {kind.__name__}"
        if len(wanted) != array.ndim or any(
            (isinstance(size, int) and size != found) or found == 0
            for size, found in zip(wanted, array.shape, strict=True)
        ):
            return f"{name} is of shape {tuple(array.shape)}, expected {wanted}"
        if name != "feature_names_in_" and not _is_finite(array):
            return f"{name} holds NaN, infinity or no floating-point numbers"
    return ""


def _bad_values(attributes: dict) -> str:
    """What is wrong with the values of attributes of the right shapes, or nothing."""
    names = attributes.get("feature_names_in_")
    if names is not None and not (
        attributes["_flattened"] and len(set(names)) == len(names)
    ):
        return "feature_names_in_ are not one name for each column"
    if not math.isfinite(attributes["reconstruction_err_"]):
        return "reconstruction_err_ is not finite"
    factors = ("appearances_", "parts_", "saliency_mean_", "saliency_covariance_")
    A, P, mean, covariance = (as_tensor(attributes[name]) for name in factors)
    if len({T.dtype for T in (A, P, mean, covariance)}) > 1:
        return f"{', '.join(factors)} are of several types"
    a, p = _largest(A), _largest(P)
    if max(a, p, a * p) > LARGEST_FACTOR:
        return f"the factors are as large as {a:.0e} and {p:.0e}"
    seconds = [("saliency_covariance_", covariance, _largest(mean))]
    if past := attributes.get("_past"):
        if not attributes["n_samples_seen_"] == past.n_samples > 0:
            return f"n_samples_seen_ is not {reprlib.repr(past.n_samples)}"
        channels = attributes["_channels"]
        n = past.n_samples * math.prod(attributes["map_shape_"][1:])
        if channels.n != n:
            return f"the number of vectors is {reprlib.repr(channels.n)}, expected {n}"
        offset = math.sqrt(n) * _largest(channels.mean)
        seconds.append(("scatter of channels", channels.scatter, offset))
        for name in ("of_parts", "of_appearances"):
            moments = getattr(past, name)
            if not (isinstance(moments.eps, float) and 0 < moments.eps < 1):
                return f"eps {name} is {reprlib.repr(moments.eps)}"
            energy = float(moments.energy)
            one, two = (float(M.trace()) for M in (moments.M1, moments.M2))
            # By Cauchy and Schwarz, whatever the scale of the factor that was held;
            # and that is no more than a factor's.
            if not (
                0 <= energy <= LARGEST_SUM
                and 0
                <= one
                <= math.sqrt(max(two, 0) * (1 + ROUNDING)) * math.sqrt(energy)
                and two <= LARGEST_FACTOR**2 * one
            ):
                return f"moments {name} do not fit their energy, {energy:.0e}"
            seconds += [(f"a moment {name}", M, 0.0) for M in (moments.M1, moments.M2)]
    for name, M, size in seconds:
        if not _is_covariance(M, size):
            return f"{name} is no covariance"
    return ""


def _is_covariance(M: Tensor, mean: float) -> bool:
    """Whether a matrix can be one of second moments, or what is left above the mean's.

    Such are symmetric, and no entry is larger than those of the diagonal allow.
    """
    largest = max(mean * mean, _largest(M))
    slack = ROUNDING * largest
    roots = (M.diagonal().clamp(min=0) + slack).sqrt() * (1 + ROUNDING)
    if largest > min(LARGEST_SUM, torch.finfo(M.dtype).max):
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


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is of that kind, as which a boolean is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_count(n: Any) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0


def _largest(T: Tensor) -> float:
    """The largest magnitude."""
    return max(abs(float(edge)) for edge in torch.aminmax(T))


def _is_finite(array: np.ndarray | Tensor) -> bool:
    """Whether an array is of our floating types, and finite."""
    floats = {torch.float32, torch.float64, np.dtype("f4"), np.dtype("f8")}
    if array.dtype not in floats:
        return False
    return bool(as_tensor(array).isfinite().all())
