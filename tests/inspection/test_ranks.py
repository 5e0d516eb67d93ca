"""The display of scores over the ranks."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.inspection import RanksDisplay
from panda_sklearn.metrics import heldout_reconstruction, neg_parts_overlap
from panda_sklearn.model_selection import OneStandardError

X = np.random.default_rng(0).standard_normal((6, 3, 6))
PANDA = PartsAppearanceDecomposition(max_iter=3, tol=0, random_state=0)


def searched(grid, estimator=PANDA, **options):
    return GridSearchCV(estimator, grid, cv=2, **options).fit(X)


def results(params, *folds, metric="score"):
    """What a search reports of these candidates, with their scores in each fold."""
    return {
        "params": params,
        f"mean_test_{metric}": np.mean(folds, axis=0),
        **{f"split{k}_test_{metric}": np.array(f) for k, f in enumerate(folds)},
    }


def grid_of(n_parts, n_appearances):
    return [{"n_parts": n, "n_appearances": k} for n in n_parts for k in n_appearances]


@pytest.mark.parametrize("rank", ["n_parts", "n_appearances"])
def test_a_curve_over_one_rank(rank):
    search = searched({rank: [3, 1, 2]}, refit=OneStandardError())
    display = RanksDisplay.from_search(search)
    assert getattr(display, rank) == [1, 2, 3]
    folds = np.array([search.cv_results_[f"split{k}_test_score"] for k in range(2)])
    curve = display.ax_.get_lines()[0].get_ydata()
    np.testing.assert_allclose(curve, folds.mean(axis=0)[[1, 2, 0]])
    errors = folds.std(axis=0, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(display.errors.ravel(), errors[[1, 2, 0]])
    best, chosen = (line.get_xydata() for line in display.ax_.get_lines()[1:])
    assert best[0, 0] == np.argmax(curve)
    assert chosen[0, 0] == search.best_params_[rank] - 1
    assert display.ax_.get_xlabel() == rank
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["1", "2", "3"]
    assert display.figure_ is display.ax_.figure


@pytest.mark.parametrize("prefix", [True, False])
def test_a_map_over_both(prefix):
    grid = {"n_parts": [2, 1], "n_appearances": [None, 1]}
    estimator = PANDA
    if prefix:
        estimator = make_pipeline("passthrough", PANDA)
        step = "partsappearancedecomposition"
        grid = {f"{step}__{name}": values for name, values in grid.items()}
    search = searched(grid, estimator)
    display = RanksDisplay.from_search(search)
    assert display.n_parts == [1, 2] and display.n_appearances == [1, None]
    for params, mean in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        n, k = (params[key] for key in sorted(params)[::-1])
        row, column = display.n_appearances.index(k), display.n_parts.index(n)
        assert display.scores[row, column] == mean
    assert display.chosen == (1, 1)
    texts = {text.get_text() for text in display.ax_.texts}
    assert texts == {f"{score:#.3g}" for score in display.scores.ravel()}
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["1", "all"]
    assert len(display.ax_.patches) == 2


def test_one_value_of_a_rank_leaves_a_curve():
    search = searched({"n_parts": [1, 2, 3], "n_appearances": [2]})
    assert RanksDisplay.from_search(search).ax_.get_xlabel() == "n_parts"
    search = searched({"n_parts": [2], "n_appearances": [1, 2]})
    assert RanksDisplay.from_search(search).ax_.get_xlabel() == "n_appearances"
    search = searched({"n_appearances": [1]})
    assert RanksDisplay.from_search(search).ax_.get_xlabel() == "n_appearances"


def test_of_other_parameters_the_best_is_drawn():
    params = [{"n_parts": n, "tol": tol} for n in (1, 2) for tol in (0.1, 0.01)]
    scores = results(params, [0.1, 0.3, np.nan, 0.2], [0.2, 0.4, np.nan, 0.6])
    display = RanksDisplay.from_cv_results(scores, best_index=0)
    np.testing.assert_allclose(display.scores, [[0.35, 0.4]])
    np.testing.assert_allclose(display.errors, [[0.05, 0.2]])
    assert display.chosen == (0, 0)


def test_what_was_not_scored_is_left_out():
    scores = results(grid_of([1, 2], [1, 2])[:3], [0.1, np.nan, 0.3])
    display = RanksDisplay.from_cv_results(scores)
    np.testing.assert_allclose(display.scores, [[0.1, 0.3], [np.nan, np.nan]])
    assert np.isnan(display.errors).all()  # of one fold
    assert len(display.ax_.texts) == 2 and len(display.ax_.patches) == 1


def test_a_very_bad_score_does_not_hide_the_others():
    n_parts = [{"n_parts": n} for n in range(1, 6)]
    display = RanksDisplay.from_cv_results(results(n_parts, [0.1, 0.5, 0.7, -90, 0.6]))
    low, high = display.ax_.get_ylim()
    assert -10 < low < 0.1 and 0.7 < high < 1
    both = results(grid_of([1, 2, 3], [1, 2]), [0.1, 0.5, 0.7, -90, 0.6, 0.2])
    display = RanksDisplay.from_cv_results(both)
    assert display.ax_.get_images()[0].get_clim()[0] > -2
    even = results(n_parts, [0.1, 0.5, 0.7, 0.2, 0.6])
    assert RanksDisplay.from_cv_results(even).ax_.get_ylim()[0] < 0.1


def test_several_metrics():
    metrics = {"held": heldout_reconstruction, "overlap": neg_parts_overlap}
    search = searched({"n_parts": [1, 2]}, scoring=metrics, refit="overlap")
    display = RanksDisplay.from_search(search)
    assert display.metric == "overlap" == display.ax_.get_ylabel()
    expected = search.cv_results_["mean_test_held"]
    other = RanksDisplay.from_search(search, "held")
    np.testing.assert_array_equal(other.scores[0], expected)
    search.set_params(refit=OneStandardError("held"))
    assert RanksDisplay.from_search(search).metric == "held"
    search.set_params(refit=False)
    with pytest.raises(ValueError, match=r"set metric to one of \['held', 'overlap'\]"):
        RanksDisplay.from_search(search)


@pytest.mark.parametrize(
    "params",
    [
        [{"tol": 0.1}, {"tol": 0.2}],
        [{"n_parts": 1}, {"n_appearances": 2}],
        [{"a__n_parts": 1, "b__n_parts": 2}],
        [],
    ],
)
def test_searches_that_are_not_over_ranks(params):
    with pytest.raises(ValueError, match="must set n_parts, n_appearances"):
        RanksDisplay.from_cv_results(results(params, [0.1] * len(params)))


def test_what_cannot_be_drawn():
    with pytest.raises(TypeError, match="fitted GridSearchCV"):
        RanksDisplay.from_search(GridSearchCV(PANDA, {"n_parts": [1]}))
    with pytest.raises(ValueError, match="no candidate was scored"):
        RanksDisplay.from_cv_results(results([{"n_parts": 1}], [np.nan]))
    with pytest.raises(ValueError, match="metric must be"):
        RanksDisplay.from_cv_results(results([{"n_parts": 1}], [1]), "held")


def test_many_ranks_and_given_axes():
    _, ax = plt.subplots()
    scores = results([{"n_parts": n} for n in range(1, 41)], np.arange(40.0))
    display = RanksDisplay.from_cv_results(scores, ax=ax)
    assert display.ax_ is ax and len(ax.get_xticks()) <= 12
