"""Checks of single values: numbers, flags, choices, objects.

Each error names the argument, what was expected and what came.
:mod:`panda_sklearn.utils.validation` re-exports them.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any

import numpy as np
import sklearn.utils
import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "check_choice",
    "check_count",
    "check_flag",
    "check_function",
    "check_index",
    "check_indices",
    "check_items",
    "check_kind",
    "check_number",
    "check_numbers",
    "check_random_state",
    "check_single",
    "check_value_range",
    "check_verbose",
    "is_bool",
    "shown",
]

# The largest number in the precision in which networks compute.
LARGEST = torch.finfo(torch.float32).max


def shown(value: Any) -> str:
    """Describe a value in a few words, for messages."""
    if isinstance(value, np.ndarray | Tensor):
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, str | bytes | Number | Collection) or is_bool(value):
        return f"{reprlib.repr(value)} of type {kind}"
    return f"a {kind}"


def is_bool(value: Any) -> bool:
    """Whether a value is True or False, which Python counts among the integers."""
    return isinstance(value, bool | np.bool_)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False; TypeError for anything else, also for 0 and 1."""
    if not is_bool(value):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def check_verbose(value: Any) -> int:
    """Return a level of verbosity: an int of 0 or more, or a flag."""
    return int(value) if is_bool(value) else check_count("verbose", value, at_least=0)


def check_index(name: str, index: Any, size: int) -> int:
    """Return an index from 0 to size - 1.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer, or out of range.
    """
    if is_bool(index) or not isinstance(index, Integral):
        raise TypeError(
            f"{name} must be an int from 0 to {size - 1}, got {shown(index)}."
        )
    if not 0 <= int(index) < size:
        raise ValueError(f"{name} must be from 0 to {size - 1}, got {index}.")
    return int(index)


def check_indices(name: str, indices: Any, size: int) -> list[int]:
    """Return one index or more from 0 to size - 1.

    Raises
    ------
    TypeError, ValueError
        If it is not an iterable of such ints.
    """
    items = check_items(name, indices, "a sequence of ints", Iterable)
    found = [check_index(f"each of {name}", index, size) for index in items]
    if not found:
        raise ValueError(f"{name} is empty: give one index at least.")
    return found


def check_items(
    name: str, values: Any, expected: str, kind: type = Sequence
) -> list[Any]:
    """Return the items of a sequence, or of an array with one axis, as a list.

    Raises
    ------
    TypeError
        If it is something else; ``expected`` says what it should be.
    """
    if isinstance(values, np.ndarray | Tensor):
        dense = not isinstance(values, Tensor) or values.layout == torch.strided
        if dense and values.ndim == 1 and not np.ma.is_masked(values):
            return values.tolist()
    elif isinstance(values, kind) and not isinstance(values, str | bytes | Mapping):
        return list(values)  # type: ignore[call-overload]
    raise TypeError(f"{name} must be {expected}, got {shown(values)}.")


def check_numbers(name: str, values: Any) -> list[float]:
    """Return one finite number or more that fit in single precision.

    Raises
    ------
    TypeError, ValueError
        If it is not a sequence of such numbers.
    """
    items = check_items(name, values, "a sequence of numbers")
    if not items:
        raise ValueError(f"{name} is empty: give one number at least.")
    return [check_single(f"each of {name}", value) for value in items]


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Return a finite number within bounds.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or not within the bounds.
    """
    if is_bool(value) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = math.inf
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


def check_single(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf
) -> float:
    """Return a finite number within bounds that fits in single precision.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    number = check_number(name, value, above=above, at_least=at_least)
    if abs(number) > LARGEST:
        raise ValueError(f"{name} must fit in float32, got {value!r}.")
    return number


def check_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return an int of ``at_least`` or more.

    Raises
    ------
    TypeError, ValueError
        If it is not an int, or less than that.
    """
    if is_bool(value) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {shown(value)}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        came = repr(value) if isinstance(value, str) else shown(value)
        two = len(choices) == 2
        listed = (" or " if two else ", ").join(map(repr, choices))
        of = "" if two else "one of "
        raise ValueError(f"{name} must be {of}{listed}, got {came}.")


def check_kind(name: str, value: Any, kind: type, *, hint: str = "") -> None:
    """Raise TypeError, with a hint at what to do, unless a value is of a type."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"{name} must be {article} {kind.__name__}, got {shown(value)}.{hint}"
        )


def check_function(name: str, value: Any, of: str) -> None:
    """Raise TypeError unless a value is None or a function of the arguments ``of``.

    A class is refused: an instance of it is meant.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} is the class {value.__name__}: pass an object of it, such as "
            f"{value.__name__}()."
        )
    if value is not None and not callable(value):
        raise TypeError(
            f"{name} must be a function of ({of}) or None, got {shown(value)}."
        )


def check_random_state(random_state: Any) -> np.random.RandomState:
    """Return the RandomState that the argument ``random_state`` stands for.

    Raises
    ------
    TypeError, ValueError
        If it is not a non-negative int of 32 bits, a RandomState or None.
    """
    if isinstance(random_state, Integral) and not is_bool(random_state):
        if not 0 <= int(random_state) < 2**32:
            raise ValueError(
                f"random_state must be from 0 to 2**32 - 1, got {random_state}."
            )
    elif random_state is not None and not isinstance(
        random_state, np.random.RandomState
    ):
        raise TypeError(
            "random_state must be an int, a numpy.random.RandomState or None, got "
            f"{shown(random_state)}."
        )
    return sklearn.utils.check_random_state(random_state)


def check_value_range(value_range: Any) -> tuple[float, float]:
    """Return the values of black and white, the second above the first."""
    expected = "two numbers (black, white), the second above the first"
    items = check_items("value_range", value_range, expected)
    found = [check_single("each of value_range", edge) for edge in items]
    if len(found) != 2 or found[0] >= found[1]:
        raise ValueError(f"value_range must be {expected}, got {shown(value_range)}.")
    return found[0], found[1]
