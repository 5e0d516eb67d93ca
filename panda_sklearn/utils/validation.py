"""Checks of users' input, and the only imports of scikit-learn's helpers.

Floor 2. Everything is checked here, once, before any work; the floors below trust
their inputs. ``Interval``, ``StrOptions`` and ``_fit_context`` are not part of
scikit-learn's public interface: only this module knows where they live.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from panda_sklearn.utils.arrays import ArrayLike, MapLayout, as_tensor

__all__ = [
    "Interval",
    "Options",
    "StrOptions",
    "as_numeric",
    "check_choice",
    "check_count",
    "check_device",
    "check_factor_scale",
    "check_feature_names_in",
    "check_finite",
    "check_index",
    "check_is_fitted",
    "check_mask",
    "check_number",
    "check_numbers",
    "check_random_state",
    "check_rank",
    "check_same_layout",
    "check_scale",
    "check_values",
    "find_layout",
    "fit_method",
    "is_numeric",
    "wants_container",
]


def fit_method(fit: Callable) -> Callable:
    """Decorate ``fit``: check the parameters first, and lose nothing if it fails.

    After an exception of any kind the estimator has the attributes that it had before.
    """

    @functools.wraps(fit)
    def keep_state(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return _fit_context(prefer_skip_nested_validation=True)(keep_state)


def check_numbers(
    estimator: Any, X: Any, *, reset: bool, keep_dtype: bool = False
) -> ArrayLike:
    """A numeric, dense, finite array or tensor of two axes or more.

    Sets or compares ``n_features_in_`` (and names of columns) for arrays of two axes.
    Numpy input becomes float32 or float64, unless ``keep_dtype``.

    Raises
    ------
    TypeError
        If X is sparse or holds something other than numbers.
    ValueError
        If X is complex, holds NaN or infinity, has less than two axes or no samples.
    """
    if isinstance(X, torch.Tensor):
        _check_tensor(X)
        if X.ndim == 2:
            validate_data(estimator, X, reset=reset, skip_check_array=True)
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
        if not keep_dtype:
            double = X.dtype.kind == "f" and X.dtype.itemsize >= 8
            X = X.astype(np.float64 if double else np.float32, copy=False)
    if 0 in X.shape:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={tuple(X.shape)}) while a minimum "
            "of 1 is required."
        )
    check_finite(X, "X")
    return X


def _check_tensor(X: torch.Tensor) -> None:
    """What check_array checks, for a tensor; in scikit-learn's words."""
    if X.layout != torch.strided:
        raise TypeError(
            f"Sparse input is not supported, got a tensor of layout {X.layout}. Use "
            "X.to_dense()."
        )
    for is_so, kind, remedy in (
        (X.is_quantized, "quantized", "Use X.dequantize()."),
        (X.is_nested, "nested", "Pass samples of one shape, as one dense tensor."),
        (X.device.type == "meta", "without values (on 'meta')", "Load them first."),
    ):
        if is_so:
            raise TypeError(f"Expected a dense tensor, got one {kind}. {remedy}")
    if X.is_complex():
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


def check_finite(X: ArrayLike, name: str) -> None:
    """Raise ValueError that names the first entry which is NaN or infinite."""
    if isinstance(X, torch.Tensor):
        if not X.is_floating_point():
            return
    elif X.dtype.kind != "f":
        return
    for start, batch in _batches(X):  # noqa: B007, used after the loop
        T = as_tensor(batch, keep_type=True)
        # Both are NaN if any value is; made in one pass, which isfinite is not.
        if T.numel() and not all(map(math.isfinite, map(float, torch.aminmax(T)))):
            break
    else:
        return
    first = (~T.isfinite()).nonzero()[0].tolist()
    where = (start + first[0], *first[1:])
    kind = "NaN" if math.isnan(float(X[where])) else "infinity"
    raise ValueError(
        f"Input {name} contains {kind}, first at {name}[{', '.join(map(str, where))}]. "
        "Remove or replace such samples."
    )


def _batches(X: ArrayLike) -> Any:
    """Views of about 8 M numbers along the first axis, with where each begins."""
    size = max(1, 2**23 // max(1, math.prod(X.shape[1:])))
    for start in range(0, len(X), size):
        yield start, X[start : start + size]


def check_values(X: Any, name: str) -> ArrayLike:
    """A numeric, dense, finite array or tensor, of values made by an estimator."""
    if isinstance(X, torch.Tensor):
        _check_tensor(X)
    else:
        X = check_array(
            X,
            dtype="numeric",
            order="C",
            allow_nd=True,
            ensure_all_finite=False,
            input_name=name,
        )
    check_finite(X, name)
    return X


def check_mask(mask: Any, name: str) -> torch.Tensor:
    """A mask as a floating tensor.

    Raises
    ------
    ValueError
        If its values are not from 0 to 1.
    """
    array = as_numeric(mask, name)
    check_finite(array, name)
    values = as_tensor(array)
    if values.numel() == 0:
        raise ValueError(f"{name} is an empty mask, of shape {tuple(values.shape)}.")
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


def as_numeric(values: Any, name: str) -> ArrayLike:
    """A numeric array or tensor; TypeError or ValueError for anything else."""
    array = values
    if not isinstance(values, np.ndarray | torch.Tensor):
        try:
            array = np.asarray(values)
        except ValueError as error:  # rows of several lengths
            raise ValueError(f"{name} is no array: {error}.") from None
    if not is_numeric(array):
        raise TypeError(
            f"{name} must be an int or an array of numbers, got {type(values).__name__}"
            f" of type {array.dtype}."
        )
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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}). "
            "Use 'cpu', None, or a device that torch has on this machine."
        ) from error


def check_scale(Z: torch.Tensor, *, squared: bool = True) -> None:
    """Raise ValueError if sums of the values, or of powers, leave their dtype's range.

    ``squared`` says that powers are taken.
    """
    most = torch.finfo(Z.dtype).max ** (0.4 if squared else 0.9)
    _check_range(Z, "X", Z.dtype, 1 / most if squared else 0.0, most)


def check_factor_scale(factor: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise ValueError for a factor too large or small for data of a type.

    The objective holds the fourth power of each.
    """
    limit = torch.finfo(dtype).max ** 0.125
    _check_range(factor, name, dtype, 1 / limit, limit)


def _check_range(
    T: torch.Tensor, name: str, dtype: torch.dtype, least: float, most: float
) -> None:
    largest = max(abs(float(edge)) for edge in torch.aminmax(T))
    if largest > most or 0 < largest < least:
        raise ValueError(
            f"The largest magnitude in {name} is {largest:.3g}, too large or small to "
            f"compute with in {dtype}: it must be between {least:.0e} and {most:.0e}. "
            f"Divide {name} by its largest magnitude."
        )


def find_layout(
    X: ArrayLike, *, map_shape: tuple[int, ...] | None, channel_axis: int
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


def check_same_layout(estimator: Any, X: ArrayLike, layout: MapLayout) -> None:
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


def check_index(name: str, index: Any, size: int) -> int:
    """An index from 0 to size - 1.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or out of range.
    """
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise TypeError(
            f"{name} must be an int from 0 to {size - 1}, got {index!r} of type "
            f"{type(index).__name__}."
        )
    if not 0 <= int(index) < size:
        raise ValueError(f"{name} must be from 0 to {size - 1}, got {index}.")
    return int(index)


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """A finite number within bounds.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or not within them.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number, got {value!r} of type {type(value).__name__}."
        )
    number = float(value)
    if not (math.isfinite(number) and above < number and at_least <= number <= at_most):
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (
                ("above", above),
                ("at least", at_least),
                ("at most", at_most),
            )
            if math.isfinite(bound)
        ]
        raise ValueError(
            f"{name} must be a finite number{', ' * bool(bounds)}"
            f"{' and '.join(bounds)}, got {value!r}."
        )
    return number


def check_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """An int that is large enough.

    Raises
    ------
    TypeError, ValueError
        If it is no int, or less than that.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}."
        )
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
        )


def check_feature_names_in(estimator: Any, input_features: Any) -> None:
    """Raise ValueError unless ``input_features`` fits what was seen by fit."""
    if input_features is None:
        return
    seen = getattr(estimator, "feature_names_in_", None)
    if seen is not None and not np.array_equal(seen, input_features):
        raise ValueError("input_features is not equal to feature_names_in_")
    if len(input_features) != estimator.n_features_in_:
        raise ValueError(
            "input_features should have length equal to number of features "
            f"({estimator.n_features_in_}), got {len(input_features)}"
        )


def wants_container(estimator: Any) -> bool:
    """Whether ``set_output`` asks for something else than a plain array."""
    return _get_output_config("transform", estimator)["dense"] != "default"
