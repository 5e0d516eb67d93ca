"""Fits by several processes, real ones, that talk by gloo over a file."""

import datetime
import functools
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import distributed as dist
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn._watching import FitWatcher
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.metrics import match_factors
from panda_sklearn.sources.ranks import _dumped, _loaded

# Seconds that a process waits for another, and that all may take.
TIMEOUT, ALL = 30, 90

# Converged further than usual: where a fit stops, rounding decides a digit earlier.
RANKS = {"n_parts": 3, "n_appearances": 4, "random_state": 0, "tol": 1e-9}
FITTED = (
    *("parts_", "appearances_", "saliency_mean_", "saliency_covariance_"),
    *("coefficient_mean_", "coefficient_covariance_", "reconstruction_err_"),
)


def data(n=600, seed=0):
    return make_parts_appearances(
        n, 3, 4, n_channels=7, spatial_shape=(4, 5), snr_db=5, random_state=seed
    )[0]


def in_group(function, rank, folder, results):
    """A process of two."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=TIMEOUT),
        )
        results.put((rank, function(rank)))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))
        raise


def two(function, folder, n_answers=2):
    """What a function of the rank returns in two processes, by rank."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=in_group, args=(function, rank, folder, results))
        for rank in range(2)
    ]
    found, end = {}, time.monotonic() + ALL
    try:
        for process in processes:
            process.start()
        while len(found) < n_answers:
            try:
                rank, answer = results.get(timeout=max(end - time.monotonic(), 0.1))
            except queue.Empty:
                break
            found[rank] = answer
    finally:
        for process in processes:
            if process.pid is not None:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
    return found


class Batches:
    """A re-iterable of batches, whose number nobody knows beforehand."""

    def __init__(self, X, act=None):
        self.X, self.act, self.n_begun = X, act, 0

    def __iter__(self):
        self.n_begun += 1
        for start in range(0, len(self.X), 64):
            if self.act is not None:
                self.act(self.n_begun)
            yield self.X[start : start + 64]


# Name -> the samples, where they are cut, parameters, and what a shard becomes.
CASES = {
    "uneven": (data(), 150, {}, None),
    "all kept": (data(60), 20, {}, None),
    "float32": (data().astype("float32"), 400, {}, None),
    "tensors": (data(), 300, {}, torch.from_numpy),
    "channels last": (np.moveaxis(data(), 1, -1), 250, {"channel_axis": -1}, None),
    "flattened": (data().reshape(600, -1), 250, {"map_shape": (7, 4, 5)}, None),
    "first shard tiny": (
        np.concatenate([1e-200 * data()[:150], data()[150:]]),
        150,
        {},
        None,
    ),
    "flattened, one has none": (
        data().reshape(600, -1),
        0,
        {"map_shape": (7, 4, 5)},
        lambda X: X if len(X) else None,
    ),
    "one axis": (data().reshape(600, 7, 20), 599, {}, None),
    "free parts": (data(), 250, {"nonnegative": False}, None),
    "drawn start": (data(), 250, {"init": "random", "n_init": 3}, None),
    "far from zero": (data() + 50, 250, {}, None),
    "first has none": (data(), 0, {}, None),
    "second has none": (data(), 600, {}, None),
    "none is None": (data(), 600, {}, lambda X: X if len(X) else None),
    "batches": (data(), 250, {}, Batches),
    "loaders": (
        data().astype("float32"),
        250,
        {},
        lambda X: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=50),
    ),
}


def shard_of(X, cut, rank, kind):
    shard = X[:cut] if rank == 0 else X[cut:]
    return shard if kind is None else kind(shard)


def fitted(estimator):
    found = {name: np.asarray(getattr(estimator, name)) for name in FITTED}
    return found | {"n_features_in_": np.asarray(estimator.n_features_in_)}


def streamed(estimator, pieces):
    for piece in pieces:
        estimator.partial_fit(piece)
    return estimator


def fit_all(rank):
    """Every case, in one pair of processes."""
    found = {}
    for name, (X, cut, params, kind) in CASES.items():
        panda = PartsAppearanceDecomposition(**RANKS, **params)
        panda.fit(shard_of(X, cut, rank, kind))
        found[name] = fitted(panda)
    batches = np.split(data(), 3)
    panda = streamed(
        PartsAppearanceDecomposition(**RANKS),
        [
            shard_of(X, cut, rank, None)
            for X, cut in zip(batches, (50, 0, 150), strict=True)
        ],
    )
    found["stream"] = fitted(panda) | {"seen": panda.n_samples_seen_}
    alone = PartsAppearanceDecomposition(**RANKS, distributed=False).fit(data(90, rank))
    found["alone"] = fitted(alone)
    return found


def test_the_factors_of_one_process(tmp_path):
    """To rounding; and on both the same bits."""
    both = two(fit_all, tmp_path)
    assert set(both) == {0, 1} and all(isinstance(f, dict) for f in both.values()), both
    for name, (X, _, params, _) in CASES.items():
        one = fitted(PartsAppearanceDecomposition(**RANKS, **params).fit(X))
        tolerance = 1e-5 if X.dtype == np.float64 else 1e-3
        for attribute, expected in one.items():
            found = [both[rank][name][attribute] for rank in (0, 1)]
            np.testing.assert_array_equal(*found, err_msg=f"{name}, {attribute}")
            np.testing.assert_allclose(
                found[0],
                expected,
                rtol=tolerance,
                atol=tolerance * abs(expected).max(),
                err_msg=f"{name}, {attribute}",
            )
    one = streamed(PartsAppearanceDecomposition(**RANKS), np.split(data(), 3))
    assert both[0]["stream"]["seen"] == 600
    for attribute, expected in fitted(one).items():
        found = [both[rank]["stream"][attribute] for rank in (0, 1)]
        np.testing.assert_array_equal(*found)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
    for rank in (0, 1):
        alone = fitted(PartsAppearanceDecomposition(**RANKS).fit(data(90, rank)))
        for attribute, expected in alone.items():
            np.testing.assert_allclose(both[rank]["alone"][attribute], expected)


def message_of(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail_in_turn(rank):
    """What each of some bad calls raises, one after the other in the same group."""
    said = {}

    def attempt(name, X, **params):
        panda = PartsAppearanceDecomposition(**{**RANKS, **params})
        said[name] = message_of(lambda: panda.fit(X))
        assert not hasattr(panda, "parts_"), name

    X = data(300)[rank * 100 : 300 if rank else 100].copy()
    spoilt = X.copy()
    if rank == 1:
        spoilt[7, 2, 3, 1] = np.nan
    attempt("nan", spoilt)
    attempt("shapes", X[:, :, : 4 - rank])
    attempt("types", X.astype(["float32", "float64"][rank]))
    attempt("parameters", X, tol=[1e-6, 1e-5][rank])
    attempt("solver", X, solver="pgd")
    attempt("no samples", X[:0])
    attempt("tiny", 1e-200 * X)
    attempt("bad input", X if rank else "nonsense")
    attempt("device", X if rank == 0 else None, device=["cpu", "cuda:7"][rank])

    def fail(n_begun):
        if rank == 1 and n_begun == 3:
            raise OSError("the disk is gone")

    attempt("source", Batches(X, fail))
    attempt("ranks", X, n_parts=500)
    one_goes_on = PartsAppearanceDecomposition(**RANKS)
    if rank == 0:
        one_goes_on.set_params(distributed=False).partial_fit(X)
        one_goes_on.set_params(distributed="auto")
    said["stream"] = message_of(lambda: one_goes_on.partial_fit(X))
    panda = PartsAppearanceDecomposition(**RANKS).fit(X)  # the group is as it was
    said["bytes"] = panda.n_bytes_sent_
    more = PartsAppearanceDecomposition(**{**RANKS, "max_iter": 1, "tol": 0})
    few, many = (more.fit(np.concatenate([X] * n)).n_bytes_sent_ for n in (45, 90))
    said["grows"] = many / few
    return said


def test_errors_are_those_of_all(tmp_path):
    both = two(fail_in_turn, tmp_path)
    assert set(both) == {0, 1} and all(isinstance(f, dict) for f in both.values()), both
    first, second = both[0], both[1]
    nan = "Input X contains NaN, first at X[7, 2, 3, 1]"
    assert second["nan"].startswith(f"ValueError: {nan}")
    assert first["nan"].startswith(f"ValueError: Process 1 of the group: {nan}")
    shapes = "those of process 0 are of shape (7, 4, 5) and those of process 1 of shape"
    for name, words in {
        "shapes": shapes,
        "types": "process 0 are float32 and those of process 1 float64",
        "parameters": "tol is 1e-06 of type float in process 0 and 1e-05 of type",
        "solver": "Use solver='spg', or distributed=False",
        "no samples": "No process has samples",
        "tiny": "too large or small",
        "ranks": "n_parts",
        "device": "cuda",
        "stream": "what was learnt so far is of 100 samples in process 0 and none in",
    }.items():
        for said in (first, second):
            assert said[name].startswith("ValueError: "), said[name]
            assert words in said[name]
    assert "Process 0 of the group" in second["bad input"]
    assert "the disk is gone" in second["source"]
    gone = "RuntimeError: Process 1 of the group: OSError: the disk is gone"
    assert first["source"] == gone
    assert first["bytes"] > 0
    # As many samples are kept of either, and sums are of the same sizes.
    assert first["grows"] == pytest.approx(1, abs=1e-2)


def interrupt_the_first(rank):
    """Ctrl-C while it works alone is told; in the middle of a sum it is not."""
    said = []

    def interrupt(n_begun):
        if rank == 0 and n_begun == 3:
            raise KeyboardInterrupt

    panda = PartsAppearanceDecomposition(**RANKS, verbose=int(rank == 0))
    try:
        with mock.patch("panda_sklearn._learning.FitWatcher", Interrupted):
            panda.fit(data(300))
    except BaseException as error:
        said.append(type(error).__name__ + str(error))
    start = time.monotonic()
    group = dist.new_group(timeout=datetime.timedelta(seconds=2))
    panda = PartsAppearanceDecomposition(**RANKS, distributed=group)
    try:
        panda.fit(Batches(data(300), interrupt))
    except BaseException as error:
        said.append(type(error).__name__ + str(error))
    return said, time.monotonic() - start


class Interrupted(FitWatcher):
    """Is interrupted at the end of the first iteration."""

    def end_iteration(self, objective, result):
        raise KeyboardInterrupt


def test_interrupts_of_the_first(tmp_path):
    both = two(interrupt_the_first, tmp_path)
    (first, seconds), (second, _) = both[0], both[1]
    assert first == ["KeyboardInterrupt", "KeyboardInterrupt"]
    assert seconds < 10
    assert second[0].startswith("RuntimeErrorProcess 0 of the group: KeyboardInterrupt")
    assert second[1].startswith("RuntimeErrorProcess 0 of the group: KeyboardInterrupt")


def fit_and_die(rank):
    def die(n_begun):
        if rank == 1 and n_begun == 3:
            os._exit(1)

    start = time.monotonic()
    panda = PartsAppearanceDecomposition(**RANKS)
    said = message_of(lambda: panda.fit(Batches(data(300), die)))
    return said, time.monotonic() - start


def stay_away(rank):
    impatient = dist.new_group(timeout=datetime.timedelta(seconds=2))
    if rank == 1:
        time.sleep(6)
        return "", 0
    start = time.monotonic()
    panda = PartsAppearanceDecomposition(**RANKS, distributed=impatient)
    said = message_of(lambda: panda.fit(data(60)))
    return said, time.monotonic() - start


@pytest.mark.parametrize("function", [fit_and_die, stay_away])
def test_processes_that_go_leave_an_error(function, tmp_path):
    answers = two(function, tmp_path, n_answers=1)
    said, seconds = answers[0]
    assert said.startswith("RuntimeError: Another process of the group has ended, or")
    assert seconds < 20


@pytest.fixture()
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("as_group", [False, True])
def test_a_group_of_one(alone, as_group):
    X = data(400)
    together = alone if as_group else True
    panda = PartsAppearanceDecomposition(**RANKS, distributed=together).fit(X)
    assert panda.n_bytes_sent_ > 0
    plain = PartsAppearanceDecomposition(**RANKS).fit(X)  # "auto", of one
    assert not hasattr(plain, "n_bytes_sent_")
    for attribute, expected in fitted(plain).items():
        found = fitted(panda)[attribute]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert not hasattr(panda.set_params(distributed=False).fit(X), "n_bytes_sent_")


def test_a_group_is_shared_by_clones_and_not_kept(alone, tmp_path):
    panda = PartsAppearanceDecomposition(**RANKS, distributed=alone)
    assert clone(panda).distributed is alone
    assert clone(panda).get_params() == panda.get_params()
    panda.fit(data(60))
    assert pickle.loads(pickle.dumps(panda)).distributed == "auto"
    panda.save(tmp_path / "file")
    again = PartsAppearanceDecomposition.load(tmp_path / "file")
    assert again.distributed == "auto"
    np.testing.assert_array_equal(again.parts_, panda.parts_)


def test_without_a_group():
    with pytest.raises(ValueError, match="this process is in no group"):
        PartsAppearanceDecomposition(**RANKS, distributed=True).fit(data(60))


def test_samplers_that_repeat_samples():
    dataset = TensorDataset(torch.from_numpy(data(61)))

    def loader(**options):
        sampler = DistributedSampler(dataset, 2, 0, shuffle=False, **options)
        return DataLoader(dataset, batch_size=8, sampler=sampler)

    with pytest.raises(ValueError, match="repeats some of the 61 samples"):
        PartsAppearanceDecomposition(**RANKS).fit(loader())
    PartsAppearanceDecomposition(**RANKS).fit(loader(drop_last=True))


def test_what_is_sent_arrives_where_it_is_needed():
    sent = {
        "add": functools.partial(max, 1),
        "T": torch.eye(2),
        "on": torch.device("cpu"),
    }
    found = _loaded(_dumped(sent), torch.device("meta"))
    assert found["T"].device.type == found["on"].type == "meta"
    assert found["add"](3) == 3


@pytest.mark.slow
def test_the_example(tmp_path):
    """From latents to factors in a file, by torchrun."""
    example = Path(__file__).parents[2] / "examples" / "distributed_fit.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(example), "--samples", "150"]
    path = tmp_path / "factors"
    ended = subprocess.run(
        [*command, "--path", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Process 1 of 2: 75 samples" in ended.stdout
    found = PartsAppearanceDecomposition.load(path)
    generator = load_face_generator()
    latents = sample_latents(generator, 150, random_state=0)
    latents = torch.cat([latents[::2], latents[1::2]])
    extractor = GeneratorFeatureExtractor(generator, "block16")
    one = PartsAppearanceDecomposition(12, 48, random_state=0)
    one.fit(extractor.fit_transform(latents))
    _, _, cosines = match_factors(found.parts_, one.parts_)
    assert min(cosines) > 0.99  # in single precision, at the default tol
