"""The constraints that a factor may have.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["FREE", "NONNEGATIVE", "Constraint"]


@dataclass(frozen=True)
class Constraint:
    """A closed convex cone of factors: if it holds X it holds c X for each c > 0.

    Attributes
    ----------
    project : callable
        Returns the nearest factor in the cone, for one factor or several, (..., n, r).

    rotatable : bool
        Whether the cone holds X R for each of its X and each orthogonal R. The
        objective is the same at X and X R. So the best factor is found without a
        start, and the canonical one of its rotations is taken.
    """

    project: Callable[[Tensor], Tensor]
    rotatable: bool

    def allows(self, X: Tensor) -> bool:
        """Whether a factor is in the cone."""
        return bool((self.project(X) == X).all())


def _unchanged(X: Tensor) -> Tensor:
    return X


def _clipped(X: Tensor) -> Tensor:
    return X.clamp(min=0)


#: Entries of either sign, as in the appearances.
FREE = Constraint(project=_unchanged, rotatable=True)

#: No entry is negative.
NONNEGATIVE = Constraint(project=_clipped, rotatable=False)
