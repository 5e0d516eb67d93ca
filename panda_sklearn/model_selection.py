"""Choosing among the candidates of scikit-learn's searches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from panda_sklearn._searches import ranks_of, scores_of
from panda_sklearn.utils.validation import check_kind

__all__ = ["OneStandardError"]


class OneStandardError:
    """Choose the smallest ranks that score within a standard error of the best.

    For the parameter ``refit`` of ``GridSearchCV`` and ``RandomizedSearchCV``;
    scikit-learn's halving searches take no callable. The standard error is that of the
    best candidate's mean score over the folds (Breiman et al. [1]_). Candidates are
    ordered by n_parts * n_appearances, the number of coefficients of a sample; among
    equals, the better score wins.

    Parameters
    ----------
    metric : str, default="score"
        Name of the scorer in ``scoring``; "score" where there is just one.

    References
    ----------
    .. [1] L. Breiman, J. H. Friedman, R. A. Olshen, C. J. Stone. "Classification and
       Regression Trees", section 3.4.3. Wadsworth, 1984.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from panda_sklearn import PartsAppearanceDecomposition
    >>> from panda_sklearn.datasets import make_parts_appearances
    >>> from panda_sklearn.metrics import heldout_reconstruction
    >>> from panda_sklearn.model_selection import OneStandardError
    >>> X, *_ = make_parts_appearances(
    ...     n_samples=60, n_parts=3, n_appearances=4, snr_db=10, random_state=0
    ... )
    >>> search = GridSearchCV(
    ...     PartsAppearanceDecomposition(n_appearances=4, random_state=0),
    ...     {"n_parts": [2, 3, 4, 5]},
    ...     scoring=heldout_reconstruction,
    ...     refit=OneStandardError(),
    ...     cv=3,
    ... )
    >>> search.fit(X).best_params_
    {'n_parts': 3}
    """

    def __init__(self, metric: str = "score") -> None:
        self.metric = metric

    def __repr__(self) -> str:
        return f"{type(self).__name__}(metric={self.metric!r})"

    def __call__(self, cv_results: dict[str, Any]) -> int:
        """Index of the chosen candidate.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of a search.

        Returns
        -------
        best_index : int
            Index of the chosen candidate.

        Raises
        ------
        TypeError, ValueError
            If ``cv_results`` is something else, there is no such metric, nothing was
            scored, or the candidates do not all set the same ranks.
        """
        check_kind("metric", self.metric, str)
        check_kind("cv_results", cv_results, dict)
        means, errors = scores_of(cv_results, self.metric)
        if not np.isfinite(means).any():
            raise ValueError(f"No candidate has a finite {self.metric}.")
        best = int(np.nanargmax(means))
        sizes = _sizes(cv_results)
        good = means >= means[best] - np.nan_to_num(errors[best])  # false for NaN
        candidates = np.flatnonzero(good).tolist()
        return min(candidates, key=lambda i: (sizes[i], -means[i]))


def _sizes(cv_results: dict[str, Any]) -> list[float]:
    """Numbers of coefficients, up to a factor that all candidates have in common."""
    ranks = zip(*ranks_of(cv_results).values(), strict=True)
    return [math.prod(math.inf if n is None else n for n in its) for its in ranks]
