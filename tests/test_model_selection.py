"""The rule of one standard error, on results made by hand."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.model_selection import OneStandardError


def results(scores, params, metric="score"):
    """What a search reports: scores (n_candidates, n_folds)."""
    scores = np.asarray(scores, dtype=float)
    table = {f"split{k}_test_{metric}": column for k, column in enumerate(scores.T)}
    return table | {f"mean_test_{metric}": scores.mean(axis=1), "params": params}


def ranks(*pairs):
    return [{"panda__n_parts": p, "panda__n_appearances": a} for p, a in pairs]


def test_the_smallest_within_one_standard_error():
    # The best has mean 0.9 and standard error std(ddof=1) / sqrt(3) = 0.1 / sqrt(3).
    scores = [[0.5] * 3, [0.83] * 3, [0.85] * 3, [0.8, 0.9, 1.0]]
    params = ranks((1, 2), (2, 2), (3, 2), (4, 2))
    assert OneStandardError()(results(scores, params)) == 2
    scores[1] = [0.843] * 3
    assert OneStandardError()(results(scores, params)) == 1


def test_size_is_the_product_and_none_is_the_largest():
    scores = [[0.9] * 3] * 3
    assert OneStandardError()(results(scores, ranks((2, 6), (3, 3), (1, None)))) == 1
    params = [{"n_parts": None}, {"n_parts": 4}, {"n_parts": 5}]
    assert OneStandardError()(results(scores, params)) == 1


def test_the_better_of_equals():
    scores = [[0.90, 0.9], [0.91, 0.91], [0.8, 1.1]]
    params = [{"n_parts": 2, "solver": s} for s in ("a", "b")] + [{"n_parts": 3}]
    assert OneStandardError("other")(results(scores, params, "other")) == 1


def test_candidates_that_failed():
    scores = [[np.nan] * 2, [0.5] * 2, [0.6] * 2]
    params = [{"n_parts": n} for n in (1, 2, 3)]
    assert OneStandardError()(results(scores, params)) == 2
    with pytest.raises(ValueError, match="finite"):
        OneStandardError()(results([[np.nan]] * 3, params))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_in_a_search_that_is_cloned_and_pickled():
    X = np.random.default_rng(0).random((20, 3, 4))
    search = GridSearchCV(
        PartsAppearanceDecomposition(max_iter=3),
        {"n_parts": [1, 2]},
        refit=OneStandardError(),
        cv=2,
    )
    search = pickle.loads(pickle.dumps(clone(search))).fit(X)
    assert search.best_index_ in (0, 1)
    assert repr(search.refit) == "OneStandardError(metric='score')"


@pytest.mark.parametrize(
    ("metric", "params", "part"),
    [
        ("other", [{"n_parts": 1}], "'score'"),
        ("score", [{"tol": 1}], "n_parts"),
        ("score", [{"n_parts": 1}, {"n_appearances": 1}], "same ranks"),
    ],
)
def test_bad_input(metric, params, part):
    with pytest.raises(ValueError, match=part):
        OneStandardError(metric)(results([[1.0, 1.0]] * len(params), params))
