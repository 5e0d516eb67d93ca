"""What a search over ranks reports of its candidates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panda_sklearn.utils.validation import check_choice

RANKS = ("n_parts", "n_appearances")


def metrics_in(cv_results: Mapping[str, Any]) -> list[str]:
    """The names of the metrics in the results of a search."""
    start = "mean_test_"
    return [key[len(start) :] for key in cv_results if str(key).startswith(start)]


def metric_by(search: Any) -> str:
    """The metric that a search chose by."""
    known = metrics_in(search.cv_results_)
    if len(known) == 1:
        return known[0]
    refit = getattr(search, "refit", None)
    metric = refit if isinstance(refit, str) else getattr(refit, "metric", None)
    if metric not in known:
        raise ValueError(
            f"The search has several metrics: set metric to one of {known}."
        )
    return metric


def scores_of(
    cv_results: Mapping[str, Any], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores over the folds and their standard errors, (n_candidates,) each.

    The standard errors are NaN for a single fold.
    """
    known = metrics_in(cv_results)
    if not known or "params" not in cv_results:
        raise ValueError(
            "cv_results must be the cv_results_ of a search, with params and "
            f"mean_test_score or the like; its keys are {list(cv_results)}."
        )
    check_choice("metric", metric, known)
    of_a_fold = re.compile(rf"split\d+_test_{re.escape(metric)}")
    folds = np.array(
        [values for key, values in cv_results.items() if of_a_fold.fullmatch(key)],
        dtype=float,
    )
    means = np.asarray(cv_results[f"mean_test_{metric}"], dtype=float)
    errors = np.full(len(means), np.nan)
    if len(folds) > 1:
        errors = folds.std(axis=0, ddof=1) / math.sqrt(len(folds))
    return means, errors


def ranks_of(cv_results: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """The ranks that the candidates set, with the value of each candidate.

    Parameters of a Pipeline end in their names: ``step__n_parts``.
    """
    found = {
        tuple(sorted(key for key in params if key.rpartition("__")[2] in RANKS))
        for params in cv_results["params"]
    }
    names = [key.rpartition("__")[2] for key in max(found, default=())]
    if len(found) != 1 or not names or len(set(names)) < len(names):
        raise ValueError(
            "All candidates of the search must set n_parts, n_appearances or both of "
            f"one decomposition, got candidates that set {sorted(map(list, found))}. "
            "Put the same ranks into each grid."
        )
    (keys,) = found
    return {
        name: [params[key] for params in cv_results["params"]]
        for name, key in zip(names, keys, strict=True)
    }


def in_order(values: Sequence[int | None]) -> list[int | None]:
    """The values, each once, in order; ``None`` at the end."""
    return sorted(set(values), key=lambda n: math.inf if n is None else n)
