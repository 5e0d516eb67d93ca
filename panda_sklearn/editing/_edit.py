"""What to change in an image, as the user says it.

Floor 3: see :mod:`panda_sklearn.editing`. Checks what can be known without an editor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.parts import as_part, check_given
from panda_sklearn.utils.validation import (
    as_numeric,
    check_array_like,
    check_choice,
    check_finite,
    check_fits,
    check_kind,
    check_single,
    is_bool,
    is_numeric,
    shown,
)

__all__ = ["Edit"]

# What the fields may be, for messages.
APPEARANCE = "an int or a vector of shape (n_channels,)"
STRENGTH = "a number or an array of shape (n_samples,)"

UNITS = ("std", "alpha")


@dataclass(frozen=True, eq=False)
class Edit:
    r"""An appearance, or a variation of a part, added at a part.

    Activations :math:`Z_i` become :math:`Z_i + \alpha a_j \hat p_k^\top` (section
    3.3), where :math:`\hat p_k` is the part scaled to reach from 0 to 1. In place of
    the appearance :math:`a_j` the edit can add a vector along which what the part shows
    varies in the training data: it then stays among what occurs there.

    Parameters
    ----------
    appearance : int or array of shape (n_channels,), default=None
        Index j of the appearance, or any vector of the layer's channels in its place;
        one that is no combination of the appearances needs ``unit="alpha"``. Exactly
        one of this and ``variation`` must be given.

    part : int, sequence of int, or array, default=None
        Where to add it; it must be given.

        - Index k of the part.
        - Several indices: the parts are added up, and the sum is scaled to reach from
          0 to 1, as for a pair of ears.
        - A mask, drawn or computed, with values from 0 to 1 that are used as they
          are: of the layer's spatial shape, or of the images', which is brought to the
          layer's by means over areas. With a first axis of n_samples more it is a
          mask for each image. To :class:`Edit` an array of integers with one axis is
          indices, any other array a mask. A learnt part as it is, whose largest value
          is not 1, is refused by the editor: its index means it scaled.

    strength : float or array of shape (n_samples,), default=1.0
        The factor alpha, in the given unit; negative values take the appearance away.
        An array is a strength for each image.

    unit : {"std", "alpha"}, default="std"
        - "std": in standard deviations over the training samples, so that a strength
          carries over between layers and models. Of an appearance those of its
          saliency :math:`a_j^\top Z` over samples and positions (``saliency_std_`` of
          the decomposition); of a variation its own: the coefficients at the part move
          along it by so many.
        - "alpha": the strength is alpha itself, a multiple of the vector.

    variation : int, default=None
        Index, from 0, of a variation of the part, one of the vectors that
        ``variations`` of the decomposition gives.

    given : "others", default=None
        With ``variation``, which ones; as for ``variations``.

    name : str, default=None
        What to call it, for those who keep it; it changes nothing.

    Raises
    ------
    TypeError, ValueError
        If one of them is something else, not finite or too large for float32, a mask
        has values outside of 0 to 1, or not exactly one of ``appearance`` and
        ``variation`` is given. Ranges of indices and shapes of masks are
        checked by the editor.

    See Also
    --------
    LocalEditor.rank_edits : Which pairs of appearances and parts are worth trying.
    panda_sklearn.editing.split_part : One eye of two.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn import Edit
    >>> smile = Edit(variation=0, part=5, strength=2.0)
    >>> ears = Edit(appearance=3, part=[1, 4], strength=30.0, unit="alpha")
    >>> corner = np.zeros((64, 64), dtype=bool)
    >>> corner[:16, :16] = True
    >>> drawn = Edit(appearance=0, part=corner, strength=-5.0)
    """

    appearance: int | ArrayLike | None = None
    part: int | Sequence[int] | ArrayLike | None = None
    strength: float | ArrayLike = 1.0
    unit: str = "std"
    variation: int | None = field(default=None, kw_only=True)
    given: str | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self):
        check_choice("unit", self.unit, UNITS)
        _check_strength(self.strength)
        if (self.appearance is None) == (self.variation is None):
            raise ValueError(
                "Give exactly one of appearance and variation, got "
                f"appearance={shown(self.appearance)} and variation={self.variation!r}."
            )
        if self.given is not None and self.variation is None:
            raise ValueError(
                f"given={self.given!r} goes with a variation, but appearance is given."
            )
        check_given(self.given)
        if self.name is not None:
            check_kind("name", self.name, str)
        if self.variation is None:
            object.__setattr__(self, "appearance", _as_appearance(self.appearance))
        else:
            object.__setattr__(self, "variation", _as_variation(self.variation))
        object.__setattr__(self, "part", as_part(self.part))

    def __eq__(self, other):
        if not isinstance(other, Edit):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self) -> tuple:
        """The fields by value."""
        fields = self.appearance, self.part, self.strength
        which = self.variation, self.given, self.name
        return (*map(_plain, fields), self.unit, *which)


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


def _as_variation(variation: Any) -> int:
    """An index as an int; its range is the editor's to check."""
    if isinstance(variation, Integral) and not is_bool(variation):
        return int(variation)
    raise TypeError(f"variation must be an int, got {shown(variation)}.")


def _as_appearance(appearance: Any) -> int | ArrayLike:
    """An index as it is, a vector as an array."""
    if isinstance(appearance, Integral) and not is_bool(appearance):
        return int(appearance)  # its range is the editor's to check
    vector = as_numeric(appearance, "appearance", APPEARANCE)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"appearance must be {APPEARANCE}, got {shown(vector)}.")
    check_finite(vector, "appearance")
    return vector


def _is_boolean(array: ArrayLike) -> bool:
    return array.dtype in (torch.bool, np.dtype(bool))
