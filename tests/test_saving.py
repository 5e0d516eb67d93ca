"""Fitted estimators kept by pickle, joblib, skops and `save`, and moved about."""

import copy
import dataclasses
import json
import os
import pickle
import threading
import tracemalloc
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas
import pytest
import skops.io
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from panda_sklearn import (
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn._state import FORMAT_VERSION, MIGRATIONS
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.decomposition import layout_of
from panda_sklearn.generators import fingerprint
from tests.emulated_cuda import emulated_cuda
from tests.nearness import assert_near

X = make_parts_appearances(
    30, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
)[0]
DATA = Path(__file__).parent / "data"
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
        ({"coefficient_mean_": np.ones((3, 4))}, "coefficient_mean_ is of shape"),
        (
            {"coefficient_covariance_": np.ones((3, 4))},
            "coefficient_covariance_ is of shape",
        ),
        (
            {"_coefficients.fields.cross": np.ones((3, 4, 3))},
            "cross of coefficients is of shape",
        ),
    ],
)
def test_arrays_that_do_not_fit(saved, arrays, part):
    rewrite(saved, arrays)
    with pytest.raises(ValueError, match=part):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"format_version": str(FORMAT_VERSION + 1)}, "format version '4'.*up to 3"),
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
        ({"_coefficients": 3}, "_coefficients is of type int"),
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


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION))
@pytest.mark.parametrize("kind", ["fitted", "streamed"])
def test_files_written_before(version, kind, tmp_path):
    """They hold what they held, and work; see tests/data/write_files.py."""
    path = DATA / f"{kind}_version{version}.safetensors"
    panda = PartsAppearanceDecomposition.load(path)
    with np.load(path.with_suffix(".npz")) as expected:
        assert_near(panda.transform(expected["X"]), expected["transformed"])
    if version == 1:
        assert panda.n_passes_ == 0
    with pytest.raises(ValueError, match="file that does not store them yet"):
        panda.variations(0)
    arrays = load_file(path)
    np.testing.assert_array_equal(panda.parts_, arrays["parts_"])
    panda.save(tmp_path / "again")
    again = PartsAppearanceDecomposition.load(tmp_path / "again")
    assert vars(again).keys() == vars(panda).keys()
    for name, value in vars(panda).items():
        assert_alike(getattr(again, name), value)
    if kind == "streamed":
        assert panda.partial_fit(X).n_samples_seen_ == 60
        assert len(panda.variations(0)[1]) == 4  # of what came since


def test_each_version_has_a_migration_to_the_next():
    assert list(MIGRATIONS) == list(range(1, FORMAT_VERSION))


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        PartsAppearanceDecomposition.load(tmp_path / "nothing")
    save_file({"x": np.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="does not hold"):
        PartsAppearanceDecomposition.load(tmp_path / "other")


def test_what_cannot_be_saved(tmp_path, saved):
    before = saved.read_bytes()
    with pytest.raises(NotFittedError):
        PartsAppearanceDecomposition().save(saved)
    panda = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    with pytest.raises(TypeError, match="layer must be"):
        panda.save(saved, layer=3)
    with pytest.raises(TypeError, match="network must be"):
        panda.save(saved, network=3)
    panda.extra_ = object()
    with pytest.raises(TypeError, match=r"extra_ is of type object.*joblib"):
        panda.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def edit(path, part, name, value):
    """Put a JSON value into a file's parameters or attributes."""
    with safe_open(path, framework="numpy") as file:
        state = json.loads(file.metadata()[part])
    rewrite(path, **{part: json.dumps(state | {name: value})})


KEYS = np.arange(624, dtype=np.uint32)


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (["MT19937", {"$array": "random_state.1"}, 2**31 - 1, 0, 0.0], KEYS),
        (["MT19937", {"$array": "random_state.1"}, -1, 0, 0.0], KEYS),
        (["MT19937", {"$array": "random_state.1"}, 1, 2, 0.0], KEYS),
        (["MT19937", {"$array": "random_state.1"}, 1, 1, float("nan")], KEYS),
        (["MT19937", {"$array": "random_state.1"}, True, 0, 0.0], KEYS),
        (["PCG64", {"$array": "random_state.1"}, 1, 0, 0.0], KEYS),
        (["MT19937", {"$array": "random_state.1"}, 1, 0, 0.0], 0 * KEYS),
        (["MT19937", {"$array": "random_state.1"}, 1, 0, 0.0], KEYS[1:]),
        (["MT19937", {"$array": "random_state.1"}, 1, 0, 0.0], KEYS.astype("i4")),
        (["MT19937", {"$array": "random_state.1"}, 1, 0], KEYS),
        (["MT19937", KEYS.tolist(), 2**31 - 1, 0, 0.0], None),
        ([], None),
    ],
)
def test_random_states_that_numpy_would_crash_on(saved, state, keys):
    edit(saved, "params", "random_state", {"$RandomState": state})
    rewrite(saved, {} if keys is None else {"random_state.1": keys})
    with pytest.raises(ValueError, match="cannot be read"):
        PartsAppearanceDecomposition.load(saved)


BIG = np.zeros(500_000, np.float16)  # 1 MB


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("params", "x", [{"$array": "big"}] * 300, "does not know"),
        ("params", "init", [{"$array": "big"}] * 300, "refers to the array 'big'"),
        ("params", "n_parts", 3, "nothing refers to .'big'"),
        ("params", "init", [[]] * 1_000_000, "bytes of the file"),
        ("attributes", "layer_", "x" * 3_000_000, "bytes of the file"),
    ],
)
def test_a_file_takes_little_more_memory_than_it_has(saved, part, name, value, message):
    edit(saved, part, name, value)
    rewrite(saved, {"big": BIG})
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        PartsAppearanceDecomposition.load(saved)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * BIG.nbytes


@pytest.mark.parametrize("depth", [20, 100_000])
def test_a_file_nested_deeply(saved, depth):
    rewrite(saved, params=f'{{"init": {"[" * depth}{"]" * depth}}}')
    with pytest.raises(ValueError, match="cannot be read"):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "gpu", "cannot be read"),
        ("device", "meta", "cannot be read"),
        ("device", {"torch.device": "meta"}, "cannot be read"),
        ("n_parts", 5, "3 parts|and 3"),
        ("n_parts", 10**6, "exceeds"),
        ("batch_size", 2**63, "beyond"),
        ("tol", 1e400, "not finite"),
        ("learning_rate", 0.1, "no learning rate"),
        ("map_shape", [], "map_shape"),
        ("map_shape", [6, "x"], "map_shape"),
        ("init", [], "pair"),
        ("init", [{"a": 1}, None], "parameters"),
        ("init", [[[1.0] * 7], [[[1.0]]]], "appearances of init"),
    ],
)
def test_parameters_that_would_fail_later(saved, name, value, message):
    edit(saved, "params", name, value)
    with pytest.raises(ValueError, match=message):
        PartsAppearanceDecomposition.load(saved)


def test_a_device_that_is_missing_here(saved):
    edit(
        saved, "params", "device", "hpu:3"
    )  # torch knows of it, and has no code for it
    loaded = PartsAppearanceDecomposition.load(saved)
    assert loaded.device is None
    loaded.transform(X)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"parts_": np.full((3, 4, 5), 1e300)}, "as large as"),
        ({"parts_": -np.ones((3, 4, 5))}, "negative"),
        ({"parts_": np.ones((3, 4, 5), "f4")}, "several types"),
        ({"parts_": np.ones((3, 4, 5), "f2")}, "no floating-point"),
        ({"parts_": np.ones((0, 4, 5))}, "parts_ is of shape"),
        ({"saliency_mean_": np.full(4, 1e300)}, "no covariance"),
        ({"saliency_covariance_": -np.eye(4)}, "no covariance"),
        ({"saliency_covariance_": 1e6 * np.triu(np.ones((4, 4)))}, "no covariance"),
        (
            {"coefficient_covariance_": -np.ones((3, 4, 4))},
            "coefficient_covariance_ of part 0 is no covariance",
        ),
        (
            {"coefficient_cross_covariance_": np.full((3, 4, 4), 1e300)},
            "coefficient_cross_covariance_ is too large",
        ),
        (
            {"coefficient_mean_": np.ones((4, 3), dtype="float32")},
            "are not of the type of the factors",
        ),
        (
            {"_coefficients.fields.own": -np.ones((3, 4, 4))},
            "scatter of coefficients of part 0 is no covariance",
        ),
        (
            {"_coefficients.fields.cross": np.full((3, 4, 4), 1e300)},
            "cross scatter of coefficients is too large",
        ),
        ({"_channels.fields.scatter": -np.eye(6) * 1e9}, "no covariance"),
        ({"_past.fields.of_parts.fields.M1": np.tri(20) / 9}, "no covariance"),
        ({"_past.fields.of_parts.fields.M1": np.eye(20) * 1e30}, "their energy"),
        ({"_past.fields.of_parts.fields.M2": np.eye(20) * 1e200}, "their energy"),
        ({"_past.fields.of_parts.fields.energy": np.array(-1.0)}, "their energy"),
    ],
)
def test_arrays_that_would_fail_later(saved, arrays, message, monkeypatch):
    monkeypatch.setattr("panda_sklearn.utils.persistence.STRIP", 3)
    PartsAppearanceDecomposition.load(saved)
    rewrite(saved, arrays)
    with pytest.raises(ValueError, match=message):
        PartsAppearanceDecomposition.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples_seen_": "x"}, "n_samples_seen_ is of type str"),
        ({"n_samples_seen_": 31}, "n_samples_seen_ is not 30"),
        ({"map_shape_": {"$tuple": [6, 4, 5, 1, 1]}}, "4 spatial axes"),
        ({"map_shape_": {"$tuple": [6]}}, "0 spatial axes"),
        ({"reconstruction_err_": 1e400}, "not finite"),
        ({"feature_names_in_": {"$names": list("abcdef")}}, "one name for each"),
    ],
)
def test_attributes_that_would_fail_later(saved, change, message):
    ((name, value),) = change.items()
    edit(saved, "attributes", name, value)
    with pytest.raises(ValueError, match=message):
        PartsAppearanceDecomposition.load(saved)


# Anything in place of anything: values of other types and sizes, and every tag.
POOL = [
    None, True, -1, 0, 1, 2, 7, 2**31 - 1, 2**53, 2**63, 10**400, 0.5, -1e-3, 1e30,
    1e300, float("nan"), float("inf"), "", "x", "gpu", "meta", "cuda:7", "npu", "adam",
    "\ud800", [], {}, [3, 4], [[1.0] * 6] * 4, [["a"]], [6, 4, 5], [1, 1, 1, 1, 1, 1],
    {"$tuple": []}, {"$tuple": 3}, {"$tuple": [6, 4, 5]}, {"$tuple": [6, 0, 5]},
    {"$tuple": [6, 1, 4, 5, 1]}, {"$names": ["a"]}, {"$names": 3}, {"$names": [[1]]},
    {"$array": "parts_"}, {"$array": []}, {"$array": None}, {"$RandomState": []},
    {"$RandomState": ["MT19937", [0] * 624, 0, 0, 0.0]}, {"tensor": 3, "device": "cpu"},
    {"tensor": {"$array": "parts_"}, "device": []}, {"torch.device": "meta"},
    {"torch.device": 3}, {"torch.device": "cuda"}, {"record": "Past", "fields": {}},
    {"record": [], "fields": 3}, {"record": "Moments", "fields": {"M1": 1}},
]  # fmt: skip


def nodes(value, into=None):
    """Every container in a JSON value, with each of its keys."""
    into = [] if into is None else into
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            into.append((value, key))
            nodes(value[key], into)
    return into


def change_values(rng, value):
    """Replace, copy, wrap, double or drop a few of the values within a value."""
    for _ in range(rng.integers(1, 3)):
        places = nodes(value)
        if not places:
            return
        holder, key = places[rng.integers(len(places))]
        other, there = places[rng.integers(len(places))]
        way = rng.integers(8)
        if way == 0:
            holder[key] = copy.deepcopy(other[there])
        elif way == 1:
            holder[key] = [holder[key]] * int(rng.integers(1, 4))
        elif way == 2:
            for _ in range(rng.choice([3, 40])):
                holder[key] = {"$tuple": [holder[key]]}
        elif way == 3:
            del holder[key]
        elif way == 4 and type(holder[key]) in (int, float):
            holder[key] = holder[key] * 2 + int(rng.integers(-2, 2))
        else:
            holder[key] = copy.deepcopy(POOL[rng.integers(len(POOL))])


def mutated(rng, whole):
    """A file with something wrong in it, or not: bytes, header, metadata or values."""
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), bytearray(whole[8 + size :])
    way = rng.integers(8)
    if way == 0:  # bytes anywhere
        whole = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 9)):
            whole[place] ^= 1 << rng.integers(8)
        return bytes(
            whole[: len(whole) - rng.choice([0, 0, 0, 1, 100, len(whole) - 9])]
        )
    if way == 1:  # what safetensors keeps
        change_values(rng, header)
    elif way == 2:  # numbers
        values = np.array([np.nan, -np.inf, -1, 0, 1e-300, 1e30, 1e300, -1e9, 1e9])
        value = values[rng.integers(9)].tobytes()
        place = 4 * int(rng.integers(len(data) // 4 - 1))
        data[place : place + len(value)] = value
    else:
        metadata = header["__metadata__"]
        part = str(rng.choice(["params", "attributes"]))
        state = json.loads(metadata[part])
        change_values(rng, state)
        metadata[part] = json.dumps(state)
        if rng.random() < 0.1:  # an array by another name
            name = list(header)[rng.integers(len(header))]
            header[str(rng.choice(["x", "init.0", "parts_"]))] = header.pop(name)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def use(panda, folder):
    """Everything that a fitted decomposition can do."""
    shape = (3, *layout_of(panda).sample_shape)
    X = np.random.default_rng(0).normal(size=shape)
    if hasattr(panda, "feature_names_in_"):
        X = pandas.DataFrame(X, columns=panda.feature_names_in_)
    T = panda.transform(X)
    assert T.shape == (3, len(panda.get_feature_names_out()))
    results = [T, panda.inverse_transform(T), panda.saliency(X), panda.score(X)]
    results += [panda.localize(X, 0), panda.refine(X, 2), panda.saliency_std_]
    panda.localize(X, 0, ("quantile", 0.5))
    clone(panda)
    pickle.loads(pickle.dumps(panda)).transform(X)
    panda.save(folder / "again")
    if hasattr(panda, "partial_fit"):
        panda.partial_fit(X)
        results.append(panda.transform(X))
        panda.save(folder / "again")
    for result in results:
        assert np.isfinite(np.asarray(result)).all()


@pytest.fixture
def files(tmp_path):
    """The bytes of files of all kinds."""
    path = tmp_path / "panda"
    frame = pandas.DataFrame(X[:, 0].reshape(30, 20)).rename(columns="x{}".format)
    start = (torch.eye(6)[:4], np.random.default_rng(0).random((3, 4, 5)))
    options = {"map_shape": [6, 4, 5], "device": torch.device("cpu"), "tol": 0.1}
    kinds = [
        (PartsAppearanceDecomposition(3, 4, random_state=0), torch.from_numpy(X)),
        (PartsAppearanceDecomposition(3, random_state=0), frame),
        (PartsAppearanceDecomposition(init=start, **options), X.reshape(30, 120)),
    ]
    stream = PartsAppearanceDecomposition(3, 4, random_state=np.random.RandomState(0))
    pandas_ = [stream.partial_fit(X), *(panda.fit(given) for panda, given in kinds)]
    contents = []
    for panda in pandas_:
        panda.save(path)
        contents.append(path.read_bytes())
    return contents


def test_mutated_files_are_refused_or_work(files, tmp_path):
    """Tens of thousands were, with other seeds."""
    rng, worked, path = np.random.default_rng(0), 0, tmp_path / "panda"
    for i in range(200):
        path.write_bytes(mutated(rng, files[i % len(files)]))
        try:
            panda = PartsAppearanceDecomposition.load(path)
        except ValueError:
            continue
        use(panda, tmp_path)
        worked += 1
    assert 10 < worked < 100


@pytest.mark.parametrize("path", [None, 3, ["a"], b"a"], ids=repr)
def test_paths_of_other_types(path):
    with pytest.raises(TypeError, match="path must be"):
        PartsAppearanceDecomposition(2).fit(X).save(path)
    with pytest.raises(TypeError, match="path must be"):
        PartsAppearanceDecomposition.load(path)


def test_folders_in_place_of_files_and_folders_that_are_missing(tmp_path):
    panda = PartsAppearanceDecomposition(2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="folder"):
        PartsAppearanceDecomposition.load(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        panda.save(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        panda.save(tmp_path / "missing" / "panda")
    assert repr(str(tmp_path / "missing")) in str(caught.value)
    assert ".part" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_a_save_that_fails_leaves_nothing(saved, monkeypatch, error):
    before = saved.read_bytes()
    panda = PartsAppearanceDecomposition.load(saved)

    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((KeyboardInterrupt, OSError)) as caught:
        panda.save(saved)
    assert ".part" not in str(caught.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_threads_that_save_to_one_path(saved):
    panda = PartsAppearanceDecomposition.load(saved)
    errors, started = [], threading.Barrier(4)

    def work(act):
        started.wait()
        try:
            for _ in range(25):
                act(saved)
        except Exception as error:
            errors.append(error)

    acts = [panda.save] * 3 + [PartsAppearanceDecomposition.load]
    threads = [threading.Thread(target=work, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    "params", [{"n_parts": 5}, {"tol": -1}, {"map_shape": (6, 5, 4)}, {"init": [1]}]
)
def test_what_would_not_load_is_not_saved(saved, params):
    before = saved.read_bytes()
    panda = PartsAppearanceDecomposition.load(saved).set_params(**params)
    with pytest.raises(ValueError, match=next(iter(params)) + "|parts"):
        panda.save(saved)
    assert saved.read_bytes() == before


def test_a_random_state_of_another_algorithm_is_not_saved(saved):
    panda = PartsAppearanceDecomposition.load(saved)
    panda.random_state = np.random.RandomState(np.random.PCG64(0))
    with pytest.raises(TypeError, match="random_state is of type RandomState"):
        panda.save(saved)


def test_a_file_says_which_network_its_factors_are_of(tmp_path):
    path = tmp_path / "panda.safetensors"
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1))
    images = torch.rand(5, 2, 4, 4)
    extractor = GeneratorFeatureExtractor(network, "0").fit(images)
    panda = PartsAppearanceDecomposition(2, 2, random_state=0)
    panda.fit(extractor.transform(images)).save(path, network=network)
    again = PartsAppearanceDecomposition.load(path)
    assert again.network_ == fingerprint(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalEditor(extractor, again)
        LocalEditor(extractor, panda)  # nothing is known of its network
    again.save(path)
    again = PartsAppearanceDecomposition.load(path)
    network[1].weight.data += 1
    with pytest.warns(UserWarning, match="other weights"):
        LocalEditor(extractor, again)
    again.save(path, network=fingerprint(network))
    LocalEditor(extractor, PartsAppearanceDecomposition.load(path))
    assert not hasattr(again.fit(torch.rand(5, 3, 4, 4)), "network_")
