"""Checks of ranks and of a start given by a user against the shape of the data.

Imports numpy and torch, and :mod:`panda_sklearn.core`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.solvers import SOLVERS
from panda_sklearn.utils.arrays import MapLayout, as_tensor
from panda_sklearn.utils.validation import check_factor_scale, check_rank, check_values

__all__ = ["Start", "check_start"]

# Ranks R_C and R_S, and A (C, R_C) and P (S, R_S) if given.
Start = tuple[int, int, tuple[Tensor, Tensor] | None]


def check_start(
    panda: Any,
    layout: MapLayout,
    dtype: torch.dtype,
    constraint: Constraint,
    *,
    goes_on: bool,
) -> Start:
    """Return the ranks, and the start if given, of a decomposition's parameters.

    With ``goes_on`` the ranks must be those of its fitted factors.

    Raises
    ------
    TypeError, ValueError
        If they do not fit maps of that layout and type, or each other.
    """
    start = _start(panda, layout, dtype, constraint)
    if goes_on and start[:2] != (len(panda.appearances_), len(panda.parts_)):
        raise ValueError(
            f"The parameters ask for {start[0]} appearances and {start[1]} parts, "
            f"but partial_fit goes on from {len(panda.appearances_)} and "
            f"{len(panda.parts_)}. Set them back, or call fit."
        )
    if not SOLVERS[panda.solver].takes_rate and panda.learning_rate is not None:
        raise ValueError(
            f"solver={panda.solver!r} has no learning rate, got learning_rate="
            f"{panda.learning_rate!r}. Leave it at None, or choose the solver 'pgd' "
            "or 'adam'."
        )
    return start


def _start(
    panda: Any, layout: MapLayout, dtype: torch.dtype, constraint: Constraint
) -> Start:
    C, S = layout.n_channels, layout.n_positions
    if isinstance(panda.init, str):
        R_S = check_rank("n_parts", panda.n_parts, min(8, S), S, "positions")
        if C == 1 and layout.flattened and panda.map_shape is None:
            of = (
                "channels of X, whose rows were read as maps of one channel (if "
                "they are flattened maps, pass map_shape=(n_channels, *spatial))"
            )
        else:
            of = "channels"
        R_C = check_rank("n_appearances", panda.n_appearances, C, C, of)
        return R_C, R_S, None
    if len(panda.init) != 2:
        raise ValueError(
            "init must be 'hosvd', 'random' or a pair (appearances, parts), got "
            f"{len(panda.init)} items."
        )
    if panda.n_init not in (1, "auto"):
        raise ValueError(
            f"init gives one start, but n_init={panda.n_init}. Set n_init=1 or "
            "'auto', or init='hosvd' for several starts."
        )
    given = []
    for name, factor, rank, shape in (
        ("appearances", panda.init[0], panda.n_appearances, (C,)),
        ("parts", panda.init[1], panda.n_parts, layout.spatial),
    ):
        expected = (f"n_{name}" if rank is None else rank, *shape)
        words = f"({', '.join(map(str, expected))})"
        factor = check_values(factor, f"The {name} of init", words)
        expected = (len(factor), *expected[1:]) if rank is None else expected
        if tuple(factor.shape) != expected:
            raise ValueError(
                f"The {name} of init must be of shape {expected}, got "
                f"{tuple(factor.shape)}."
            )
        factor = as_tensor(factor)
        check_factor_scale(factor, f"{name} of init", dtype)
        given.append(factor.flatten(1).T)
    A, P = given
    if not constraint.allows(P):
        raise ValueError(
            "The parts of init must be non-negative. Clip them at 0, or set "
            "nonnegative=False."
        )
    check_rank("n_appearances", A.shape[1], C, C, "channels")
    check_rank("n_parts", P.shape[1], S, S, "positions")
    return A.shape[1], P.shape[1], (A, P)
