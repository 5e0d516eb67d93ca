"""The mathematics: plain functions of torch tensors.

Floor 0 of the package: depends on torch alone and knows nothing of numpy,
scikit-learn, estimators or networks.
"""

from panda_sklearn.core.objective import (
    gradient_appearances,
    gradient_parts,
    objective,
    sample_gradients_parts,
    sample_objectives,
)
from panda_sklearn.core.starts import hosvd, random_appearances, random_parts

__all__ = [
    "gradient_appearances",
    "gradient_parts",
    "hosvd",
    "objective",
    "random_appearances",
    "random_parts",
    "sample_gradients_parts",
    "sample_objectives",
]
