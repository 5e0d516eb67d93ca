"""Measures of factors and of edited images, and scorers that help to choose the ranks.

Functions of ``(estimator, X, y=None)`` are scikit-learn scorers: pass them to the
``scoring`` of a search as they are.
"""

from panda_sklearn.metrics._factors import (
    dead_parts,
    duplicate_parts,
    match_factors,
    parts_overlap,
)
from panda_sklearn.metrics._images import (
    frechet_distance,
    outside_psnr,
    outside_ssim,
    roi_ratio,
    sliced_wasserstein_distance,
)
from panda_sklearn.metrics._scorers import (
    distinct_parts,
    heldout_reconstruction,
    neg_parts_overlap,
    reconstruction,
    stability,
)

__all__ = [
    "dead_parts",
    "distinct_parts",
    "duplicate_parts",
    "frechet_distance",
    "heldout_reconstruction",
    "match_factors",
    "neg_parts_overlap",
    "outside_psnr",
    "outside_ssim",
    "parts_overlap",
    "reconstruction",
    "roi_ratio",
    "sliced_wasserstein_distance",
    "stability",
]
