"""How what a part shows varies over the training samples.

Part of the estimator in :mod:`panda_sklearn.decomposition`; edits use it too.

Imports torch, and :mod:`panda_sklearn.core.coefficients`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.coefficients import (
    Distances,
    principal_variations,
    without_others,
)
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.parts import indices_of, is_mask

__all__ = ["part_distances", "part_weights", "variations_of"]


def part_weights(panda: Any, part: Any) -> Tensor:
    """Weights (R_S,) of the parts in what :func:`as_part` returned, on the CPU.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range, or a mask has another shape or overlaps no part.
    """
    P = as_tensor(panda.parts_).flatten(1).cpu().double()  # (R_S, S)
    if not is_mask(part):
        chosen = indices_of(part, len(P))
        weights = P.new_zeros(len(P))
        weights[chosen] = 1 / len(chosen)
        return weights
    mask = as_tensor(part).cpu().double()
    if mask.shape != panda.map_shape_[1:]:
        raise ValueError(
            "A mask given as part must have the layer's spatial shape, "
            f"{panda.map_shape_[1:]}, got one of shape {tuple(mask.shape)}."
        )
    sizes = P.square().sum(dim=1)
    alike = (P @ mask.flatten()).square() / torch.where(sizes > 0, sizes, 1.0)
    if not alike.any():
        raise ValueError(
            "part is a mask that overlaps no part, so nothing is known to vary there."
        )
    return alike / alike.sum()


def variations_of(
    panda: Any, weights: Tensor, given: str | None
) -> tuple[Tensor, Tensor]:
    """Variations (n, C) and their standard deviations (n,) for weights (R_S,) of parts.

    In double precision, on the CPU.

    Raises
    ------
    ValueError
        If the covariances are not known.
    """
    _check_known(panda)
    A = as_tensor(panda.appearances_).cpu().double().T
    chosen = weights > 0
    own, cross = (
        as_tensor(array).cpu().double()
        for array in (
            panda.coefficient_covariance_,
            panda.coefficient_cross_covariance_,
        )
    )
    covariances = own[chosen]
    if given is not None:
        covariances = without_others(covariances, cross[chosen], cross.sum(dim=0))
    covariance = torch.einsum("k,kij->ij", weights[chosen], covariances)
    vectors, stds = principal_variations(A, covariance)
    return vectors.T.contiguous(), stds


def part_distances(panda: Any, k: int) -> Callable[[Tensor], Tensor]:
    """Return a function from coefficients (..., R_C) of part k to distances (...).

    In double precision, on the CPU; see ``Distances`` in the core.

    Raises
    ------
    ValueError
        If the covariances are not known.
    """
    _check_known(panda)
    mean, covariances = (
        as_tensor(array).cpu().double()
        for array in (panda.coefficient_mean_, panda.coefficient_covariance_)
    )
    distances = Distances.about(mean[:, k], covariances[k])
    return lambda L: distances.of(L.cpu().double())


def _check_known(panda: Any) -> None:
    """Raise ValueError unless the covariances of the coefficients are known."""
    if not hasattr(panda, "coefficient_covariance_"):
        raise ValueError(
            "The covariances of the coefficients are not known: the estimator is from "
            "a file that does not store them yet. Fit it again."
        )
