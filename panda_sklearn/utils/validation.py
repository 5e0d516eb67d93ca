"""Checks of users' input, and the only imports of scikit-learn's helpers.

Floor 2. Everything is checked here, once, before any work; the floors below trust
their inputs. ``Interval``, ``StrOptions`` and ``_fit_context`` are not part of
scikit-learn's public interface: only this module knows where they live. Checks of
single values are in :mod:`panda_sklearn.utils.scalars`, of the values of arrays in
:mod:`panda_sklearn.utils.values`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Set
from numbers import Integral, Number
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import _param_validation, check_array
from sklearn.utils._param_validation import StrOptions, make_constraint
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from panda_sklearn.utils.arrays import ArrayLike, MapLayout, as_tensor
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

# Shapes of input, in the words of the docstrings.
SAMPLES = "(n_samples, ...)"
MAPS = "(n_samples, n_channels, *spatial)"


class Interval(_param_validation.Interval):
    """Numbers within bounds, for parameters; True and False are none."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Whether a parameter is one of them."""
        return not is_bool(val) and super().is_satisfied_by(val)


class Options(_param_validation.Options):
    """One of some numbers, for parameters; True and False are none."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Whether a parameter is one of them."""
        return not is_bool(val) and super().is_satisfied_by(val)


# What numpy would make an array of, though none was meant.
NO_ARRAYS = (str, bytes, Set, Mapping)

# What the parameter random_state may be.
RANDOM_STATE = [
    Interval(Integral, 0, 2**32 - 1, closed="both"),
    np.random.RandomState,
    None,
]


def fit_method(fit: Callable) -> Callable:
    """Decorate ``fit``: check the parameters first, and lose nothing if it fails.

    After an exception of any kind the estimator has the attributes that it had before.
    """

    @functools.wraps(fit)
    def keep_state(self, *args, **kwargs):
        state, before = vars(self), dict(vars(self))

        def put_back() -> None:
            state.update(before)
            for name in state.keys() - before.keys():
                state.pop(name, None)

        with Undo() as undo, undo:
            undo.note(put_back)
            result = fit(self, *args, **kwargs)
            undo.forget()
        return result

    checked = _fit_context(prefer_skip_nested_validation=True)(keep_state)
    if fit.__name__ != "partial_fit":
        return checked

    @functools.wraps(fit)
    def check_again(self, *args, **kwargs):
        check_parameters(self)  # which scikit-learn does at the first batch alone
        return checked(self, *args, **kwargs)

    return check_again


def check_parameters(estimator: BaseEstimator) -> None:
    """Check an estimator's parameters, which ``set_params`` may have changed since fit.

    As ``fit`` does, and with some microseconds cheap enough for every call.
    """
    if get_config()["skip_parameter_validation"]:
        return
    for name, constraints in _constraints(type(estimator)).items():  # type: ignore[arg-type]
        value = getattr(estimator, name)
        if not any(constraint.is_satisfied_by(value) for constraint in constraints):
            estimator._validate_params()  # finds the right words


@functools.cache
def _constraints(kind: type) -> dict[str, list]:
    """The constraints of a class of estimators, ready for use."""
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
    """A numeric, dense, finite array or tensor of two axes or more.

    Sets or compares ``n_features_in_`` (and names of columns) for arrays of two axes.
    Numpy input becomes float32 or float64, unless ``keep_dtype``. Values are not looked
    at where ``finite`` is false. The user knows it as ``name``, of ``shape``.

    Raises
    ------
    TypeError
        If X is no array, is sparse or holds something other than numbers.
    ValueError
        If X is complex, holds NaN or infinity, has less than two axes or no samples, or
        if it is a masked array of which something is masked.
    """
    check_array_like(X, name, f"an array of shape {shape}")
    with _named(name):
        X = _validated(estimator, X, reset, keep_dtype)
    if finite:
        check_finite(X, name)
    return X


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put an argument's name before messages of scikit-learn that lack it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"\b{name}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def _validated(estimator: Any, X: Any, reset: bool, keep_dtype: bool) -> ArrayLike:
    """What scikit-learn checks, in its words, but for the values."""
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
            "ensure_all_finite": False,  # check_finite says where, too
        }
        if getattr(X, "ndim", 2) > 2:
            X = check_array(X, **options, estimator=estimator)
        else:
            X = validate_data(estimator, X, reset=reset, **options)
        if X.dtype.kind == "O":  # as of a list of things that are no floats
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
    """What check_array checks, but for the values; in scikit-learn's words."""
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


def check_array_like(values: Any, name: str, expected: str) -> None:
    """Raise unless a value may be an array of numbers; ``expected`` says which.

    Looks at what it is, not at its values.

    Raises
    ------
    TypeError
        If it is no array, sparse, or of dates.
    ValueError
        If it is complex, or a masked array of which something is masked.
    """
    wanted = f"{name} must be {expected}, got"
    if isinstance(values, torch.Tensor):
        for unfit, found, remedy in (
            (values.is_quantized, "a quantized tensor", f"Use {name}.dequantize()."),
            (values.is_nested, "a nested tensor", "Give all samples one shape."),
            (values.is_meta, "a tensor without values, on 'meta'", "Load it first."),
        ):
            if unfit:
                raise TypeError(f"{wanted} {found}. {remedy}")
        if values.layout != torch.strided:
            raise TypeError(
                f"Sparse input is not supported: {wanted} a tensor of layout "
                f"{values.layout}. Use {name}.to_dense()."
            )
    if scipy.sparse.issparse(values):
        raise TypeError(
            f"Sparse input is not supported: {wanted} a {type(values).__name__}. Use "
            f"{name}.toarray()."
        )
    if values is None or isinstance(values, NO_ARRAYS) or _has_no_axis(values):
        raise TypeError(f"{wanted} {shown(values)}.")
    if n_masked := _n_masked(values):
        raise ValueError(
            f"{wanted} a masked array of which {n_masked} entries are masked. Fill "
            f"them with {name}.filled(value), or leave out such samples."
        )
    kind = _kind(values)
    if kind == "c":
        raise ValueError(
            f"Complex data not supported: {wanted} {shown(values)}. Pass real and "
            "imaginary parts as channels."
        )
    if kind in ("m", "M"):
        raise TypeError(f"{wanted} {shown(values)}. Turn dates into numbers first.")


def _has_no_axis(values: Any) -> bool:
    """Whether something is a single number, or an array of one without an axis."""
    return isinstance(values, Number) or getattr(values, "ndim", 1) == 0


def _n_masked(values: Any) -> int:
    """Masked entries of a masked array, or of those in a list."""
    if isinstance(values, np.ma.MaskedArray):
        return int(np.ma.count_masked(values))
    if isinstance(values, list | tuple):
        return sum(_n_masked(v) for v in values if isinstance(v, np.ma.MaskedArray))
    return 0


def _kind(values: Any) -> str | None:
    """Numpy's letter for what an array holds; ``None`` if it does not say."""
    if isinstance(values, torch.Tensor):
        return "c" if values.is_complex() else None
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    return kind if isinstance(kind, str) else None


def check_values(
    values: Any, name: str, shape: str = SAMPLES, *, n_axes: int = 2
) -> ArrayLike:
    """A numeric, dense, finite array or tensor that is not empty.

    ``shape`` says for messages what it is to be, ``n_axes`` how many axes that are at
    least.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    array = as_numeric(values, name, f"an array of shape {shape}")
    if array.ndim < n_axes or 0 in array.shape:
        raise ValueError(
            f"{name} must be an array of shape {shape}, got one of shape "
            f"{tuple(array.shape)}."
        )
    check_finite(array, name)
    return array


def check_mask(mask: Any, name: str, shape: str = "(*spatial)") -> torch.Tensor:
    """A mask as a floating tensor.

    Raises
    ------
    TypeError, ValueError
        If it is no array of numbers, or its values are not from 0 to 1.
    """
    array = check_values(mask, name, shape, n_axes=1)
    values = as_tensor(array)
    low, high = (float(edge) for edge in torch.aminmax(values))
    if low < 0 or high > 1:
        raise ValueError(
            f"A mask has values from 0 to 1, but {name} has values from {low:g} to "
            f"{high:g}. Divide it by its largest value, or scale a part with "
            "panda_sklearn.editing.scale_part."
        )
    if high == 0:
        raise ValueError(f"{name} is a mask of zeros: it marks no position.")
    return values


def as_numeric(
    values: Any, name: str, expected: str = "an array of numbers"
) -> ArrayLike:
    """An array or tensor of real numbers, of any shape; ``expected`` says which.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    check_array_like(values, name, expected)
    if isinstance(values, torch.Tensor):
        return values
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        # Rows of several lengths, or things that are no numbers.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must be {expected}, got {shown(values)}: {error}") from None
    check_array_like(array, name, expected)
    if not is_numeric(array):
        raise TypeError(f"{name} must be {expected}, got {shown(values)}.")
    return array


def is_numeric(array: ArrayLike) -> bool:
    """Whether an array holds real numbers or booleans, densely."""
    if isinstance(array, torch.Tensor):
        return not array.is_complex() and array.layout == torch.strided
    return array.dtype.kind in "fiub"


def check_device(device: str | torch.device) -> torch.device:
    """The device, with its index; ValueError if there is none such, or no values."""
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
    """How the maps lie in X, from its shape and the two parameters.

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
                "channels first before flattening."
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
    """The rank to use; ValueError if more is asked for than the data have."""
    if asked is None:
        return default
    if asked > limit:
        raise ValueError(
            f"{name}={asked} exceeds the number of {of}, {limit}. Use a number from 1 "
            f"to {limit}."
        )
    return int(asked)


def check_feature_names_in(estimator: Any, input_features: Any) -> None:
    """Raise ValueError unless ``input_features`` fits what was seen by fit."""
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
    """Whether ``set_output`` asks for something else than a plain array."""
    return _get_output_config("transform", estimator)["dense"] != "default"
