"""What to change in an image, as the user says it.

Floor 3: see :mod:`panda_sklearn.editing`. Checks what can be known without an editor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.validation import (
    as_numeric,
    check_array_like,
    check_choice,
    check_finite,
    check_fits,
    check_mask,
    check_single,
    is_bool,
    is_numeric,
    shown,
)

__all__ = ["Edit"]

# What the fields may be, for messages.
APPEARANCE = "an int or a vector of shape (n_channels,)"
PART = "an int, a sequence of ints, or a mask of shape ([n_samples,] *spatial)"
STRENGTH = "a number or an array of shape (n_samples,)"

UNITS = ("alpha", "std")

# Axes of a mask: samples, and three of space.
MOST_AXES = 4


@dataclass(frozen=True, eq=False)
class Edit:
    r"""An appearance added at a part.

    Activations :math:`Z_i` become :math:`Z_i + \alpha a_j \hat p_k^\top` (section
    3.3), where :math:`\hat p_k` is the part scaled to reach from 0 to 1.

    Parameters
    ----------
    appearance : int or array of shape (n_channels,)
        Index j of the appearance, or any vector of the layer's channels in its place.

    part : int, sequence of int, or array
        Where to add it.

        - Index k of the part.
        - Several indices: the parts are added up, and the sum is scaled to reach from
          0 to 1, as for a pair of ears.
        - A mask, drawn or computed, with values from 0 to 1 that are used as they
          are: of the layer's spatial shape, or of the images', which is brought to the
          layer's by means over areas. With a first axis of n_samples more it is a
          mask for each image. To :class:`Edit` an array of integers with one axis is
          indices, any other array a mask.

    strength : float or array of shape (n_samples,), default=1.0
        The factor alpha, in the given unit; negative values take the appearance away.
        An array is a strength for each image.

    unit : {"alpha", "std"}, default="alpha"
        - "alpha": the strength is alpha itself, a multiple of the appearance vector.
        - "std": in standard deviations of the appearance's saliency :math:`a_j^\top Z`
          over training samples and positions (``saliency_std_`` of the decomposition),
          so that a strength carries over between layers and models.

    Raises
    ------
    TypeError, ValueError
        If one of them is something else, not finite or too large for float32, or a
        mask has values outside of 0 to 1. Ranges of indices and shapes of masks are
        checked by the editor.

    See Also
    --------
    LocalEditor.rank_edits : Which pairs of appearances and parts are worth trying.
    panda_sklearn.editing.split_part : One eye of two.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn import Edit
    >>> smile = Edit(appearance=3, part=5, strength=2.0, unit="std")
    >>> ears = Edit(appearance=3, part=[1, 4], strength=30.0)
    >>> corner = np.zeros((64, 64), dtype=bool)
    >>> corner[:16, :16] = True
    >>> drawn = Edit(appearance=0, part=corner, strength=-5.0)
    """

    appearance: int | ArrayLike
    part: int | Sequence[int] | ArrayLike
    strength: float | ArrayLike = 1.0
    unit: str = "alpha"

    def __post_init__(self):
        check_choice("unit", self.unit, UNITS)
        _check_strength(self.strength)
        object.__setattr__(self, "appearance", _as_appearance(self.appearance))
        object.__setattr__(self, "part", _as_part(self.part))

    def __eq__(self, other):
        if not isinstance(other, Edit):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self) -> tuple:
        """The fields by value."""
        fields = self.appearance, self.part, self.strength
        return (*map(_plain, fields), self.unit)


def _plain(value: Any) -> Any:
    """An array as shape and values; anything else as it is."""
    if isinstance(value, np.ndarray | Tensor):
        return tuple(value.shape), tuple(value.ravel().tolist())
    return value


def _check_strength(strength: Any) -> None:
    """Raise unless it is a number, or one for each sample."""
    if not isinstance(strength, np.ndarray | Tensor) or strength.ndim == 0:
        if is_bool(strength) or not isinstance(strength, Real):
            raise TypeError(f"strength must be {STRENGTH}, got {shown(strength)}.")
        check_single("strength", strength)
        return
    check_array_like(strength, "strength", STRENGTH)
    if strength.ndim != 1 or not is_numeric(strength) or _is_boolean(strength):
        raise ValueError(f"strength must be {STRENGTH}, got {shown(strength)}.")
    check_finite(strength, "strength")
    check_fits(strength, "strength", torch.float32)


def _as_appearance(appearance: Any) -> int | ArrayLike:
    """An index as it is, a vector as an array."""
    if isinstance(appearance, Integral) and not is_bool(appearance):
        return int(appearance)  # its range is the editor's to check
    vector = as_numeric(appearance, "appearance", APPEARANCE)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"appearance must be {APPEARANCE}, got {shown(vector)}.")
    check_finite(vector, "appearance")
    return vector


def _as_part(part: Any) -> Any:
    """An index as it is, several as a tuple of int, a mask as an array."""
    if isinstance(part, Integral) and not is_bool(part):
        return int(part)
    array = as_numeric(part, "part", PART)
    if array.ndim == 1 and len(array) == 0:
        raise ValueError("part must name one part at least, got an empty sequence.")
    if array.ndim == 1 and _is_integer(array):
        indices = tuple(int(k) for k in array)
        if len(set(indices)) < len(indices):
            raise ValueError(f"part must name each part once, got {list(indices)}.")
        return indices
    if array.ndim > MOST_AXES:
        raise ValueError(f"part must be {PART}, got {shown(array)}.")
    check_mask(array, "part")
    return array


def _is_integer(array: ArrayLike) -> bool:
    if isinstance(array, Tensor):
        return not array.is_floating_point() and array.dtype != torch.bool
    return array.dtype.kind in "iu"


def _is_boolean(array: ArrayLike) -> bool:
    return array.dtype in (torch.bool, np.dtype(bool))
