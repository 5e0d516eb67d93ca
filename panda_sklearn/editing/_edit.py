"""What to change in an image.

Checks what can be checked without an editor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.editing._terms import BRANCHES
from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.parts import as_part, check_given
from panda_sklearn.utils.validation import (
    as_numeric,
    check_array_like,
    check_choice,
    check_count,
    check_finite,
    check_fits,
    check_items,
    check_kind,
    check_single,
    is_bool,
    is_numeric,
    shown,
)

__all__ = ["UNITS", "Edit", "check_strength"]

# What the fields must be, for messages.
APPEARANCE = "an int or a vector of shape (n_channels,)"
STRENGTH = "a number or an array of shape (n_samples,)"
CALLS = "an int, a sequence of ints, or a dict of ints and numbers"
# Fields that are arrays: what each must be, and how many axes it has at least.
ARRAYS = {
    "latent": ("an array of the shape of one sample's latents, or of n_samples", 1),
    "coefficients": ("an array of shape ([n_samples,] n_appearances, n_parts)", 2),
    "features": ("activations of one sample, or of n_samples", 1),
}

# The kinds of edit: exactly one of these fields is given.
KINDS = ("appearance", "variation", *ARRAYS)

UNITS = ("std", "alpha")


@dataclass(frozen=True, eq=False)
class Edit:
    r"""What to change at a part of an image.

    Exactly one of ``appearance``, ``variation``, ``latent``, ``coefficients`` and
    ``features`` must be given. The first two add a vector of channels: activations
    :math:`Z_i` become :math:`Z_i + \alpha a_j \hat p_k^\top` (section 3.3), where
    :math:`\hat p_k` is the part scaled to the range 0 to 1. The others move the
    activations at the part towards those of other images.

    Parameters
    ----------
    appearance : int or array of shape (n_channels,), default=None
        Index j of the appearance, or any vector of the layer's channels. A vector that
        is not a combination of the appearances needs ``unit="alpha"``.

    part : int, sequence of int, or array, default=None
        Where to edit. It must be given.

        - An int: index k of the part.
        - Several ints: the parts are added up, and the sum is scaled to the range
          0 to 1, as for a pair of ears.
        - A mask, drawn or computed, with values from 0 to 1 that are used as they are.
          It has the layer's spatial shape, or the images', which is reduced to the
          layer's by means over areas. A first axis of n_samples gives each image a
          mask of its own. An array of integers with one axis is taken for indices, any
          other array for a mask. The editor refuses a learnt part as a mask if its
          largest value is not 1: its index means the scaled part.

    strength : float or array of shape (n_samples,), default=1.0
        How much to change, in the given unit; negative values do the opposite. An array
        gives each image a strength of its own.

    unit : {"std", "alpha"}, default=None
        ``None`` is "std" for an appearance or a variation, and "alpha", the only one,
        for the others.

        - "std": standard deviations over the training samples, so that a strength
          carries over between layers and models. For an appearance, of its saliency
          :math:`a_j^\top Z` over samples and positions (``saliency_std_`` of the
          decomposition). For a variation, of the coefficients at the part along it.
        - "alpha": the strength is alpha itself, a multiple of the vector. Each of the
          other fields says what alpha means there.

    variation : int, default=None
        Index, from 0, of a variation of the part, one of the vectors returned by
        ``variations`` of the decomposition. What the part shows varies along it in the
        training data, so that edited images remain likely ones.

    latent : array of shape ([n_samples,] \*latent_shape), default=None
        A direction d of the latents. The network also runs at latents moved by strength
        times d, and its activations there replace those at the part:
        :math:`Z_i + \hat p_k * (Z(z_i + \alpha d) - Z_i)`. A global direction, of any
        method, becomes a local edit.

    coefficients : array of shape ([n_samples,] n_appearances, n_parts), default=None
        Coefficients L', as returned by ``coefficients`` of the decomposition, such as
        those of another sample. The sample's own coefficients of the parts in ``part``
        move towards them by the fraction ``strength``; with 1 they become equal. With a
        mask, the reconstruction moves there:
        :math:`Z_i + \alpha m * (A (L' - L_i) P^\top)`.

    features : array of shape ([n_samples,] n_channels, \*spatial), default=None
        Activations Z', laid out as the extractor's. Those at the part move towards
        them by the fraction ``strength``: :math:`Z_i + \alpha \hat p_k * (Z' - Z_i)`.

    given : "others", default=None
        With ``variation``, which variations are meant; see ``variations`` of the
        decomposition.

    calls : int, sequence of int, or dict of int to float, default=None
        At which of its calls, from 0, to edit a layer that runs several times in a
        forward pass, as in the steps of a diffusion model. A dict gives the factor of
        the strength at each call. ``None`` means the calls that the extractor takes.

    branches : {"own", "both", "opposite"}, default="own"
        Which parts of a batch multiplied by guidance to edit: the samples' own alone
        (``guidance`` of the extractor), all alike, or the others with the opposite
        sign, which guidance makes stronger.

    name : str, default=None
        A name for the edit; it changes nothing.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, not finite or too large for float32, a mask
        has values outside the range 0 to 1, or not exactly one kind of edit is given.
        The editor checks ranges of indices and shapes of arrays.

    See Also
    --------
    LocalEditor.rank_edits : Which edits are worth trying.
    LocalEditor.transfer : Gives images the part of other images.
    panda_sklearn.editing.split_part : Splits a part, such as two eyes.

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn import Edit
    >>> smile = Edit(variation=0, part=5, strength=2.0)
    >>> ears = Edit(appearance=3, part=[1, 4], strength=30.0, unit="alpha")
    >>> corner = np.zeros((64, 64), dtype=bool)
    >>> corner[:16, :16] = True
    >>> drawn = Edit(appearance=0, part=corner, strength=-5.0)
    >>> older = Edit(latent=np.ones(64) / 8, part=2, strength=3.0)
    """

    appearance: int | ArrayLike | None = None
    part: int | Sequence[int] | ArrayLike | None = None
    strength: float | ArrayLike = 1.0
    unit: str | None = None
    variation: int | None = field(default=None, kw_only=True)
    latent: ArrayLike | None = field(default=None, kw_only=True)
    coefficients: ArrayLike | None = field(default=None, kw_only=True)
    features: ArrayLike | None = field(default=None, kw_only=True)
    given: str | None = field(default=None, kw_only=True)
    calls: int | Sequence[int] | dict[int, float] | None = field(
        default=None, kw_only=True
    )
    branches: str = field(default="own", kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_strength(self.strength)
        chosen = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(chosen) != 1:
            got = ", ".join(f"{kind}={shown(getattr(self, kind))}" for kind in chosen)
            raise ValueError(
                f"Give exactly one of {', '.join(KINDS[:-1])} and {KINDS[-1]}, got "
                f"{got or 'none of them'}."
            )
        kind = self.kind
        self._set("unit", _as_unit(self.unit, kind))
        if self.given is not None and kind != "variation":
            raise ValueError(
                f"given={shown(self.given)} goes with a variation, but the edit has "
                f"{kind}. Leave given at None."
            )
        check_given(self.given)
        if self.calls is not None:
            self._set("calls", _as_calls(self.calls))
        check_choice("branches", self.branches, tuple(BRANCHES))
        if self.name is not None:
            check_kind("name", self.name, str)
        if kind == "appearance":
            self._set(kind, _as_appearance(self.appearance))
        elif kind == "variation":
            self._set(kind, _as_variation(self.variation))
        else:
            self._set(kind, _as_array(getattr(self, kind), kind))
        self._set("part", as_part(self.part))

    @property
    def kind(self) -> str:
        """Which kind of edit it is, by the name of its field."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def _set(self, name: str, value: Any) -> None:
        """Set a field of the frozen instance."""
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """The fields that are not at their defaults; arrays by their shapes."""
        texts = []
        for each in fields(self):
            value = getattr(self, each.name)
            default = _as_unit(None, self.kind) if each.name == "unit" else each.default
            if isinstance(value, np.ndarray | Tensor):
                texts.append(f"{each.name}=<array of shape {tuple(value.shape)}>")
            elif value != default or each.name == "strength":
                texts.append(f"{each.name}={value!r}")
        return f"Edit({', '.join(texts)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        """The fields by value."""
        return tuple(_plain(getattr(self, each.name)) for each in fields(self))


def _plain(value: Any) -> Any:
    """An array as its shape and values, a dict as pairs; anything else as it is."""
    if isinstance(value, np.ndarray | Tensor):
        return tuple(value.shape), tuple(value.ravel().tolist())
    return tuple(value.items()) if isinstance(value, dict) else value


def _as_calls(calls: Any) -> dict[int, float]:
    """Calls, in rising order, and the factor of the strength at each."""
    if isinstance(calls, dict):
        given = calls
    else:
        one = isinstance(calls, Integral) and not is_bool(calls)
        several = [calls] if one else check_items("calls", calls, CALLS)
        for call in several:
            check_count("each of calls", call, at_least=0)
        given = dict.fromkeys(several, 1.0)
        if len(given) < len(several):
            raise ValueError(f"calls must name each call once, got {shown(calls)}.")
    if not given:
        raise ValueError(f"calls must be {CALLS}, got none.")
    for call, factor in given.items():
        check_count("each of calls", call, at_least=0)
        check_single("each of calls' factors", factor)
    return {int(call): float(given[call]) for call in sorted(given)}


def check_strength(strength: Any, name: str = "strength") -> None:
    """Raise unless a strength is a number, or an array of one for each sample."""
    if not isinstance(strength, np.ndarray | Tensor) or strength.ndim == 0:
        if is_bool(strength) or not isinstance(strength, Real):
            raise TypeError(f"{name} must be {STRENGTH}, got {shown(strength)}.")
        check_single(name, strength)
        return
    check_array_like(strength, name, STRENGTH)
    if strength.ndim != 1 or not is_numeric(strength) or _is_boolean(strength):
        raise ValueError(f"{name} must be {STRENGTH}, got {shown(strength)}.")
    check_finite(strength, name)
    check_fits(strength, name, torch.float32)


def _as_unit(unit: Any, kind: str) -> str:
    """The unit of a strength; ``None`` becomes the default of the kind of edit."""
    known = UNITS if kind in ("appearance", "variation") else ("alpha",)
    if unit is None:
        return known[0]
    check_choice("unit", unit, UNITS)
    if unit not in known:
        raise ValueError(
            f"unit={unit!r} is for appearances and variations, but the edit has "
            f"{kind}: leave unit at None."
        )
    return unit


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


def _as_array(values: Any, kind: str) -> ArrayLike:
    """The array of a kind of edit, checked for finite numbers and enough axes."""
    expected, n_axes = ARRAYS[kind]
    array = as_numeric(values, kind, expected)
    if array.ndim < n_axes or 0 in array.shape or _is_boolean(array):
        raise ValueError(f"{kind} must be {expected}, got {shown(array)}.")
    check_finite(array, kind)
    check_fits(array, kind, torch.float32)
    return array


def _is_boolean(array: ArrayLike) -> bool:
    return array.dtype in (torch.bool, np.dtype(bool))
