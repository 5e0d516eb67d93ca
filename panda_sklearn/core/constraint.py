"""What a factor may be.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["FREE", "NONNEGATIVE", "Constraint"]


@dataclass(frozen=True)
class Constraint:
    """A closed convex cone of factors: with X it also holds c X for each c > 0.

    Attributes
    ----------
    project : callable
        The nearest factor in the cone, of a factor or of several, (..., n, r).

    rotatable : bool
        Whether it holds X R with every X, for R orthogonal. The objective does not
        change from X to X R; so the best factor is found without a start, and of its
        rotations the canonical one is taken.
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


#: Entries of either sign, as those of the appearances.
FREE = Constraint(project=_unchanged, rotatable=True)

#: No entry is negative.
NONNEGATIVE = Constraint(project=_clipped, rotatable=False)
