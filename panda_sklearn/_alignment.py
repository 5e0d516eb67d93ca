"""The fitted attributes of a decomposition, reordered to match those of another.

Part of the estimator in :mod:`panda_sklearn.decomposition`.

Imports numpy and torch, and :mod:`panda_sklearn.utils.matching`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.utils.arrays import Origin, as_tensor
from panda_sklearn.utils.matching import match_rows

__all__ = ["aligned"]


def aligned(panda: Any, other: Any) -> dict[str, Any]:
    """Return the attributes of ``panda`` that change, in the order of ``other``.

    Raises
    ------
    ValueError
        If the factors of the two have different shapes.
    """
    for name in ("parts_", "appearances_"):
        own, its = (tuple(getattr(of, name).shape) for of in (panda, other))
        if own != its:
            raise ValueError(
                f"other must have {name} of shape {own} like this estimator, got {its}."
            )
    order, signs = _order(panda.appearances_, other.appearances_)
    of_parts, _ = _order(panda.parts_, other.parts_)

    def turned(array: Tensor, *axes: int) -> Tensor:
        """Reorder appearances along the given axes, and apply their signs."""
        for axis in axes:
            shape = [-1 if n == axis else 1 for n in range(array.ndim)]
            array = array.index_select(axis, order.to(array.device))
            array = array * signs.to(array).reshape(shape)
        return array

    def part(array: Tensor, axis: int = 0) -> Tensor:
        """Reorder parts along an axis."""
        return array.index_select(axis, of_parts.to(array.device))

    changes = {
        "appearances_": lambda T: turned(T, 0),
        "parts_": part,
        "saliency_mean_": lambda T: turned(T, 0),
        "saliency_covariance_": lambda T: turned(T, 0, 1),
        "coefficient_mean_": lambda T: part(turned(T, 0), 1),
        "coefficient_covariance_": lambda T: part(turned(T, 1, 2)),
        "coefficient_cross_covariance_": lambda T: part(turned(T, 1, 2)),
    }
    state = vars(panda)
    found = {
        name: Origin.of(state[name]).give(change(as_tensor(state[name])))
        for name, change in changes.items()
        if name in state
    }
    if moments := state.get("_coefficients"):
        found["_coefficients"] = replace(
            moments,
            mean=part(turned(moments.mean, 1)),
            own=part(turned(moments.own, 1, 2)),
            cross=part(turned(moments.cross, 1, 2)),
        )
    return found


def _order(own: Any, its: Any) -> tuple[Tensor, Tensor]:
    """For each row of the other, the index of its match up to sign, and the sign."""
    one, two = (
        as_tensor(factors).flatten(1).cpu().double().numpy() for factors in (own, its)
    )
    rows, columns, cosines = match_rows(one, two, ignore_sign=True)
    order, signs = (
        torch.empty(len(rows), dtype=kind, device="cpu")
        for kind in (torch.long, torch.double)
    )
    order[columns] = torch.from_numpy(rows)
    signs[columns] = torch.from_numpy(cosines).sign() + (torch.from_numpy(cosines) == 0)
    return order, signs
