"""Edits as changes of activations (sections 3.3 and 3.5 of the paper).

Floor 3: see :mod:`panda_sklearn.editing`.

Notation: n samples of a batch, C channels, S positions; alpha strengths, a (C,)
appearances, p_hat (S,) parts scaled to reach from 0 to 1, or masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from panda_sklearn._variations import part_weights, variations_of
from panda_sklearn.decomposition import (
    PartsAppearanceDecomposition,
    factors_of,
    layout_of,
)
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._parts import scaled
from panda_sklearn.solvers import refine_parts
from panda_sklearn.utils.arithmetic import in_full_precision, own_arithmetic
from panda_sklearn.utils.arrays import ArrayLike, MapLayout, as_tensor, promoted
from panda_sklearn.utils.parts import indices_of, is_mask
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import (
    LARGEST,
    check_flag,
    check_index,
    check_kind,
    check_mask,
    shown,
)

__all__ = [
    "Change",
    "Term",
    "change_of",
    "check_edits",
    "term_of",
    "total_change",
]

# Projected gradient steps of a refinement: those of section 4.3.2.
REFINEMENT_STEPS = 100


@dataclass(frozen=True)
class Term:
    """One edit, looked up in the decomposition: alpha a p_hat'.

    Attributes
    ----------
    vector : Tensor of shape (C,)
    strength : Tensor of shape () or (N,)
        In the edit's unit.
    scale : float
        Alpha of a strength of 1.
    mask : Tensor of shape (S,) or (N, S)
    parts : tuple of int
        The parts that ``mask`` is made of, to be refined; empty for a drawn mask.
    drawn : Tensor of shape ([N,] *image_spatial) or None
        A drawn mask of the images' size, as it was given.
    """

    vector: Tensor
    strength: Tensor
    scale: float
    mask: Tensor
    parts: tuple[int, ...] = ()
    drawn: Tensor | None = None

    def has_effect(self) -> bool:
        """Whether a strength is not 0."""
        return bool(self.strength.any())


def check_edits(edits: Any) -> list[Edit]:
    """One edit, or several, as a list.

    Raises
    ------
    TypeError
        If there is something else.
    ValueError
        If there are none.
    """
    if isinstance(edits, Edit):
        return [edits]
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise TypeError(
            f"edits must be an Edit or a sequence of them, got {shown(edits)}."
        )
    for edit in edits:
        check_kind("each of edits", edit, Edit)
    if not edits:
        raise ValueError("edits is empty: give one Edit at least.")
    return list(edits)


def term_of(
    edit: Edit,
    decomposition: PartsAppearanceDecomposition,
    image_spatial: tuple[int, ...],
    n_samples: int | None,
    known: dict,
) -> Term:
    """An edit looked up in a decomposition; ``known`` holds variations found so far."""
    mask, parts, drawn = _where(edit.part, decomposition, image_spatial, n_samples)
    if edit.variation is None:
        vector, scale = _appearance(edit, decomposition)
    else:
        vector, scale = _variation(edit, decomposition, mask, known)
    if not isinstance(edit.strength, Real):
        strength = as_tensor(cast(ArrayLike, edit.strength))
        if len(strength) != n_samples:
            raise ValueError(_not_for_samples("strength", strength, n_samples))
    else:
        strength = as_tensor(np.array(float(edit.strength)))
    _check_size(strength, scale, vector)
    return Term(vector, strength, scale, mask, parts=parts, drawn=drawn)


def _where(
    part: Any,
    decomposition: PartsAppearanceDecomposition,
    image_spatial: tuple[int, ...],
    n_samples: int | None,
) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    """What :class:`Term` calls mask, parts and drawn."""
    parts = as_tensor(decomposition.parts_).flatten(1)  # (R_S, S)
    if is_mask(part):
        spatial = decomposition.map_shape_[1:]
        mask, drawn = _mask(part, spatial, image_spatial, n_samples)
        if drawn is None:
            _check_no_part(mask, parts)
        return mask, (), drawn
    chosen = tuple(indices_of(part, len(parts)))
    many = len(chosen) > 1
    name = f"The sum of parts {list(chosen)}" if many else f"Part {chosen[0]}"
    return scaled(parts[list(chosen)].sum(dim=0), name), chosen, None


def _check_no_part(mask: Tensor, parts: Tensor) -> None:
    """Raise ValueError if a mask is a part as it was learnt, which is not scaled."""
    if mask.ndim > 1 or float(mask.max()) == 1:
        return
    same = (parts == mask.to(parts)).all(dim=1).nonzero()
    if len(same):
        k = int(same[0])
        raise ValueError(
            f"part is parts_[{k}] as a mask, whose values, up to "
            f"{float(mask.max()):g}, would be used as they are. Give its index, {k}, "
            "or scale it with panda_sklearn.editing.scale_part."
        )


def _check_size(strength: Tensor, scale: float, vector: Tensor) -> None:
    """Raise ValueError if what is to be added does not fit in single precision."""
    alpha, entry = (float(x.abs().max()) for x in (strength, vector))
    if alpha * scale * entry > LARGEST:
        raise ValueError(
            f"strength={alpha:g} is too large: times a vector with entries up to "
            f"{entry:.3g}{'' if scale == 1 else f' and a unit of {scale:.3g}'} it does "
            "not fit in float32, and the images would be NaN."
        )


def _variation(
    edit: Edit, decomposition: PartsAppearanceDecomposition, mask: Tensor, known: dict
) -> tuple[Tensor, float]:
    """The variation's vector v, and alpha of a strength of 1.

    Added with a mask m, v alpha changes the coefficients of part k along v, v'A l_k, by
    alpha ||A'v||^2 m'p_k: by a standard deviation, if alpha is that over the mean of
    these, weighted as the parts are. ``known`` holds the variations found so far.
    """
    if mask.ndim > 1:
        raise ValueError(
            "A variation is of one part: with a mask for each image there is no one "
            "vector to move them along. Give a mask for all, or edit the images one "
            "after the other."
        )
    drawn = is_mask(edit.part)
    where = mask.reshape(decomposition.map_shape_[1:]) if drawn else edit.part
    weights = part_weights(decomposition, where)
    key = (*weights.tolist(), edit.given)
    if key not in known:
        known[key] = variations_of(decomposition, weights, edit.given)
    vectors, stds = known[key]
    n = check_index("variation", edit.variation, len(stds))
    v, std = vectors[n], float(stds[n])
    vector = v.to(as_tensor(decomposition.appearances_))
    if edit.unit != "std":
        return vector, 1.0
    A = as_tensor(decomposition.appearances_).cpu().double()  # (R_C, C)
    P = as_tensor(decomposition.parts_).flatten(1).cpu().double()  # (R_S, S)
    moved = float((A @ v).square().sum() * (weights @ (P @ mask.cpu().double())))
    if moved <= 0 or std <= 0:
        raise ValueError(
            f"unit='std' needs a variation that occurs: along number {n} part "
            f"{'as drawn' if drawn else edit.part} does not vary in the training data, "
            "or the edit does not move it. Use a lower index, or unit='alpha'."
        )
    return vector, std / moved


def _appearance(
    edit: Edit, decomposition: PartsAppearanceDecomposition
) -> tuple[Tensor, float]:
    """The appearance, and alpha of a strength of 1."""
    appearances = as_tensor(decomposition.appearances_)  # (R_C, C)
    if isinstance(edit.appearance, int):
        j = check_index("appearance", edit.appearance, len(appearances))
        std = float(decomposition.saliency_std_[j]) if edit.unit == "std" else 1.0
        return appearances[j], std
    vector = as_tensor(cast(ArrayLike, edit.appearance))
    if vector.shape != appearances.shape[1:]:
        raise ValueError(
            f"appearance must be an int or a vector of the {appearances.shape[1]} "
            f"channels, got one of shape {tuple(vector.shape)}."
        )
    if edit.unit != "std":
        return vector, 1.0
    # What is known of the training data is the covariance of the appearances'
    # saliencies, which is enough for their combinations: a'Z = sum_j c_j a_j'Z.
    appearances, vector = (x.cpu().double() for x in (appearances, vector))
    c = torch.linalg.lstsq(appearances.T, vector[:, None], driver="gelsd").solution
    rest = vector - appearances.T @ c[:, 0]
    if rest.norm() > 1e-3 * vector.norm():
        raise ValueError(
            "unit='std' needs an appearance that is a combination of the learnt ones: "
            "of others the standard deviation in the training data is not known, and "
            f"{float(rest.norm() / vector.norm()):.0%} of this vector lies outside. "
            "Use unit='alpha', or fit with more appearances."
        )
    covariance = as_tensor(decomposition.saliency_covariance_).cpu().double()
    variance = float(c[:, 0] @ covariance @ c[:, 0])
    return as_tensor(cast(ArrayLike, edit.appearance)), max(variance, 0.0) ** 0.5


def _mask(
    part: ArrayLike,
    spatial: tuple[int, ...],
    image_spatial: tuple[int, ...],
    n_samples: int | None,
) -> tuple[Tensor, Tensor | None]:
    """A drawn mask at the layer's positions, and at the images' size if so drawn."""
    mask = check_mask(part, "part")
    for size in (spatial, image_spatial):
        each = mask.ndim == len(size) + 1
        if tuple(mask.shape[each:]) != tuple(size):
            continue
        if each and len(mask) != n_samples:
            raise ValueError(_not_for_samples("A mask given as part", mask, n_samples))
        if size == spatial:
            return mask.reshape(*mask.shape[:each], -1), None
        if len(size) != len(spatial):
            break
        small = resize(mask.reshape(-1, 1, *size), spatial)
        return small.reshape(*mask.shape[:each], -1), mask
    raise ValueError(
        f"A mask must be of the layer's spatial shape, {tuple(spatial)}, or of the "
        f"images', {tuple(image_spatial)}, with an axis of samples before it or "
        f"without; part is of shape {tuple(mask.shape)}."
    )


def _not_for_samples(what: str, values: Tensor, n_samples: int | None) -> str:
    wanted = "the same for all samples" if n_samples is None else f"for {n_samples}"
    return f"{what} must be {wanted}, got one for each of {len(values)} samples."


class Change:
    """The sum of alpha a p_hat' over edits, for batches of activations.

    Parameters
    ----------
    terms : sequence of Term

    layout : MapLayout
        Layout of the activations.

    refine : callable, default=None
        Parts (n, R_S, S) refined to maps (n, C, S); terms that are made of parts then
        use those.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        layout: MapLayout,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.terms = list(terms)
        self.layout = layout
        self.refine = refine

    def masks(self, features: Tensor | None, where: Any) -> list[Tensor]:
        """Masks of each term for a batch of samples, of shape (S,) or (n, S).

        ``features`` are the batch's activations; only needed if parts are refined.
        """
        refined = None
        if self.refine is not None and features is not None:
            refined = self.refine(promoted(self.layout.to_maps(features))).detach()
        masks = []
        for term in self.terms:
            mask = term.mask if term.mask.ndim == 1 else term.mask[where]
            if refined is not None and term.parts:
                mask = _scaled_each(refined[:, list(term.parts)].sum(dim=1))
            masks.append(mask)
        return masks

    def alphas(self, where: Any) -> list[Tensor]:
        """Strengths of each term for a batch of samples, of shape () or (n,)."""
        return [
            term.scale
            * (term.strength if term.strength.ndim == 0 else term.strength[where])
            for term in self.terms
        ]

    @in_full_precision
    def apply(
        self, features: Tensor, masks: Sequence[Tensor], alphas: Sequence[Tensor]
    ) -> Tensor:
        """Activations with the change added; where it is 0, the very same values."""
        maps = promoted(self.layout.to_maps(features))
        vectors = [term.vector for term in self.terms]
        added = total_change(maps, vectors, masks, alphas)
        # Adding zeros would turn -0.0 into 0.0.
        return self.layout.from_maps(torch.where(added != 0, maps + added, maps))

    def __call__(self, features: Tensor, where: Any) -> Tensor:
        """Changed activations of the samples ``where``."""
        return self.apply(features, self.masks(features, where), self.alphas(where))


def change_of(
    edits: Sequence[Edit],
    decomposition: PartsAppearanceDecomposition,
    image_shape: tuple[int, ...] | None,
    n_samples: int | None,
    *,
    refine: bool = False,
) -> Change:
    """Edits as a change of activations.

    Parameters
    ----------
    edits : sequence of Edit

    decomposition : PartsAppearanceDecomposition
        Fitted; the edits are looked up in it.

    image_shape : tuple of int or None
        Shape of an image, in whose spatial shape masks may be drawn.

    n_samples : int or None
        How many samples strengths and masks may be given for; ``None`` if they must
        be the same for all.

    refine : bool, default=False
        Whether parts are refined to each sample.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range or no int, a part is constant, a vector, a mask or
        an array of strengths is of another shape, ``refine`` is no flag, or there is
        nothing to refine.
    """
    check_flag("refine", refine)
    spatial = tuple((image_shape or ())[1:])
    known: dict = {}
    terms = [term_of(edit, decomposition, spatial, n_samples, known) for edit in edits]
    layout = layout_of(decomposition)
    if not refine:
        return Change(terms, layout)
    if not any(term.parts for term in terms):
        raise ValueError(
            "refine=True refines learnt parts, but no edit is at one: masks are "
            "used as they are. Leave refine at False, or give indices of parts."
        )
    return Change(terms, layout, partial(_refined, decomposition))


@own_arithmetic
def _refined(decomposition: PartsAppearanceDecomposition, maps: Tensor) -> Tensor:
    """Parts (n, R_S, S) refined to maps (n, C, S)."""
    factors = factors_of(decomposition, maps)
    return refine_parts(maps, factors, max_iter=REFINEMENT_STEPS)


def total_change(
    maps: Tensor,
    vectors: Sequence[Tensor],
    masks: Sequence[Tensor],
    alphas: Sequence[Tensor],
) -> Tensor:
    """Sum of alpha a p_hat', of shape (n or 1, C, S), in the type of maps (n, C, S).

    Vectors are (C,), masks (S,) or (n, S), alphas () or (n,).
    """
    total = maps.new_zeros(1, *maps.shape[1:])
    for vector, mask, alpha in zip(vectors, masks, alphas, strict=True):
        scaled_vector = alpha.to(maps).reshape(-1, 1, 1) * vector.to(maps)[:, None]
        total = total + scaled_vector * mask.to(maps).unsqueeze(-2)
    return total


def _scaled_each(parts: Tensor) -> Tensor:
    """Parts (n, S), each scaled to reach from 0 to 1; constant ones become zero."""
    low, high = parts.amin(dim=1, keepdim=True), parts.amax(dim=1, keepdim=True)
    constant = high <= low
    if n_constant := int(constant.sum()):
        warnings.warn(
            f"Refined to its sample, a part is constant in {n_constant} of "
            f"{len(parts)} samples, which are left as they are there.",
            UserWarning,
            stacklevel=2,
        )
    return torch.where(
        constant, 0.0, (parts - low) / torch.where(constant, 1, high - low)
    )
