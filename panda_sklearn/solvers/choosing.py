"""Parts to start from: several starts, and the best of them after a rough descent.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_sklearn.core.channels import ChannelMoments, Summary
from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    factored_part_moments,
    part_moments,
)
from panda_sklearn.core.objective import accumulator_dtype, sample_energies
from panda_sklearn.core.samples import InMemory
from panda_sklearn.core.starts import (
    grown_parts,
    leading_appearances,
    nearly_hosvd,
    random_appearances,
    random_parts,
)
from panda_sklearn.solvers.descent import descend_shared

__all__ = ["N_STARTS", "draw_starts", "promising_starts", "takes_all_channels"]

# All starts are descended from roughly, the best few further.
N_STARTS = 10
COMPARISON = {"max_iter": 60, "tol": 1e-5}
FINALISTS = 3
FINAL = {"max_iter": 60, "tol": 1e-5}
# Of objectives that differ by no more than SAME, as a fraction of the energy, one is
# kept; those within PROMISING of the best are promising.
SAME = 1e-5
PROMISING = 1e-2
# Largest number of channels of which the scatter's eigenvectors take next to no time.
LARGEST_SCATTER = 512
# Largest number of positions for which the S x S moments are formed (512 MB). Beyond
# it, a few random starts are compared on a few samples.
LARGEST_FORMED = 8192


def draw_starts(
    known: Summary,
    R_C: int,
    R_S: int,
    init: str,
    n_init: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw appearances (C, R_C) and parts (K, S, R_S) to start from.

    With "hosvd" K is ``n_init`` - 1: one more start is yet to be grown from the data.
    """
    kept = known.kept
    C, S = kept.n_channels, kept.n_positions
    dtype = accumulator_dtype(kept.device)
    if init == "random":
        A = random_appearances(C, R_C, generator)
    elif R_C == C:  # they span all channels, whatever the start
        A = torch.eye(C, dtype=dtype, device="cpu")
    elif C > LARGEST_SCATTER and 4 * R_C <= C:
        A = nearly_hosvd(kept.Z, R_C, generator)
    else:
        known_of_all = known.channels if takes_all_channels(C, R_C) else None
        channels = known_of_all or ChannelMoments.of_data(kept)
        A = leading_appearances(channels.about_zero(), R_C).to(kept.dtype)
    n_drawn = n_init - 1 if init == "hosvd" else n_init
    P = torch.empty(n_drawn, S, R_S, dtype=dtype, device="cpu")
    for start in P:
        start[:] = random_parts(S, R_S, generator)
    return A.to(kept.device, dtype), P.to(kept.device, dtype)


def takes_all_channels(C: int, R_C: int) -> bool:
    """Whether "hosvd" starts use the scatter of all samples, not just of those kept.

    The answer does not depend on where the samples are, so neither do results.
    """
    return 4 * R_C > C


def promising_starts(
    kept: InMemory,
    A: Tensor,
    P: Tensor,
    generator: torch.Generator,
    grow: bool,
    constraint: Constraint,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the best starts after a rough descent, and their objectives.

    With ``grow``, one start is grown from the data beside those given. Objectives are
    fractions of the energy, in rising order.
    """
    _, S, R_S = P.shape
    if constraint.rotatable:  # the parts' problem needs no start
        return P.new_ones(1, S, R_S), P.new_ones(1)
    moments: Moments | FactoredMoments
    if S <= LARGEST_FORMED:
        energy = sample_energies(kept.Z).sum()
        formed = moments = part_moments(kept, A, energy=energy, dtype=dtype)
        if grow:
            grown = grown_parts(formed.M1, R_S, generator, formed.eps)
            P = torch.cat([grown[None], P])
    else:
        if len(P) == 0:
            P = random_parts(S, R_S, generator).to(P)[None]
        P = P[:FINALISTS]
        few = kept.Z[:: -(-len(kept.Z) // 16)]
        energy = sample_energies(few).sum()
        moments = factored_part_moments(few, A, energy=energy, dtype=dtype)
    P, f = descend_shared(moments, P, constraint, **COMPARISON)
    P, f = descend_shared(moments, P[f.argsort()[:FINALISTS]], constraint, **FINAL)
    f, order = f.sort()
    others = (f < f[0] + PROMISING) & (f.diff(prepend=f[:1] - 1) > SAME)
    return P[order][others], f[others]
