"""Edits looked up in a decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from panda_sklearn._variations import part_weights, variations_of
from panda_sklearn.decomposition import PartsAppearanceDecomposition, layout_of
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._parts import scaled
from panda_sklearn.editing._terms import (
    CoefficientTerm,
    FeatureTerm,
    LatentTerm,
    Term,
    VectorTerm,
)
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    runs_of,
    takes_floats,
    tap_of,
)
from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.parts import indices_of, is_mask
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.validation import LARGEST, check_index, check_mask

__all__ = ["ROUNDING", "Sizes", "not_for_samples", "term_of", "weights_of"]


# Standard deviations below this fraction of the first variation's are 0 but for
# rounding: no more directions vary than there are samples.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What the arrays of an edit must fit.

    Attributes
    ----------
    n_samples : int or None
        ``None`` if they must be the same for all samples.
    image_spatial : tuple of int
        Spatial shape of the images, in which masks may be drawn; empty if there are
        none.
    latent_shape : tuple of int or None
        Shape of one sample's latents; ``None`` if it is not known.
    floating : bool
        Whether latents are floating-point numbers, rather than classes or tokens.
    calls : tuple of int or None
        The calls of the layer that the extractor takes; ``None`` if it runs once.
    n_rows, n_slices : int
        How many rows for each sample, and slices of the channels, these calls become.
    n_runs : int or None
        How often the layer runs; ``None`` if that is not known.
    guided : bool
        Whether guidance may multiply the samples.
    """

    n_samples: int | None = None
    image_spatial: tuple[int, ...] = ()
    latent_shape: tuple[int, ...] | None = None
    floating: bool = True
    calls: tuple[int, ...] | None = None
    n_rows: int = 1
    n_slices: int = 1
    n_runs: int | None = None
    guided: bool = True

    @classmethod
    def of(cls, extractor: GeneratorFeatureExtractor, n_samples: int | None) -> Sizes:
        """The sizes for samples of a fitted extractor."""
        tap = tap_of(extractor)
        return cls(
            n_samples,
            image_spatial=tuple((extractor.image_shape_ or ())[1:]),
            latent_shape=tuple(extractor.latent_shape_),
            floating=takes_floats(extractor),
            calls=tap.calls,
            n_rows=tap.n_rows,
            n_slices=tap.n_slices,
            n_runs=runs_of(extractor),
            guided=tap.guidance is not None,
        )


def term_of(
    edit: Edit,
    decomposition: PartsAppearanceDecomposition,
    sizes: Sizes,
    known: dict,
) -> Term:
    """Look up an edit, and return it as a term; ``known`` caches variations.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range, a part is constant, or an array does not fit.
    """
    _check_calls(edit, sizes)
    common: dict[str, Any] = {
        "strength": _strength(edit, sizes.n_samples),
        "scale": 1.0,
        **_where(edit.part, decomposition, sizes),
        "calls": edit.calls,
        "branches": edit.branches,
    }
    if edit.kind == "latent":
        return _latent_term(edit, sizes, common)
    if edit.kind == "features":
        return _feature_term(edit, decomposition, sizes, common)
    if edit.kind == "coefficients":
        return _coefficient_term(edit, decomposition, sizes, common)
    if edit.kind == "variation":
        found = _variation(edit, decomposition, common["mask"], known)
    else:
        found = _appearance(edit, decomposition)
    vector, common["scale"] = found
    _check_size(common, vector, "a vector")
    return VectorTerm(**common, vector=vector)


def _latent_term(edit: Edit, sizes: Sizes, common: dict[str, Any]) -> LatentTerm:
    """The term of an edit along a direction of the latents."""
    if not sizes.floating:
        raise ValueError(
            "latent is a direction, but the latents are integers, such as classes or "
            "tokens, which have no directions. Give features instead."
        )
    direction = as_tensor(cast(ArrayLike, edit.latent))
    if sizes.latent_shape is not None:
        shape, n_samples = sizes.latent_shape, sizes.n_samples
        direction, _ = _fitting("latent", direction, shape, n_samples)
    _check_size(common, direction, "a direction")
    return LatentTerm(**common, direction=direction)


def _feature_term(
    edit: Edit,
    decomposition: PartsAppearanceDecomposition,
    sizes: Sizes,
    common: dict[str, Any],
) -> FeatureTerm:
    """The term of an edit towards activations."""
    layout = layout_of(decomposition)
    target = as_tensor(cast(ArrayLike, edit.features))
    shape, n_samples = layout.sample_shape, sizes.n_samples
    target, each = _fitting("features", target, shape, n_samples)
    _check_size(common, target, "activations")
    maps = layout.to_maps(target if each else target[None])
    return FeatureTerm(**common, target=maps if each else maps[0])


def _coefficient_term(
    edit: Edit,
    decomposition: PartsAppearanceDecomposition,
    sizes: Sizes,
    common: dict[str, Any],
) -> CoefficientTerm:
    """The term of an edit towards coefficients."""
    appearances = as_tensor(decomposition.appearances_)  # (R_C, C)
    every = as_tensor(decomposition.parts_).flatten(1)  # (R_S, S)
    target = as_tensor(cast(ArrayLike, edit.coefficients))
    shape = (len(appearances), len(every))
    target, _ = _fitting("coefficients", target, shape, sizes.n_samples)
    _check_size(common, target, "coefficients")
    wide = appearances.double()
    least = torch.linalg.pinv(wide @ wide.T, hermitian=True) @ wide
    return CoefficientTerm(
        **common,
        target=target,
        appearances=appearances,
        least=least.to(appearances),
        every=every,
    )


def _check_calls(edit: Edit, sizes: Sizes) -> None:
    """Raise ValueError unless the edit can be made at its calls."""
    calls = cast(dict, edit.calls or {})
    last = max(calls, default=0)
    if sizes.n_runs is not None and last >= sizes.n_runs:
        raise ValueError(
            f"calls has {last}, but the layer runs {sizes.n_runs} times in a forward "
            f"pass: calls must be from 0 to {sizes.n_runs - 1}."
        )
    if edit.branches != "own" and not sizes.guided:
        raise ValueError(
            f"branches={edit.branches!r} is for batches that guidance multiplies, but "
            "the extractor's guidance is None: set it, or leave branches at 'own'."
        )
    taken = sizes.calls or (0,)
    if sizes.n_slices > 1 and edit.kind not in ("appearance", "variation"):
        raise ValueError(
            "With calls_as='channels' edits add vectors: use an appearance or a "
            f"variation. What {edit.kind} does at a call depends on later calls."
        )
    # These edits are known at the calls that the extractor takes.
    if edit.kind == "latent" or sizes.n_slices > 1:
        unknown = [call for call in calls if call not in taken]
        if unknown:
            raise ValueError(
                f"calls has {unknown[0]}, at which nothing is known about this edit: "
                f"choose from {list(taken)}, the calls that the extractor takes."
            )


def _strength(edit: Edit, n_samples: int | None) -> Tensor:
    """The strength as a tensor, of shape () or (N,)."""
    if isinstance(edit.strength, Real):
        return as_tensor(np.array(float(edit.strength)))
    strength = as_tensor(cast(ArrayLike, edit.strength))
    if len(strength) != n_samples:
        raise ValueError(not_for_samples("strength", strength, n_samples))
    return strength


def _fitting(
    name: str, array: Tensor, shape: tuple[int, ...], n_samples: int | None
) -> tuple[Tensor, bool]:
    """An array of a shape, for all samples or for each, and whether for each."""
    if tuple(array.shape) == shape:
        return array, False
    if tuple(array.shape[1:]) != shape:
        raise ValueError(
            f"{name} must be of shape {shape}, or with a first axis of samples, got "
            f"{tuple(array.shape)}."
        )
    if len(array) == 1:
        return array[0], False
    if len(array) != n_samples:
        raise ValueError(not_for_samples(name, array, n_samples))
    return array, True


def _where(
    part: Any, decomposition: PartsAppearanceDecomposition, sizes: Sizes
) -> dict[str, Any]:
    """The attributes mask, parts, learnt and drawn of :class:`Term`."""
    every = as_tensor(decomposition.parts_).flatten(1)  # (R_S, S)
    if is_mask(part):
        spatial = decomposition.map_shape_[1:]
        mask, drawn = _mask(part, spatial, sizes.image_spatial, sizes.n_samples)
        if drawn is None:
            _check_no_part(mask, every)
        return {"mask": mask, "parts": (), "learnt": every[:0], "drawn": drawn}
    chosen = tuple(indices_of(part, len(every)))
    many = len(chosen) > 1
    name = f"The sum of parts {list(chosen)}" if many else f"Part {chosen[0]}"
    learnt = every[list(chosen)]
    mask = scaled(learnt.sum(dim=0), name)
    return {"mask": mask, "parts": chosen, "learnt": learnt, "drawn": None}


def _check_no_part(mask: Tensor, parts: Tensor) -> None:
    """Raise ValueError if a mask is a part as it was learnt, unscaled."""
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


def _check_size(common: dict[str, Any], array: Tensor, what: str) -> None:
    """Raise ValueError if strength, scale and array multiply beyond float32."""
    largest, entry = (float(x.abs().max()) for x in (common["strength"], array))
    scale = common["scale"]
    if largest * scale * entry > LARGEST:
        raise ValueError(
            f"strength={largest:g} is too large: times {what} with entries up to "
            f"{entry:.3g}{'' if scale == 1 else f' and a unit of {scale:.3g}'} it does "
            "not fit in float32, and the images would be NaN."
        )


def _variation(
    edit: Edit, decomposition: PartsAppearanceDecomposition, mask: Tensor, known: dict
) -> tuple[Tensor, float]:
    """The variation's vector v, and alpha of a strength of 1.

    Adding alpha v with a mask m moves the coefficients of part k along v, v'A l_k, by
    alpha ||A'v||^2 m'p_k. That is one standard deviation on average over the parts,
    weighted, if alpha is the standard deviation over the mean of ||A'v||^2 m'p_k.
    """
    if mask.ndim > 1:
        raise ValueError(
            "A variation belongs to one part: with a mask for each image there is no "
            "one vector to add. Give one mask for all, or edit the images one by one."
        )
    weights = weights_of(edit, mask, decomposition)
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
    if moved <= 0 or std <= ROUNDING * float(stds[0]):
        raise ValueError(
            f"unit='std' needs a variation that occurs: along variation {n} "
            f"{'the mask' if is_mask(edit.part) else f'part {edit.part}'} does not "
            "vary in the training data, or the edit does not move it. Use a lower "
            "index, or unit='alpha'."
        )
    return vector, std / moved


def weights_of(
    edit: Edit, mask: Tensor, decomposition: PartsAppearanceDecomposition
) -> Tensor:
    """How much each part (R_S,) counts where an edit is, with the mask (S,)."""
    drawn = is_mask(edit.part)
    where = mask.reshape(decomposition.map_shape_[1:]) if drawn else edit.part
    return part_weights(decomposition, where)


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
    # The covariance of the appearances' saliencies is known, which is enough for
    # combinations of them: a'Z = sum_j c_j a_j'Z.
    appearances, vector = (x.cpu().double() for x in (appearances, vector))
    c = torch.linalg.lstsq(appearances.T, vector[:, None], driver="gelsd").solution
    rest = vector - appearances.T @ c[:, 0]
    if rest.norm() > 1e-3 * vector.norm():
        raise ValueError(
            "unit='std' needs a combination of the learnt appearances: the standard "
            "deviation of other vectors in the training data is not known, and "
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
    """A mask at the layer's positions, and as given if drawn at the images' size."""
    mask = check_mask(part, "part")
    for size in (spatial, image_spatial):
        each = mask.ndim == len(size) + 1
        if tuple(mask.shape[each:]) != tuple(size):
            continue
        if each and len(mask) != n_samples:
            raise ValueError(not_for_samples("A mask given as part", mask, n_samples))
        if size == spatial:
            return mask.reshape(*mask.shape[:each], -1), None
        if len(size) != len(spatial):
            break
        small = resize(mask.reshape(-1, 1, *size), spatial)
        return small.reshape(*mask.shape[:each], -1), mask
    raise ValueError(
        f"A mask must be of the layer's spatial shape, {tuple(spatial)}, or of the "
        f"images', {tuple(image_spatial)}, with or without a first axis of samples; "
        f"part is of shape {tuple(mask.shape)}."
    )


def not_for_samples(what: str, values: Any, n_samples: int | None) -> str:
    """The message that there are not as many values as samples."""
    wanted = "the same for all samples" if n_samples is None else f"for {n_samples}"
    return f"{what} must be {wanted}, got one for each of {len(values)} samples."
