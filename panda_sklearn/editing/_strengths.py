"""The strength at which an edit changes images by a given amount.

Floor 3: see :mod:`panda_sklearn.editing`. Knows nothing of edits: the change is a
function of a factor, one for each sample, that is 0 at 0 and about proportional to it
as long as it is small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_factors"]

# A change is as asked for if it is off by at most this share.
TOLERANCE = 0.01
# Evaluations of a sample, at most; proportional changes need two.
MAX_EVALUATIONS = 25
# A factor grows by at most this from one evaluation to the next, and up to the limit.
GROWTH = 4.0
LARGEST = 2.0**20
# How near a trial may come to an end of the interval that holds the solution.
MARGIN = 0.05


def find_factors(
    change_of: Callable[[Tensor, Tensor], Tensor], n_samples: int, target: float
) -> tuple[Tensor, Tensor]:
    """Find for each sample the factor at which it changes by ``target``.

    By regula falsi (the Illinois variant) in an interval that grows from 0 until it
    holds a solution.

    Parameters
    ----------
    change_of : callable
        Given factors (m,) and the samples (m,) they are for, their changes (m,).

    n_samples : int

    target : float
        Above 0.

    Returns
    -------
    factors : Tensor of shape (n_samples,), float64
        Where the target is out of reach, the factor that came nearest.

    changes : Tensor of shape (n_samples,), float64
        The changes at these factors.
    """
    low = torch.zeros(n_samples, dtype=torch.float64, device="cpu")
    low_miss = torch.full_like(low, -target)  # change - target at the lower end
    high = torch.full_like(low, torch.inf)
    high_miss = torch.full_like(low, torch.inf)
    side = torch.zeros_like(low, dtype=torch.int8)  # which end moved last
    trial = torch.ones_like(low)
    best, best_change = torch.zeros_like(low), torch.zeros_like(low)
    rows = torch.arange(n_samples, device="cpu")
    for _ in range(MAX_EVALUATIONS):
        x = trial[rows]
        change = change_of(x, rows).to(low)
        # What is no longer finite is far too much.
        change = torch.where(change.isfinite(), change, torch.inf)
        nearer = (change - target).abs() < (best_change[rows] - target).abs()
        best[rows[nearer]], best_change[rows[nearer]] = x[nearer], change[nearer]

        miss = change - target
        below = miss < 0
        under, over = rows[below], rows[~below]
        # Twice in a row on one side: halve the miss of the end that stays.
        high_miss[under[side[under] == -1]] /= 2
        low_miss[over[side[over] == 1]] /= 2
        low[under], low_miss[under], side[under] = x[below], miss[below], -1
        high[over], high_miss[over], side[over] = x[~below], miss[~below], 1

        undecided = miss.abs() > TOLERANCE * target
        undecided &= (high[rows] < torch.inf) | (x < LARGEST)
        rows, x, change = rows[undecided], x[undecided], change[undecided]
        if len(rows) == 0:
            break
        trial[rows] = torch.where(
            high[rows] < torch.inf,
            _between(low[rows], low_miss[rows], high[rows], high_miss[rows]),
            x * (1.05 * target / change).clamp(1.1, GROWTH),
        )
    return best, best_change


def _between(low: Tensor, low_miss: Tensor, high: Tensor, high_miss: Tensor) -> Tensor:
    """Where the line through both ends is 0, inside the interval; else its middle."""
    share = -low_miss / (high_miss - low_miss)
    share = torch.where(high_miss.isfinite(), share, 0.5)
    return low + (high - low) * share.clamp(MARGIN, 1 - MARGIN)
