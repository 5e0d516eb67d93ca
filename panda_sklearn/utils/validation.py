"""Checks of users' input, and the only imports of scikit-learn's helpers.

Everything is checked here, once, before any work; the floors below trust their inputs.
``Interval``, ``StrOptions`` and ``_fit_context`` are not part of scikit-learn's public
interface: only this module knows where they live. Checks of single values are in
:mod:`panda_sklearn.utils.scalars`, of arrays in
:mod:`panda_sklearn.utils.array_checks`, of the values of arrays in
:mod:`panda_sklearn.utils.values`; this module re-exports them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import _param_validation, check_array
from sklearn.utils._param_validation import StrOptions, make_constraint
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from panda_sklearn.utils.array_checks import (
    NO_ARRAYS,
    SAMPLES,
    as_numeric,
    check_array_like,
    check_mask,
    check_values,
    is_numeric,
)
from panda_sklearn.utils.arrays import ArrayLike, MapLayout
from panda_sklearn.utils.scalars import (
    LARGEST,
    check_choice,
    check_count,
    check_flag,
    check_function,
    check_index,
    check_indices,
    check_items,
    check_kind,
    check_number,
    check_numbers,
    check_random_state,
    check_single,
    check_value_range,
    check_verbose,
    is_bool,
    shown,
)
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.values import (
    check_factor_scale,
    check_finite,
    check_fits,
    check_scale,
)

__all__ = [
    "LARGEST",
    "MAPS",
    "RANDOM_STATE",
    "SAMPLES",
    "Interval",
    "Options",
    "StrOptions",
    "as_numeric",
    "check_array_like",
    "check_axes",
    "check_choice",
    "check_columns",
    "check_count",
    "check_device",
    "check_factor_scale",
    "check_feature_names_in",
    "check_finite",
    "check_fits",
    "check_flag",
    "check_function",
    "check_index",
    "check_indices",
    "check_is_fitted",
    "check_items",
    "check_kind",
    "check_mask",
    "check_number",
    "check_numbers",
    "check_numeric_array",
    "check_parameters",
    "check_random_state",
    "check_rank",
    "check_same_layout",
    "check_scale",
    "check_single",
    "check_value_range",
    "check_values",
    "check_verbose",
    "find_layout",
    "fit_method",
    "is_bool",
    "is_numeric",
    "shown",
    "wants_container",
]

# The shape of input, in the words of the docstrings.
MAPS = "(n_samples, n_channels, *spatial)"


class Interval(_param_validation.Interval):
    """Numbers within bounds, for parameters; True and False are not numbers."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Whether a parameter is one of them."""
        return not is_bool(val) and super().is_satisfied_by(val)


class Options(_param_validation.Options):
    """One of some numbers, for parameters; True and False are not numbers."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Whether a parameter is one of them."""
        return not is_bool(val) and super().is_satisfied_by(val)


# What the parameter random_state may be.
RANDOM_STATE = [
    Interval(Integral, 0, 2**32 - 1, closed="both"),
    np.random.RandomState,
    None,
]


def fit_method(fit: Callable) -> Callable:
    """Decorate ``fit``: check the parameters first, and undo everything if it fails.

    After an exception of any kind the estimator has the attributes that it had before.
    """
    # Innermost, since it also ends what callbacks have begun.
    checked = _fit_context(prefer_skip_nested_validation=True)(fit)

    @functools.wraps(fit)
    def keep_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        state, before = vars(self), dict(vars(self))

        def put_back() -> None:
            state.update(before)
            for name in state.keys() - before.keys():
                state.pop(name, None)

        with Undo() as undo, undo:
            undo.note(put_back)
            result = checked(self, *args, **kwargs)
            undo.forget()
        return result

    if fit.__name__ != "partial_fit":
        return keep_state

    @functools.wraps(fit)
    def check_again(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_parameters(self)  # scikit-learn does so for the first batch only
        return keep_state(self, *args, **kwargs)

    return check_again


def check_parameters(estimator: BaseEstimator) -> None:
    """Check an estimator's parameters, which ``set_params`` may have changed since fit.

    These are the checks of ``fit``; they take microseconds.
    """
    if get_config()["skip_parameter_validation"]:
        return
    for name, constraints in _constraints(type(estimator)).items():  # type: ignore[arg-type]
        value = getattr(estimator, name)
        if not any(constraint.is_satisfied_by(value) for constraint in constraints):
            estimator._validate_params()  # raises with the right message


@functools.cache
def _constraints(kind: type) -> dict[str, list]:
    """The constraints of a class of estimators, as scikit-learn's objects."""
    return {
        name: [make_constraint(constraint) for constraint in constraints]
        for name, constraints in kind._parameter_constraints.items()  # type: ignore[attr-defined]
    }


def check_numeric_array(
    estimator: Any,
    X: Any,
    *,
    reset: bool,
    keep_dtype: bool = False,
    finite: bool = True,
    name: str = "X",
    shape: str = MAPS,
) -> ArrayLike:
    """Return X as a numeric, dense, finite array or tensor of two axes or more.

    Sets or compares ``n_features_in_`` (and names of columns) for arrays of two axes.
    Numpy input becomes float32 or float64, unless ``keep_dtype``. Values are not
    checked where ``finite`` is false. ``name`` and ``shape`` are for messages.

    Raises
    ------
    TypeError
        If X is not an array, is sparse or holds something other than numbers.
    ValueError
        If X is complex, holds NaN or infinity, has fewer than two axes or no samples,
        or is a masked array with masked entries.
    """
    check_array_like(X, name, f"an array of shape {shape}")
    with _named(name):
        X = _validated(estimator, X, reset, keep_dtype)
    if finite:
        check_finite(X, name)
    return X


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put an argument's name in front of scikit-learn's messages that lack it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"\b{name}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def _validated(estimator: Any, X: Any, reset: bool, keep_dtype: bool) -> ArrayLike:
    """Return X after the checks of scikit-learn, except those of the values."""
    if isinstance(X, torch.Tensor) or (isinstance(X, np.ndarray) and is_numeric(X)):
        # Not check_array: it would bring tensors to the host, and for arrays it changes
        # the filters of warnings, which belong to all threads.
        check_axes(X)
        if X.ndim == 2:
            check_columns(estimator, X, reset=reset)
        if isinstance(X, np.ndarray):
            X = np.asarray(X, order="C")
    else:
        options = {
            "dtype": "numeric",
            "order": "C",
            "allow_nd": True,
            "ensure_all_finite": False,  # check_finite also says where
        }
        if getattr(X, "ndim", 2) > 2:
            X = check_array(X, **options, estimator=estimator)
        else:
            X = validate_data(estimator, X, reset=reset, **options)
        if X.dtype.kind == "O":  # from a list of things that are not floats
            X = as_numeric(X, "X")
    if isinstance(X, np.ndarray) and not keep_dtype:
        double = X.dtype.kind == "f" and X.dtype.itemsize >= 8
        X = X.astype(np.float64 if double else np.float32, copy=False)
    check_axes(X)
    return X


def check_columns(estimator: Any, X: Any, *, reset: bool) -> None:
    """Set ``n_features_in_`` to the number of columns of X, or compare the two."""
    validate_data(estimator, X, reset=reset, skip_check_array=True)


def check_axes(X: Any) -> None:
    """Raise ValueError, in scikit-learn's words, unless the shape and type will do."""
    if isinstance(X, torch.Tensor) and X.is_complex():
        raise ValueError(
            "Complex data not supported. Pass real and imaginary parts as channels."
        )
    if X.ndim < 2:
        raise ValueError(
            f"Expected 2D array or more axes, got {X.ndim}D array instead. Reshape "
            "your data: a single sample is X[None]."
        )
    if X.shape[0] == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={tuple(X.shape)}) while a minimum of "
            "1 is required."
        )
    if 0 in X.shape:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={tuple(X.shape)}) while a minimum "
            "of 1 is required."
        )


def check_device(device: str | torch.device) -> torch.device:
    """Return the device with its index; ValueError if it cannot hold values here."""
    try:
        found = torch.empty(0, device=device).device
        if found.type != "meta":
            return found
        raise RuntimeError("tensors there have no values")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}). "
            "Use 'cpu', None, or a device that torch has on this machine."
        ) from error


def find_layout(
    X: Any, *, map_shape: tuple[int, ...] | None, channel_axis: int
) -> MapLayout:
    """Return how the maps lie in X, from its shape and the two parameters.

    Raises
    ------
    ValueError
        If X has more than three spatial axes or does not fit ``map_shape``.
    """
    if X.ndim == 2:
        n_features = int(X.shape[1])
        if map_shape is not None and not (
            2 <= len(map_shape) <= 4
            and all(isinstance(n, Integral) and n > 0 for n in map_shape)
            and not any(map(is_bool, map_shape))
        ):
            raise ValueError(
                "map_shape must be (n_channels, *spatial), positive ints with one, two "
                f"or three spatial axes, got {tuple(map_shape)}."
            )
        if map_shape is None:
            return MapLayout((1, n_features), flattened=True)
        if channel_axis != 1:
            raise ValueError(
                "Flattened maps are laid out channels first, as map_shape says: "
                f"channel_axis must be 1 for them, got {channel_axis}. Move the "
                "channels to the front before flattening."
            )
        if math.prod(map_shape) != n_features:
            raise ValueError(
                f"map_shape={tuple(map_shape)} needs {math.prod(map_shape)} columns, "
                f"but X has {n_features}."
            )
        return MapLayout(tuple(map_shape), flattened=True)
    if X.ndim > 5:
        raise ValueError(
            "Expected X of shape (n_samples, n_channels, *spatial) with one, two or "
            f"three spatial axes, got shape {tuple(X.shape)}. Reshape it, for example "
            "to one spatial axis."
        )
    shape = tuple(int(n) for n in X.shape[1:])
    shape = shape if channel_axis == 1 else (shape[-1], *shape[:-1])
    if map_shape is not None and tuple(map_shape) != shape:
        raise ValueError(
            f"X holds maps of shape {shape} (channels first), but "
            f"map_shape={tuple(map_shape)}. Leave map_shape at None unless X is "
            "flattened."
        )
    return MapLayout(shape, channel_axis=channel_axis)


def check_same_layout(estimator: Any, X: Any, layout: MapLayout) -> None:
    """Raise ValueError unless the samples of X have the shape seen by fit."""
    if tuple(X.shape[1:]) != layout.sample_shape:
        single = tuple(X.shape) == layout.sample_shape
        hint = " A single sample is X[None]." if single else ""
        raise ValueError(
            f"X has samples of shape {tuple(X.shape[1:])}, but "
            f"{type(estimator).__name__} is expecting {layout.sample_shape}, the shape "
            f"it was fitted on.{hint}"
        )


def check_rank(name: str, asked: int | None, default: int, limit: int, of: str) -> int:
    """Return the rank to use; ValueError if it is larger than the data allow."""
    if asked is None:
        return default
    if asked > limit:
        raise ValueError(
            f"{name}={asked} exceeds the number of {of}, {limit}. Use a number from 1 "
            f"to {limit}."
        )
    return int(asked)


def check_feature_names_in(estimator: Any, input_features: Any) -> None:
    """Raise unless ``input_features`` matches what ``fit`` saw."""
    if input_features is None:
        return
    if isinstance(input_features, (*NO_ARRAYS, torch.Tensor)):
        names = np.empty((), dtype=object)
    else:
        names = np.asarray(input_features, dtype=object)
    if names.ndim != 1 or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "input_features must be a sequence of names or None, got "
            f"{shown(input_features)}."
        )
    seen = getattr(estimator, "feature_names_in_", None)
    if seen is not None and not np.array_equal(seen, names):
        raise ValueError("input_features is not equal to feature_names_in_")
    if len(names) != estimator.n_features_in_:
        raise ValueError(
            "input_features should have length equal to number of features "
            f"({estimator.n_features_in_}), got {len(names)}"
        )


def wants_container(estimator: Any) -> bool:
    """Whether ``set_output`` asks for something other than a plain array."""
    return _get_output_config("transform", estimator)["dense"] != "default"
