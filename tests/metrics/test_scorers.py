"""Scorers: against slow ones, in searches, and whether they find planted ranks."""

import functools
import pickle

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.metrics import (
    distinct_parts,
    heldout_reconstruction,
    match_factors,
    neg_parts_overlap,
    parts_overlap,
    reconstruction,
    stability,
)
from panda_sklearn.model_selection import OneStandardError

SCORERS = {
    "reconstruction": reconstruction,
    "heldout": heldout_reconstruction,
    "heldout_both": functools.partial(heldout_reconstruction, held_out="both"),
    "stability": stability,
    "stability_of_appearances": functools.partial(stability, of="appearances"),
    "overlap": neg_parts_overlap,
    "distinct": distinct_parts,
}


def planted(n_parts=4, seed=0, n_samples=60, n_appearances=4):
    return make_parts_appearances(
        n_samples,
        n_parts,
        n_appearances,
        n_channels=12,
        spatial_shape=(6, 8),
        snr_db=10,
        random_state=seed,
    )[0]


@pytest.fixture(scope="module")
def X():
    return planted()


@pytest.fixture(scope="module")
def panda(X):
    return PartsAppearanceDecomposition(4, 4, random_state=0).fit(X[:40])


def slow_heldout(panda, X, held_out, n_folds):
    """Sample by sample, each fold or block solved by least squares."""
    A, P = panda.appearances_.T, panda.parts_.reshape(len(panda.parts_), -1).T
    random = np.random.RandomState(5)
    folds = np.array_split(random.permutation(len(P)), n_folds)
    everything = np.arange(len(A))
    pairs = [(everything, everything)]
    if held_out == "both":
        channels = np.array_split(random.permutation(len(A)), n_folds)
        pairs = [(c, np.setdiff1d(everything, c)) for c in channels]
    error = 0.0
    for h in folds:
        o = np.setdiff1d(np.arange(len(P)), h)
        for c_h, c_o in pairs:
            for z in X.reshape(len(X), len(A), len(P)):
                basis = np.kron(A[c_o], P[o])
                seen = z[np.ix_(c_o, o)].ravel()
                L = np.linalg.lstsq(basis, seen, rcond=None)[0]
                L = L.reshape(A.shape[1], P.shape[1])
                error += ((z[np.ix_(c_h, h)] - A[c_h] @ L @ P[h].T) ** 2).sum()
    return 1 - error / (X**2).sum()


@pytest.mark.parametrize("held_out", ["positions", "both"])
@pytest.mark.parametrize("n_appearances", [4, 12])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_heldout_reconstruction_against_a_slow_one(X, held_out, n_appearances, kind):
    panda = PartsAppearanceDecomposition(4, n_appearances, random_state=0).fit(X[:40])
    options = {"held_out": held_out, "n_folds": 3, "random_state": 5}
    if held_out == "both" and n_appearances == 12:
        with pytest.raises(ValueError, match="n_appearances=8"):
            heldout_reconstruction(panda, kind(X[40:]), **options)
        return
    score = heldout_reconstruction(panda, kind(X[40:]), **options)
    expected = slow_heldout(panda, X[40:], held_out, 3)
    assert isinstance(score, float) and score == pytest.approx(expected, rel=1e-6)


def test_heldout_reconstruction_of_noise_and_of_nothing():
    noise = np.random.default_rng(0).normal(size=(60, 6, 4, 4))
    panda = PartsAppearanceDecomposition(4, 3, random_state=0).fit(noise[:40])
    assert reconstruction(panda, noise[40:]) > 0.05
    assert heldout_reconstruction(panda, noise[40:]) < 0
    assert heldout_reconstruction(panda, 0 * noise) == 1


def test_stability_is_the_match_with_a_second_fit(X, panda):
    other = PartsAppearanceDecomposition(4, 4, random_state=0).fit(X[40:])
    cosines = match_factors(panda.parts_, other.parts_)[2]
    assert stability(panda, X[40:]) == pytest.approx(cosines.mean())
    cosines = match_factors(panda.appearances_, other.appearances_, ignore_sign=True)[2]
    assert stability(panda, X[40:], of="appearances") == pytest.approx(cosines.mean())


def test_parts_alone(X, panda):
    overlap = parts_overlap(panda.parts_)
    assert neg_parts_overlap(panda, X) == pytest.approx(-overlap, rel=1e-12)
    assert distinct_parts(panda, X) == 1
    start = panda.appearances_, panda.parts_[[0, 1, 2, 2]]
    twins = PartsAppearanceDecomposition(init=start, max_iter=1, tol=0).fit(X)
    twins.parts_ = start[1]
    assert distinct_parts(twins, X) == 0.75


@pytest.mark.parametrize("name", SCORERS)
def test_in_a_pipeline(X, panda, name):
    """Found among the steps, with what comes before it done to X."""
    pipeline = make_pipeline(
        FunctionTransformer(lambda X: X / 2),
        "passthrough",
        PartsAppearanceDecomposition(4, 4, random_state=0),
        LogisticRegression(),
    ).fit(X[:40], np.arange(40) % 2)
    score = SCORERS[name](pipeline, X[40:])
    assert score == pytest.approx(SCORERS[name](panda, X[40:]), abs=1e-6)


def test_in_a_pipeline_in_a_pipeline(X, panda):
    inner = make_pipeline("passthrough", PartsAppearanceDecomposition(4, 4))
    outer = make_pipeline(FunctionTransformer(lambda X: X / 2), inner)
    outer.set_params(pipeline__partsappearancedecomposition__random_state=0)
    outer.fit(X[:40])
    expected = reconstruction(panda, X[40:])
    assert reconstruction(outer, X[40:]) == pytest.approx(expected, abs=1e-6)


def test_scoring_leaves_the_estimator_alone(X, panda):
    before = pickle.dumps(panda)
    for scorer in SCORERS.values():
        scorer(panda, X[40:])
    assert pickle.dumps(panda) == before


def as_flattened(X):
    return X.reshape(len(X), -1)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("layout", ["numpy", "torch", "flattened"])
def test_grid_search_over_ranks(X, layout, n_jobs):
    data = {"numpy": X, "torch": torch.from_numpy(X), "flattened": as_flattened(X)}
    panda = PartsAppearanceDecomposition(
        map_shape=(12, 6, 8) if layout == "flattened" else None, random_state=0
    )
    search = GridSearchCV(
        panda,
        {
            "n_parts": [2, 4, 6],
            "n_appearances": [2, 4],
        },
        scoring=SCORERS,
        refit=OneStandardError("heldout"),
        cv=2,
        n_jobs=n_jobs,
        error_score="raise",
    ).fit(data[layout])
    assert search.best_params_["n_parts"] == 4
    assert search.best_params_["n_appearances"] == 4
    assert search.best_estimator_.parts_.shape[0] == 4
    if n_jobs == 1 and layout == "numpy":
        twice = RandomizedSearchCV(
            panda, {"n_parts": [4, 5]}, n_iter=2, random_state=0, cv=2
        ).fit(X)
        assert twice.best_params_ == {"n_parts": 5}


@pytest.mark.filterwarnings("ignore:.*successive halving.*")
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_halving_and_cross_validation(X, kind):
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    panda = PartsAppearanceDecomposition(n_appearances=4, random_state=0)
    halving = HalvingGridSearchCV(
        panda,
        {"n_parts": [2, 4, 8]},
        scoring=heldout_reconstruction,
        cv=2,
        min_resources=30,
        random_state=0,
        error_score="raise",
    ).fit(kind(X))
    assert halving.best_params_ == {"n_parts": 4}
    scores = cross_validate(
        panda.set_params(n_parts=4), kind(X), scoring=SCORERS, cv=3, error_score="raise"
    )
    assert set(SCORERS) == {k[5:] for k in scores if k.startswith("test_")}
    assert all(np.isfinite(scores[f"test_{name}"]).all() for name in SCORERS)
    assert (scores["test_stability"] > 0.95).all()


@pytest.mark.slow
def test_reconstruction_alone_would_not_find_them():
    X = planted()
    search = GridSearchCV(
        PartsAppearanceDecomposition(n_appearances=4, random_state=0),
        {"n_parts": [2, 4, 8]},
        cv=3,
    )
    assert search.fit(X).best_params_ == {"n_parts": 8}


@pytest.mark.parametrize(
    ("call", "kind", "part"),
    [
        (lambda p, X: heldout_reconstruction(p, X, held_out="all"), ValueError, "held"),
        (lambda p, X: heldout_reconstruction(p, X, n_folds=1), ValueError, "n_folds"),
        (lambda p, X: stability(p, X, of="both"), ValueError, "of must be"),
        (lambda p, X: reconstruction(PCA(), X), TypeError, "got a PCA"),
        (
            lambda p, X: reconstruction(PartsAppearanceDecomposition(), X),
            NotFittedError,
            "not fitted",
        ),
    ],
)
def test_bad_input(X, panda, call, kind, part):
    with pytest.raises(kind, match=part):
        call(panda, X)


def test_parts_that_cannot_be_told(X):
    single = PartsAppearanceDecomposition(1, 1, max_iter=2, tol=0).fit(X[:, :, :1, :1])
    with pytest.raises(ValueError, match="1 positions cannot be split into 5"):
        heldout_reconstruction(single, X[:, :, :1, :1])
    panda = PartsAppearanceDecomposition(40, 4, max_iter=2, tol=0).fit(X)
    with pytest.raises(ValueError, match="n_parts=38"):
        heldout_reconstruction(panda, X)
    heldout_reconstruction(panda, X, n_folds=6)
