"""Fitted state as plain values, and as one safetensors file.

Plain values are numbers, strings, numpy arrays and containers of these: what pickle,
joblib and skops take anywhere, with or without the device that the state was on. The
file holds the arrays by name and everything else as JSON, so that reading it runs no
code.

Floor 2: numpy, torch and safetensors, and the records of the floors below.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from panda_sklearn._version import __version__
from panda_sklearn.core.moments import ChannelMoments, Moments
from panda_sklearn.solvers import Past
from panda_sklearn.utils.arrays import as_tensor

__all__ = ["check_saved", "from_plain", "read_state", "to_plain", "write_state"]

#: Version of the file's layout; files of a later one are refused.
FORMAT_VERSION = 1

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
    try:
        return T.to(device)
    except (RuntimeError, AssertionError):
        return T


def write_state(path: str | os.PathLike, kind: str, **parts: dict[str, Any]) -> None:
    """Write dicts of plain values to a file, which appears whole or not at all.

    Raises
    ------
    TypeError
        If a value has no place in such a file.
    """
    arrays: dict[str, np.ndarray] = {}
    text = {
        part: json.dumps({k: _encode(v, k, arrays) for k, v in state.items()})
        for part, state in parts.items()
    }
    versions = {"panda_sklearn": __version__, "torch": torch.__version__}
    metadata = {
        "kind": kind,
        "format_version": str(FORMAT_VERSION),
        "versions": json.dumps(versions),
        **text,
    }
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(arrays, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: str | os.PathLike, kind: str) -> dict[str, dict[str, Any]]:
    """The dicts given to :func:`write_state`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no whole file of that kind and of a known version.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a whole safetensors file ({error}). Copy it "
            "again from where it was saved."
        ) from error
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{os.fspath(path)!r} does not hold a {kind}, but "
            f"{metadata.get('kind', 'something else')}."
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} is of format version {version!r}, and this "
            f"panda_sklearn {__version__} reads versions up to {FORMAT_VERSION}. Use "
            "the version that saved it, or a later one."
        )
    try:
        parts = {
            part: from_plain(_decode(json.loads(text), arrays))
            for part, text in metadata.items()
            if part not in ("kind", "format_version", "versions")
        }
        if not all(isinstance(part, dict) for part in parts.values()):
            raise ValueError("expected JSON objects")
        return parts
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"What {os.fspath(path)!r} says of its arrays cannot be read "
            f"({type(error).__name__}: {error}). Save it again."
        ) from error


def check_saved(
    path: str | os.PathLike, params: dict, attributes: dict, known: Iterable[str]
) -> None:
    """Raise ValueError unless what a file held makes a fitted decomposition.

    ``known`` are the names of parameters; their values are the estimator's to check.
    """
    unknown = set(params) - set(known) | set(attributes) - ATTRIBUTES - OPTIONAL
    if unknown:
        raise ValueError(
            f"{os.fspath(path)!r} holds {sorted(unknown)}, which panda_sklearn "
            f"{__version__} does not know. Use the version that saved it."
        )
    problem = _mismatch(attributes)
    if problem:
        raise ValueError(
            f"The arrays in {os.fspath(path)!r} do not fit together: {problem}. Save "
            "the estimator again."
        )


def _mismatch(attributes: dict) -> str:
    """What is wrong with fitted attributes, or nothing."""
    missing = ATTRIBUTES - set(attributes)
    if missing:
        return f"{sorted(missing)} are missing"
    shape = attributes["map_shape_"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n > 0 for n in shape):
        return f"map_shape_ is {shape!r}, expected (n_channels, *spatial)"
    for name, kind in KINDS.items():
        value = attributes.get(name)
        if value is not None and type(value) is not kind:
            return f"{name} is of type {type(value).__name__}, expected {kind.__name__}"
    C, S = shape[0], math.prod(shape[1:])
    R_C = np.shape(attributes["appearances_"])[:1]
    n_features = C * S if attributes["_flattened"] else C
    if attributes["n_features_in_"] != n_features:
        return (
            f"n_features_in_ is {attributes['n_features_in_']}, expected {n_features}"
        )
    expected: dict[str, tuple] = {
        "parts_": ("n_parts", *shape[1:]),
        "appearances_": ("n_appearances", C),
        "saliency_mean_": R_C,
        "saliency_covariance_": 2 * R_C,
        "objective_history_": (attributes["n_iter_"],),
    }
    arrays = {name: attributes[name] for name in expected}
    if past := attributes.get("_past"):
        channels = attributes.get("_channels")
        if channels is None:
            return "_channels are missing"
        for name, array, shape in (
            ("mean of channels", channels.mean, (C,)),
            ("scatter of channels", channels.scatter, (C, C)),
        ):
            expected[name], arrays[name] = shape, array
        for name, moments, n in (
            ("parts", past.of_parts, S),
            ("appearances", past.of_appearances, C),
        ):
            for which in ("M1", "M2"):
                label = f"{which} of {name}"
                expected[label], arrays[label] = (n, n), getattr(moments, which)
    if (names := attributes.get("feature_names_in_")) is not None:
        expected["feature_names_in_"] = (n_features,)
        arrays["feature_names_in_"] = names
    for name, wanted in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray | Tensor):
            return f"{name} is no array"
        if len(wanted) != array.ndim or any(
            isinstance(size, int) and size != found
            for size, found in zip(wanted, array.shape, strict=True)
        ):
            return f"{name} is of shape {tuple(array.shape)}, expected {wanted}"
        if name != "feature_names_in_" and not _is_finite(array):
            return f"{name} holds NaN, infinity or no floating-point numbers"
    return ""


def _is_finite(array: np.ndarray | Tensor) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind == "f" and bool(np.isfinite(array).all())
    return array.is_floating_point() and bool(array.isfinite().all())


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A plain value as JSON, with numeric arrays put aside under their names."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub":
            arrays[name] = value.copy(order="C")
            return {"$array": name}
        if value.dtype.kind in "OU" and all(isinstance(item, str) for item in value):
            return {"$names": list(value)}
    elif isinstance(value, np.random.RandomState):
        return {"$RandomState": _encode(list(value.get_state()), name, arrays)}
    elif isinstance(value, np.generic):
        return _encode(value.item(), name, arrays)
    elif isinstance(value, tuple):
        return {"$tuple": _encode(list(value), name, arrays)}
    elif isinstance(value, list):
        return [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        # The array of a tensor bears the tensor's own name.
        return {
            k: _encode(v, name if k == "tensor" else f"{name}.{k}", arrays)
            for k, v in value.items()
        }
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is of type {type(value).__name__}, which has no place in a file "
        "without code. Keep the estimator with joblib.dump instead."
    )


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return arrays[value["$array"]]
    if "$names" in value:
        return np.array(value["$names"], dtype=object)
    if "$RandomState" in value:
        random_state = np.random.RandomState()
        random_state.set_state(tuple(_decode(value["$RandomState"], arrays)))
        return random_state
    if "$tuple" in value:
        return tuple(_decode(value["$tuple"], arrays))
    return {name: _decode(item, arrays) for name, item in value.items()}
