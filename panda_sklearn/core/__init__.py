"""The mathematics: plain functions of torch tensors.

Depends on torch alone: knows nothing of numpy, scikit-learn, estimators or networks.
"""

from panda_sklearn.core.canonical import canonical_factors
from panda_sklearn.core.constraint import FREE, NONNEGATIVE, Constraint
from panda_sklearn.core.factors import Factors
from panda_sklearn.core.moments import (
    FactoredMoments,
    Moments,
    appearance_moments,
    part_moments,
)
from panda_sklearn.core.objective import (
    gradient_appearances,
    gradient_parts,
    objective_of,
)
from panda_sklearn.core.starts import (
    grown_parts,
    hosvd,
    random_appearances,
    random_parts,
)

__all__ = [
    "FREE",
    "NONNEGATIVE",
    "Constraint",
    "FactoredMoments",
    "Factors",
    "Moments",
    "appearance_moments",
    "canonical_factors",
    "gradient_appearances",
    "gradient_parts",
    "grown_parts",
    "hosvd",
    "objective_of",
    "part_moments",
    "random_appearances",
    "random_parts",
]
