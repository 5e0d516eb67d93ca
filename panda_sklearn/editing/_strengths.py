"""The strength at which an edit changes images by a given amount.

Knows nothing about edits: the change of a sample is a function of a factor, 0 at 0 and
roughly proportional to small factors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_factors"]

# Largest relative error of a change that counts as the target.
TOLERANCE = 0.01
# Most evaluations of a sample; proportional changes need two.
MAX_EVALUATIONS = 25
# Most that a factor grows from one evaluation to the next, and the largest factor.
GROWTH = 4.0
LARGEST = 2.0**20
# How near a trial may come to an end of the interval that holds the solution, as a
# fraction of the interval.
MARGIN = 0.05


def find_factors(
    change_of: Callable[[Tensor, Tensor], Tensor], n_samples: int, target: float
) -> tuple[Tensor, Tensor]:
    """Find the factor at which each sample changes by ``target``.

    Uses regula falsi (the Illinois variant) in an interval that grows from 0 until it
    holds a solution.

    Parameters
    ----------
    change_of : callable
        ``change_of(factors, rows)`` returns the changes (m,) of the samples ``rows``
        (m,) at factors (m,).

    n_samples : int

    target : float
        Above 0.

    Returns
    -------
    factors : Tensor of shape (n_samples,), float64
        The factor that came nearest, where the target is out of reach.

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
        # A change that is not finite is far too large.
        change = torch.where(change.isfinite(), change, torch.inf)
        nearer = (change - target).abs() < (best_change[rows] - target).abs()
        best[rows[nearer]], best_change[rows[nearer]] = x[nearer], change[nearer]

        miss = change - target
        below = miss < 0
        under, over = rows[below], rows[~below]
        # Twice in a row on one side: halve the miss at the end that stays.
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
    """The zero of the line through both ends, or else the middle of the interval."""
    fraction = -low_miss / (high_miss - low_miss)
    fraction = torch.where(high_miss.isfinite(), fraction, 0.5)
    return low + (high - low) * fraction.clamp(MARGIN, 1 - MARGIN)
