"""Fitted estimators kept by pickle, joblib, skops and `save`, and moved about."""

import copy
import dataclasses
import json
import pickle

import joblib
import numpy as np
import pytest
import skops.io
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.utils.persistence import FORMAT_VERSION
from tests.emulated_cuda import emulated_cuda
from tests.nearness import assert_near

X = make_parts_appearances(
    30, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
)[0]
OURS = "panda_sklearn.decomposition.PartsAppearanceDecomposition"


def kept_by_pickle(panda, folder):
    return pickle.loads(pickle.dumps(panda))


def kept_by_joblib(panda, folder):
    joblib.dump(panda, folder / "panda.joblib")
    return joblib.load(folder / "panda.joblib")


def mapped_by_joblib(panda, folder):
    joblib.dump(panda, folder / "panda.joblib")
    return joblib.load(folder / "panda.joblib", mmap_mode="r")


def kept_by_skops(panda, folder):
    skops.io.dump(panda, folder / "panda.skops")
    assert skops.io.get_untrusted_types(file=folder / "panda.skops") == [OURS]
    return skops.io.load(folder / "panda.skops", trusted=[OURS])


def kept_by_save(panda, folder):
    panda.save(folder / "panda.safetensors")
    return PartsAppearanceDecomposition.load(folder / "panda.safetensors")


def copied(panda, folder):
    return copy.copy(panda)


def deeply_copied(panda, folder):
    return copy.deepcopy(panda)


WAYS = [
    kept_by_pickle,
    kept_by_joblib,
    mapped_by_joblib,
    kept_by_skops,
    kept_by_save,
    copied,
    deeply_copied,
]


def in_one_go(panda, X):
    return panda.fit(X)


def in_a_stream(panda, X):
    return panda.partial_fit(X[:15])


def assert_alike(one, other):
    assert isinstance(one, type(other))  # a memory map is an array
    if isinstance(one, torch.Tensor | np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert bool((one == other).all())
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_alike(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("fit", [in_one_go, in_a_stream])
def test_every_way_to_keep_it(way, kind, fit, tmp_path):
    given = kind(X.astype("float32"))
    panda = PartsAppearanceDecomposition(3, 4, random_state=0, device="cpu")
    fit(panda, given)
    kept = way(panda, tmp_path)
    assert vars(kept).keys() == vars(panda).keys()
    for name, value in vars(panda).items():
        assert_alike(getattr(kept, name), value)
    # What is computed from it is rounded otherwise, where it lies elsewhere in memory.
    assert_near(kept.transform(given), panda.transform(given))
    refined = (p.refine(given[:2], max_iter=5) for p in (kept, panda))
    assert_near(*refined, 1e-3)
    # A stream goes on where it was; iterations in single precision magnify roundings.
    kept.partial_fit(given[15:])
    panda.partial_fit(given[15:])
    assert_near(kept.parts_, panda.parts_, 1e-2)


@pytest.mark.parametrize("way", WAYS)
def test_options_of_all_kinds(way, tmp_path):
    start = (torch.eye(6)[:4], torch.rand(3, 4, 5))
    panda = PartsAppearanceDecomposition(
        init=start, device=torch.device("cpu"), map_shape=[6, 4, 5], tol=1e-3
    )
    panda.fit(torch.from_numpy(X))
    kept = way(panda, tmp_path)
    params = panda.get_params()
    assert params.keys() == kept.get_params().keys()
    for name, value in kept.get_params().items():
        assert_alike(value, params[name])


def test_names_of_columns_and_random_states(tmp_path):
    import pandas

    frame = pandas.DataFrame(X[:, 0].reshape(30, 20)).rename(columns="x{}".format)
    panda = PartsAppearanceDecomposition(2, random_state=np.random.RandomState(3))
    kept = kept_by_save(panda.fit(frame), tmp_path)
    assert kept.feature_names_in_.tolist() == panda.feature_names_in_.tolist()
    assert kept.random_state.randint(10**6) == panda.random_state.randint(10**6)


def test_fitted_on_cuda_and_loaded_without(tmp_path):
    with emulated_cuda() as device:
        panda = PartsAppearanceDecomposition(3, 4, random_state=0)
        panda.partial_fit(torch.from_numpy(X).to(device))
        expected = panda.transform(X)
        pickled = pickle.dumps(panda)
        panda.save(tmp_path / "panda.safetensors")
        skops.io.dump(panda, tmp_path / "panda.skops")
        # Where there is the device they are on it.
        assert pickle.loads(pickled).parts_.device == device
        assert copy.deepcopy(panda).parts_.device == device
        loaded = PartsAppearanceDecomposition.load(tmp_path / "panda.safetensors")
        assert loaded.parts_.device == device
        np.testing.assert_allclose(loaded.transform(X), expected)
    for kept in (
        pickle.loads(pickled),
        PartsAppearanceDecomposition.load(tmp_path / "panda.safetensors"),
        skops.io.load(tmp_path / "panda.skops", trusted=[OURS]),
    ):
        assert kept.parts_.device.type == "cpu"
        np.testing.assert_allclose(kept.transform(X), expected)
        kept.partial_fit(X[:5])


def test_what_the_file_holds(tmp_path):
    path = tmp_path / "panda.safetensors"
    panda = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    panda.save(path, layer="block16")
    arrays = load_file(path)
    np.testing.assert_array_equal(arrays["parts_"], panda.parts_)
    np.testing.assert_array_equal(arrays["appearances_"], panda.appearances_)
    np.testing.assert_array_equal(arrays["saliency_mean_"], panda.saliency_mean_)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == str(FORMAT_VERSION)
    assert json.loads(metadata["params"])["n_parts"] == 3
    assert json.loads(metadata["versions"])["panda_sklearn"]
    loaded = PartsAppearanceDecomposition.load(path)
    assert loaded.layer_ == "block16" and loaded.map_shape_ == (6, 4, 5)
    loaded.save(path)  # over itself
    assert PartsAppearanceDecomposition.load(path).layer_ == "block16"
    assert not hasattr(loaded.fit(X), "layer_")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # as the process's mask says


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "panda.safetensors"
    PartsAppearanceDecomposition(3, 4, random_state=0).partial_fit(X).save(path)
    return path


def rewrite(path, arrays=None, **metadata):
    with safe_open(path, framework="numpy") as file:
        before = file.metadata()
    save_file(load_file(path) | (arrays or {}), path, before | metadata)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_off(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"parts_": np.ones((3, 4, 6))}, "parts_ is of shape"),
        ({"appearances_": np.ones((4, 7))}, "appearances_ is of shape"),
        ({"saliency_mean_": np.ones(3)}, "saliency_mean_ is of shape"),
        ({"objective_history_": np.ones((2, 2))}, "objective_history_ is of shape"),
        ({"parts_": np.full((3, 4, 5), np.nan)}, "parts_ holds NaN"),
        ({"_past.fields.of_parts.fields.M1": np.eye(3)}, "M1 of parts is of shape"),
        ({"_channels.fields.mean": np.ones(2)}, "mean of channels is of shape"),
    ],
)
def test_arrays_that_do_not_fit(saved, arrays, part):
    rewrite(saved, arrays)
    with pytest.raises(ValueError, match=part):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"format_version": str(FORMAT_VERSION + 1)}, "format version '2'.*up to 1"),
        ({"format_version": "x"}, "format version 'x'"),
        ({"kind": "Other"}, "does not hold"),
        ({"params": "{"}, "cannot be read"),
        ({"params": "[1]"}, "cannot be read"),
        ({"params": '{"n_parts": {"$array": "nowhere"}}'}, "cannot be read"),
        ({"params": '{"n_parts": {"record": "x", "fields": {}}}'}, "cannot be read"),
        ({"params": '{"n_party": 3}'}, r"\['n_party'\]"),
        ({"params": '{"n_parts": -3}'}, "n_parts"),
        ({"params": '{"device": {"torch.device": "x:y"}}'}, "cannot be read"),
        ({"attributes": '{"parts_": 3}'}, "are missing"),
        ({"attributes": '{"fit": 3}'}, r"\['fit'\]"),
    ],
)
def test_files_that_cannot_be_read(saved, metadata, part):
    rewrite(saved, **metadata)
    with pytest.raises(ValueError, match=part):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"n_iter_": "x"}, "n_iter_ is of type str, expected int"),
        ({"n_iter_": -1}, "objective_history_ is of shape"),
        ({"n_features_in_": 7}, "n_features_in_ is 7, expected 6"),
        ({"_flattened": 1}, "_flattened is of type int, expected bool"),
        ({"_flattened": True}, "n_features_in_ is 6, expected 120"),
        ({"reconstruction_err_": None, "layer_": 3}, "layer_ is of type int"),
        ({"_past": 3}, "_past is of type int"),
        ({"feature_names_in_": {"$names": ["a"]}}, "feature_names_in_ is of shape"),
        ({"map_shape_": {"$tuple": [6, 10**12, 5]}}, "parts_ is of shape"),
        ({"map_shape_": [6, 4, 5]}, "map_shape_ is"),
        ({"parts_": {"tensor": 3, "device": "cpu"}}, "cannot be read"),
    ],
)
def test_attributes_that_do_not_fit(saved, change, part):
    with safe_open(saved, framework="numpy") as file:
        attributes = json.loads(file.metadata()["attributes"])
    rewrite(saved, attributes=json.dumps(attributes | change))
    with pytest.raises(ValueError, match=part):
        PartsAppearanceDecomposition.load(saved)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        PartsAppearanceDecomposition.load(tmp_path / "nothing")
    save_file({"x": np.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="does not hold"):
        PartsAppearanceDecomposition.load(tmp_path / "other")


def test_what_cannot_be_saved(tmp_path, saved):
    from sklearn.exceptions import NotFittedError

    before = saved.read_bytes()
    with pytest.raises(NotFittedError):
        PartsAppearanceDecomposition().save(saved)
    panda = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    with pytest.raises(TypeError, match="layer must be"):
        panda.save(saved, layer=3)
    panda.extra_ = object()
    with pytest.raises(TypeError, match=r"extra_ is of type object.*joblib"):
        panda.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]
