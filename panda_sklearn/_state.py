"""The attributes of a fitted decomposition, and how its file format has changed.

Part of the estimator in :mod:`panda_sklearn.decomposition`. Every attribute that it
sets is listed here. A new one needs a new ``FORMAT_VERSION`` and a migration, which
adds it to the attributes from files of the previous version.

Imports numpy and torch, and the records of the floors below.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.core.channels import ChannelMoments
from panda_sklearn.core.coefficients import CoefficientMoments
from panda_sklearn.core.moments import Moments
from panda_sklearn.solvers import Past
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.persistence import (
    LARGEST_SUM,
    ROUNDING,
    device_here,
    from_plain,
    is_count,
    is_covariance,
    is_finite,
    is_of,
    largest,
    to_plain,
)
from panda_sklearn.utils.statefile import read_parts, reading, write_parts

__all__ = [
    "FORMAT_VERSION",
    "OF_FILE",
    "OF_LATER_STREAM",
    "OF_STREAM",
    "RECORDS",
    "read_file",
    "write_file",
]

# Version of the file format; files of a later version are refused.
# 2: n_passes_, and network_ where it is known.
# 3: mean and covariances of the coefficients, in new fits.
FORMAT_VERSION = 3

# The name of the format, by which a file is recognised.
KIND = "PartsAppearanceDecomposition"

# Attributes of every fitted decomposition, with their types except for arrays and
# tuples.
ATTRIBUTES: dict[str, type | None] = {
    "_flattened": bool,
    "appearances_": None,
    "map_shape_": None,
    "n_features_in_": int,
    "n_iter_": int,
    "n_passes_": int,
    "objective_history_": None,
    "parts_": None,
    "reconstruction_err_": float,
    "saliency_covariance_": None,
    "saliency_mean_": None,
}

# Optional attributes: those of a stream, of which all or none are present; those that
# come from a file; those of X.
OF_STREAM: dict[str, type | None] = {
    "_channels": ChannelMoments,
    "_past": Past,
    "n_samples_seen_": int,
}
OF_FILE: dict[str, type | None] = {"layer_": str, "network_": str}
# Those added by version 3: all or none are present, and the sums of a stream.
OF_COEFFICIENTS: dict[str, type | None] = {
    "coefficient_covariance_": None,
    "coefficient_cross_covariance_": None,
    "coefficient_mean_": None,
}
OF_LATER_STREAM: dict[str, type | None] = {"_coefficients": CoefficientMoments}
OF_COLUMNS: dict[str, type | None] = {"feature_names_in_": None}

EVERY = (
    ATTRIBUTES | OF_STREAM | OF_FILE | OF_COLUMNS | OF_COEFFICIENTS | OF_LATER_STREAM
)

# Dataclasses among the attributes and in them.
RECORDS = {
    record.__name__: record
    for record in (ChannelMoments, CoefficientMoments, Moments, Past)
}

# Largest magnitude of the factors and of their products. Squared errors have its fourth
# power, which is then far within the range of float32. Fitted factors are near 1.
LARGEST_FACTOR = 1e8


def _count_passes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Add what version 1 did not have: how often the samples were read."""
    return {"n_passes_": 0, **attributes}


# For each version, a function from its attributes to those of the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _count_passes,
    2: dict,
}


def write_file(path: str | os.PathLike, params: dict, attributes: dict) -> None:
    """Write parameters and fitted attributes to a file.

    Raises
    ------
    TypeError
        If one has a type that the file cannot hold, or an unknown name.
    ValueError
        If :func:`read_file` would refuse them.
    """
    for name in set(attributes) - set(EVERY):
        raise TypeError(
            f"{name} is of type {type(attributes[name]).__name__} and not an attribute "
            "that such a file can hold. Delete it, or use joblib.dump instead."
        )
    _check(attributes)
    parts = {"params": params, "attributes": attributes}
    write_parts(path, KIND, FORMAT_VERSION, to_plain(parts, RECORDS))


def read_file(
    path: str | os.PathLike, known: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read parameters with ``known`` names, and attributes of the current version.

    The estimator has to check the values of the parameters. A device that this machine
    lacks becomes None.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not a complete file of that kind and a known version, or its attributes
        do not make a fitted decomposition.
    """
    names = {"params": known, "attributes": EVERY}
    parts, version, unread = read_parts(path, KIND, FORMAT_VERSION, names)
    with reading(path):
        params, attributes = (from_plain(parts[name], RECORDS) for name in names)
        if isinstance(device := params.get("device"), str | torch.device):
            params["device"] = device_here(device)
        for earlier in range(version, FORMAT_VERSION):
            attributes = MIGRATIONS[earlier](attributes)
    try:
        _check(attributes)
        if unread:
            raise ValueError(f"nothing refers to {reprlib.repr(sorted(unread))}")
    except ValueError as error:
        raise ValueError(
            f"The arrays in {os.fspath(path)!r} do not fit together: {error}. Save "
            "the estimator again."
        ) from error
    return params, attributes


def _check(attributes: dict) -> None:
    """Raise ValueError unless a decomposition with these attributes works."""
    if problem := _misfit(attributes) or _bad_values(attributes):
        raise ValueError(problem)


def _misfit(attributes: dict) -> str:
    """What is wrong with the attributes' names, types and shapes; empty if nothing."""
    missing = set(ATTRIBUTES) - set(attributes)
    if OF_STREAM.keys() & attributes.keys():
        missing |= set(OF_STREAM) - set(attributes)
    elif "_coefficients" in attributes:
        missing |= set(OF_STREAM)
    if OF_COEFFICIENTS.keys() & attributes.keys():
        missing |= set(OF_COEFFICIENTS) - set(attributes)
    if missing:
        return f"{sorted(missing)} are missing"
    shape = attributes["map_shape_"]
    if not isinstance(shape, tuple) or not all(is_count(n) for n in shape):
        return f"map_shape_ is {reprlib.repr(shape)}, expected (n_channels, *spatial)"
    if not 2 <= len(shape) <= 4:
        return f"map_shape_ has {len(shape) - 1} spatial axes, expected one to three"
    for name, of in sorted(EVERY.items()):
        value = attributes.get(name)
        if of is not None and name in attributes and not is_of(value, of):
            return f"{name} is of type {type(value).__name__}, expected {of.__name__}"
    C, S = shape[0], math.prod(shape[1:])
    n_features = C * S if attributes["_flattened"] else C
    if attributes["n_features_in_"] != n_features:
        return (
            f"n_features_in_ is {attributes['n_features_in_']}, expected {n_features}"
        )
    R_C = np.shape(attributes["appearances_"])[:1]
    R_S = np.shape(attributes["parts_"])[:1]
    own = Tensor if isinstance(attributes["parts_"], Tensor) else np.ndarray
    # The name, value, kind and expected shape of each array.
    arrays: list[tuple[str, Any, Any, tuple]] = [
        (name, attributes[name], kind, wanted)
        for name, kind, wanted in (
            ("parts_", own, ("n_parts", *shape[1:])),
            ("appearances_", own, ("n_appearances", C)),
            ("saliency_mean_", own, R_C),
            ("saliency_covariance_", own, 2 * R_C),
            ("coefficient_mean_", own, R_C + R_S),
            ("coefficient_covariance_", own, R_S + 2 * R_C),
            ("coefficient_cross_covariance_", own, R_S + 2 * R_C),
            ("objective_history_", np.ndarray, (attributes["n_iter_"],)),
            ("feature_names_in_", np.ndarray, (n_features,)),
        )
        if name in attributes
    ]
    if past := attributes.get("_past"):
        channels = attributes["_channels"]
        arrays.append(("mean of channels", channels.mean, Tensor, (C,)))
        arrays.append(("scatter of channels", channels.scatter, Tensor, (C, C)))
        for name, moments, n in (
            ("parts", past.of_parts, S),
            ("appearances", past.of_appearances, C),
        ):
            if not isinstance(moments, Moments):
                return f"what is kept of {name} is no {Moments.__name__}"
            for which, wanted in (("M1", (n, n)), ("M2", (n, n)), ("energy", ())):
                array = getattr(moments, which)
                arrays.append((f"{which} of {name}", array, Tensor, wanted))
    if varying := attributes.get("_coefficients"):
        for which, wanted in (
            ("mean", R_S + R_C),
            ("own", R_S + 2 * R_C),
            ("cross", R_S + 2 * R_C),
        ):
            array = getattr(varying, which)
            arrays.append((f"{which} of coefficients", array, Tensor, wanted))
    for name, array, kind, wanted in arrays:
        if not isinstance(array, kind):
            return f"{name} is no {kind.__name__}"
        if len(wanted) != array.ndim or any(
            (isinstance(size, int) and size != found) or found == 0
            for size, found in zip(wanted, array.shape, strict=True)
        ):
            return f"{name} is of shape {tuple(array.shape)}, expected {wanted}"
        if name != "feature_names_in_" and not is_finite(array):
            return f"{name} holds NaN, infinity or no floating-point numbers"
    return ""


def _bad_values(attributes: dict) -> str:
    """What is wrong with the attributes' values; empty if nothing."""
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
    a, p = largest(A), largest(P)
    if max(a, p, a * p) > LARGEST_FACTOR:
        return f"the factors are as large as {a:.0e} and {p:.0e}"
    seconds = [("saliency_covariance_", covariance, largest(mean))]
    if past := attributes.get("_past"):
        if not attributes["n_samples_seen_"] == past.n_samples > 0:
            return f"n_samples_seen_ is not {reprlib.repr(past.n_samples)}"
        channels = attributes["_channels"]
        n = past.n_samples * math.prod(attributes["map_shape_"][1:])
        if channels.n != n:
            return f"the number of vectors is {reprlib.repr(channels.n)}, expected {n}"
        offset = math.sqrt(n) * largest(channels.mean)
        seconds.append(("scatter of channels", channels.scatter, offset))
        for name in ("of_parts", "of_appearances"):
            moments = getattr(past, name)
            if not (isinstance(moments.eps, float) and 0 < moments.eps < 1):
                return f"eps {name} is {reprlib.repr(moments.eps)}"
            energy = float(moments.energy)
            one, two = (float(M.trace()) for M in (moments.M1, moments.M2))
            # The inequality of Cauchy and Schwarz, whatever the scale of the factor
            # that was held fixed; and that scale is at most a factor's.
            if not (
                0 <= energy <= LARGEST_SUM
                and 0
                <= one
                <= math.sqrt(max(two, 0) * (1 + ROUNDING)) * math.sqrt(energy)
                and two <= LARGEST_FACTOR**2 * one
            ):
                return f"moments {name} do not fit their energy, {energy:.0e}"
            seconds += [(f"a moment {name}", M, 0.0) for M in (moments.M1, moments.M2)]
    if "coefficient_mean_" in attributes:
        names_of = sorted(OF_COEFFICIENTS)
        if {as_tensor(attributes[name]).dtype for name in names_of} != {A.dtype}:
            return f"{', '.join(names_of)} are not of the type of the factors"
        offsets = as_tensor(attributes["coefficient_mean_"]).T
        covariances = as_tensor(attributes["coefficient_covariance_"])
        for k, M in enumerate(covariances):
            seconds.append(
                (f"coefficient_covariance_ of part {k}", M, largest(offsets[k]))
            )
        cross = as_tensor(attributes["coefficient_cross_covariance_"])
        if largest(cross) > LARGEST_SUM:
            return "coefficient_cross_covariance_ is too large"
    if varying := attributes.get("_coefficients"):
        if not (is_count(varying.n) and varying.n <= attributes["n_samples_seen_"]):
            return f"the coefficients are of {reprlib.repr(varying.n)} samples"
        if largest(varying.cross) > LARGEST_SUM:
            return "the cross scatter of coefficients is too large"
        for k, M in enumerate(varying.own):
            offset = math.sqrt(varying.n) * largest(varying.mean[k])
            seconds.append((f"scatter of coefficients of part {k}", M, offset))
    for name, M, size in seconds:
        if not is_covariance(M, size):
            return f"{name} is no covariance"
    return ""
