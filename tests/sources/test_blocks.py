"""Dask arrays: on dask's threads, and on two workers that are processes."""

import os
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

RANKS = {"n_parts": 3, "n_appearances": 4, "random_state": 0, "tol": 1e-9}
X = make_parts_appearances(
    600, 3, 4, n_channels=7, spatial_shape=(4, 5), snr_db=5, random_state=0
)[0]
UNKNOWN = da.from_array(X, chunks=(70, 7, 4, 5))
UNKNOWN = UNKNOWN[da.from_array(np.arange(600) >= 0, chunks=70)]

CASES = {
    "blocks": (da.from_array(X, chunks=(70, 7, 4, 5)), X, {}),
    "one block": (da.from_array(X, chunks=-1), X, {}),
    "unknown sizes": (UNKNOWN, X, {}),
    "empty blocks": (
        da.concatenate(
            [da.zeros((0, 7, 4, 5)), da.from_array(X, chunks=(300, 7, 4, 5))]
        ),
        X,
        {},
    ),
    "float32": (
        da.from_array(X.astype("float32"), chunks=(90, 7, 4, 5)),
        X.astype("float32"),
        {},
    ),
    "channels last": (
        da.from_array(np.moveaxis(X, 1, -1), chunks=(90, 4, 5, 7)),
        np.moveaxis(X, 1, -1),
        {"channel_axis": -1},
    ),
    "flattened": (
        da.from_array(X.reshape(600, -1), chunks=(90, 140)),
        X.reshape(600, -1),
        {"map_shape": (7, 4, 5)},
    ),
    "free parts": (
        da.from_array(X, chunks=(90, 7, 4, 5)),
        X,
        {"nonnegative": False},
    ),
    "few": (da.from_array(X[:50], chunks=(9, 7, 4, 5)), X[:50], {}),
}


# Methods whose results are dask arrays, and their arguments.
LAZY = {
    "transform": {},
    "coefficients": {},
    "saliency": {},
    "localize": {"appearance": 1},
    "reconstruction_errors": {},
    "part_distances": {},
}


def assert_same(found, expected, tolerance):
    for name in (
        *("parts_", "appearances_", "saliency_mean_", "saliency_covariance_"),
        *("coefficient_mean_", "coefficient_covariance_"),
    ):
        its = getattr(expected, name)
        np.testing.assert_allclose(
            getattr(found, name), its, rtol=tolerance, atol=tolerance * abs(its).max()
        )


@pytest.mark.parametrize("name", CASES)
def test_the_factors_of_the_array_in_memory(name):
    blocked, array, params = CASES[name]
    one = PartsAppearanceDecomposition(**RANKS, **params).fit(array)
    found = PartsAppearanceDecomposition(**RANKS, **params).fit(blocked)
    tolerance = 1e-3 if array.dtype == np.float32 else 1e-5
    assert_same(found, one, tolerance)
    assert isinstance(found.parts_, np.ndarray)
    assert found.score(blocked) == pytest.approx(one.score(array), rel=1e-5)
    for method, arguments in LAZY.items():
        lazy = getattr(one, method)(blocked, **arguments)
        expected = getattr(one, method)(array, **arguments)
        assert isinstance(lazy, da.Array) and lazy.dtype == expected.dtype
        assert lazy.shape[1:] == expected.shape[1:]
        np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_that_cut_samples_are_joined():
    cut = da.from_array(X, chunks=(200, 3, 4, 2))
    with pytest.warns(UserWarning, match="blocks that cut samples") as seen:
        found = PartsAppearanceDecomposition(**RANKS).fit(cut)
    assert seen[0].filename == __file__ and "0.672 MB" in str(seen[0].message)
    assert_same(found, PartsAppearanceDecomposition(**RANKS).fit(X), 1e-5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found.transform(cut)
    assert len(caught) == 1


def test_bad_values_and_calls():
    spoilt = X.copy()
    spoilt[130, 2, 1, 3] = np.nan
    blocked = da.from_array(spoilt, chunks=(70, 7, 4, 5))
    panda = PartsAppearanceDecomposition(**RANKS)
    with pytest.raises(ValueError, match=r"NaN, first at X\[130, 2, 1, 3\]"):
        panda.fit(blocked)
    assert not hasattr(panda, "parts_")
    with pytest.raises(ValueError, match="draws samples at random"):
        panda.set_params(solver="pgd").fit(blocked)
    panda = PartsAppearanceDecomposition(**RANKS).fit(X)
    with pytest.raises(ValueError, match=r"NaN, first at X\[130, 2, 1, 3\]"):
        panda.transform(blocked).compute()
    with pytest.raises(ValueError, match="too large or small"):
        panda.reconstruction_errors(1e200 * da.from_array(X)).compute()
    good = da.from_array(X, chunks=(70, 7, 4, 5))
    with pytest.raises(ValueError, match="got a dask array"):
        panda.partial_fit(good)
    with pytest.raises(ValueError, match="but X is a dask array"):
        panda.transform(good, out=np.empty((600, 12)))
    with pytest.raises(ValueError, match="use its map_blocks"):
        panda.refine(good)
    with pytest.raises(TypeError, match="real numbers"):
        panda.fit(good.astype(complex))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        panda.fit(good[:, good[0, :, 0, 0] > -1e9])
    with torch.autocast("cpu"):
        lazy = panda.transform(good.astype("float32"))
        assert lazy.compute(scheduler="synchronous").dtype == np.float32
    with pytest.raises(ValueError, match="no samples"):
        PartsAppearanceDecomposition(**RANKS).fit(good[good[:, 0, 0, 0] > 1e9])
    with pytest.raises(ValueError, match="too large or small"):
        PartsAppearanceDecomposition(**RANKS).fit(1e-200 * good)


def test_a_block_of_small_values_alone_is_none_too_small():
    mixed = np.concatenate([1e-200 * X[:70], X[70:]])
    blocked = da.from_array(mixed, chunks=(70, 7, 4, 5))
    assert_same(
        PartsAppearanceDecomposition(**RANKS).fit(blocked),
        PartsAppearanceDecomposition(**RANKS).fit(mixed),
        1e-5,
    )


def die_once(block, marker):
    """End the worker that is the first to make a block of some samples."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    os._exit(1)


@pytest.mark.filterwarnings("ignore")  # of workers that go
def test_on_a_cluster(tmp_path):
    """Also when a worker is killed in mid-fit, and for a grid search."""
    one = PartsAppearanceDecomposition(**RANKS).fit(X)
    with (
        distributed.LocalCluster(
            n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        blocked = da.from_array(X, chunks=(70, 7, 4, 5))
        assert_same(PartsAppearanceDecomposition(**RANKS).fit(blocked), one, 1e-5)
        dying = blocked.map_blocks(die_once, str(tmp_path / "died"), meta=X[:0])
        assert_same(PartsAppearanceDecomposition(**RANKS).fit(dying), one, 1e-5)
        assert (tmp_path / "died").exists()
        search = GridSearchCV(
            PartsAppearanceDecomposition(random_state=0), {"n_parts": [1, 3]}, cv=2
        )
        with joblib.parallel_backend("dask"):
            search.fit(X[:100])
        assert search.best_params_ == {"n_parts": 3}
