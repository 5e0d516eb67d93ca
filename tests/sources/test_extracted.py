"""Activations made anew in each pass, or written batch by batch."""

import copy
import pickle

import h5py
import numpy as np
import pytest
import torch
import zarr
from sklearn import set_config
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.memory import TensorMemory
from panda_sklearn.sources import ExtractedBatches, is_source, open_source
from panda_sklearn.utils.arrays import MapLayout
from panda_sklearn.utils.turns import _line
from tests.bad_values import counted_passes
from tests.networks import TinyGenerator

LAYOUT = MapLayout((5, 4, 4))


@pytest.fixture
def network():
    return TinyGenerator()


@pytest.fixture
def z():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def extractor(network, z):
    return GeneratorFeatureExtractor(network, "block1", batch_size=3).fit(z)


class Last(BaseEstimator):
    """The end of a pipeline: keeps what it was given."""

    def fit(self, X, y=None):
        self.X_ = X
        return self

    def transform(self, X):
        return X


def joined(batches):
    return torch.cat([torch.as_tensor(batch) for batch in batches])


def test_batches_are_the_activations(extractor, z):
    expected = extractor.transform(z)
    batches = extractor.batches(z)
    assert [len(features) for features in batches] == [3, 3, 2]
    assert len(batches) == 3 and batches.n_samples == 8
    for _ in range(2):
        assert all(type(features) is torch.Tensor for features in batches)
        torch.testing.assert_close(joined(batches), expected)


def test_numpy_in_numpy_out(extractor, z):
    batches = extractor.batches(z.numpy())
    assert all(isinstance(features, np.ndarray) for features in batches)
    np.testing.assert_allclose(joined(batches), extractor.transform(z), atol=1e-6)


def test_as_a_source(extractor, z):
    batches = extractor.batches(z)
    assert is_source(batches)
    with counted_passes() as n_modules:
        source = open_source(batches)
        assert source.shape == (8, 5, 4, 4) and source.origin.tensor
        samples = source.samples(LAYOUT, batch_size=5)
        assert n_modules() == 0  # it is known beforehand what they are like
        found = torch.cat(list(samples.map(torch.clone)))
        once = n_modules()
        assert once > 0
        samples.accumulate(lambda batch: None)
        assert n_modules() == 2 * once and samples.n_passes == 2
    torch.testing.assert_close(found, extractor.transform(z).flatten(2))
    assert open_source(extractor.batches(z.numpy())).origin.tensor is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision(network, z, dtype):
    extractor = GeneratorFeatureExtractor(network.to(dtype), "block1").fit(z)
    source = open_source(extractor.batches(z))
    double = dtype == torch.float64
    assert source.dtype == (torch.float64 if double else torch.float32)
    torch.testing.assert_close(
        torch.cat(list(source.read())), extractor.transform(z).to(source.dtype)
    )


def test_latents_are_checked_at_the_call(extractor, z):
    with counted_passes() as n_modules:
        for bad, message in ((z[:, :5], "latents"), (z * torch.nan, "latents")):
            with pytest.raises(ValueError, match=message):
                extractor.batches(bad)
        batches = extractor.batches(z)
        assert n_modules() == 0
    with pytest.raises(NotFittedError):
        clone(extractor).batches(z)
    z[:] = torch.nan  # not looked at again
    assert joined(batches).isnan().all()


def test_later_changes_of_the_transformer_do_not_matter(extractor, z):
    expected = extractor.transform(z)
    batches = extractor.batches(z)
    extractor.set_params(layer="block2", batch_size=1).fit(z)
    assert [len(features) for features in batches] == [3, 3, 2]
    torch.testing.assert_close(joined(batches), expected)


def state_of(network):
    modes = [module.training for module in network.modules()]
    hooks = [len(module._forward_hooks) for module in network.modules()]
    return modes, hooks, torch.is_grad_enabled(), torch.get_rng_state().tolist()


@pytest.fixture
def in_training(network):
    """A network of which some parts train, and what it is like."""
    network.train()
    network.block1.eval()
    return copy.deepcopy(state_of(network))


def test_the_process_is_as_it_was_between_batches(network, z, extractor, in_training):
    network.noise = 1.0
    for _ in extractor.batches(z):
        assert torch.is_grad_enabled()
        assert torch.get_rng_state().tolist() == in_training[3]
        assert state_of(network) == in_training
    assert state_of(network) == in_training


@pytest.mark.parametrize("way", ["break", "interrupt", "close", "error"])
def test_the_network_is_given_back(way, network, z, extractor, in_training):
    batches = extractor.batches(z)
    if way == "break":
        for _ in batches:
            break
    elif way == "close":
        passing = iter(batches)
        next(passing)
        passing.close()
    else:
        error = {"interrupt": KeyboardInterrupt, "error": ZeroDivisionError}[way]

        def stop(batch):
            raise error

        with pytest.raises(error):
            open_source(batches).samples(LAYOUT, batch_size=2).accumulate(stop)
    assert state_of(network) == in_training and not _line


def test_an_interrupt_inside_the_network(network, z, extractor, in_training):
    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = network.block1.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(extractor.batches(z))
    handle.remove()
    assert state_of(network) == in_training and not _line


def test_passes_at_a_time(network, z, extractor, in_training):
    batches = extractor.batches(z)
    for one, other in zip(batches, batches, strict=True):
        torch.testing.assert_close(one, other)
    assert state_of(network) == in_training and not _line


# Streams.


@pytest.mark.parametrize("fit", [True, False])
def test_a_stream_in_a_pipeline(network, z, extractor, fit):
    pipeline = make_pipeline(clone(extractor).set_params(stream=True), Last())
    pipeline.fit(z)
    found = pipeline[-1].X_ if fit else pipeline.transform(z)
    assert isinstance(found, ExtractedBatches)
    torch.testing.assert_close(joined(found), extractor.transform(z))


def test_fitting_a_stream_runs_the_network_on_two_samples(network, z, extractor):
    seen = []
    handle = network.dense.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    extractor.set_params(stream=True).fit_transform(z)
    handle.remove()
    assert seen == [2]


def test_a_stream_through_a_cache(network, z, extractor, tmp_path):
    expected = extractor.transform(z)
    pipeline = make_pipeline(
        extractor.set_params(stream=True), Last(), memory=TensorMemory(tmp_path)
    )
    for _ in range(2):
        found = pipeline.fit(z)[-1].X_
        assert isinstance(found, ExtractedBatches)
        torch.testing.assert_close(joined(found), expected)
        transformed = pipeline.transform(z)
        assert isinstance(transformed, ExtractedBatches)
        torch.testing.assert_close(joined(transformed), expected)


def test_pickles(z):
    network = nn.Sequential(nn.Linear(6, 80), nn.Unflatten(1, (5, 4, 4)))
    extractor = GeneratorFeatureExtractor(network, "1", batch_size=3).fit(z)
    again = pickle.loads(pickle.dumps(extractor.batches(z)))
    torch.testing.assert_close(joined(again), extractor.transform(z))


def test_edits_by_a_transformer_that_streams(extractor, z):
    panda = PartsAppearanceDecomposition(2, 3, max_iter=3, tol=0, random_state=0)
    panda.fit(extractor.transform(z))
    expected = LocalEditor(extractor, panda).edit(z, Edit(1, 0, 2.0))
    extractor.set_params(stream=True)
    torch.testing.assert_close(
        LocalEditor(extractor, panda).edit(z, Edit(1, 0, 2.0)), expected
    )


# out=


def made_array(path, shape):
    return np.zeros(shape, "f4")


def made_tensor(path, shape):
    return torch.zeros(shape)


def made_memmap(path, shape):
    return np.memmap(path / "X", dtype="f2", mode="w+", shape=shape)


def made_hdf5(path, shape):
    return h5py.File(path / "X.h5", "w").create_dataset("X", shape, "f4")


def made_zarr(path, shape):
    return zarr.create_array(path / "X.zarr", shape=shape, dtype="f4")


@pytest.mark.parametrize(
    "make", [made_array, made_tensor, made_memmap, made_hdf5, made_zarr]
)
def test_activations_go_into_out(extractor, z, make, tmp_path):
    out = make(tmp_path, (8, 5, 4, 4))
    expected = extractor.transform(z)
    assert extractor.transform(z, out=out) is out
    tolerance = 1e-3 if make is made_memmap else 1e-6  # half precision
    np.testing.assert_allclose(out[:], expected, atol=tolerance)


def test_out_is_checked_before_the_network_runs(extractor, z):
    with counted_passes() as n_modules:
        with pytest.raises(ValueError, match=r"out must be .*\(8, 5, 4, 4\)"):
            extractor.transform(z, out=np.zeros((7, 5, 4, 4)))
        with pytest.raises(ValueError, match="stream=False"):
            extractor.set_params(stream=True).transform(z, out=np.zeros((8, 5, 4, 4)))
        assert n_modules() == 0


def test_out_and_a_cache(extractor, z, tmp_path):
    """What is written is not remembered, nor read from what is."""
    extractor._memory = TensorMemory(tmp_path / "cache")
    extractor.transform(z, out=(out := np.zeros((8, 5, 4, 4))))
    assert not (tmp_path / "cache").exists() and out.any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_a_failing_out(network, z, extractor, in_training, error):
    class Failing:
        shape, dtype = (8, 5, 4, 4), np.dtype("f4")

        def __setitem__(self, rows, values):
            if rows.stop > 6:
                raise error

    with pytest.raises((KeyboardInterrupt, OSError)) as caught:
        extractor.transform(z, out=Failing())
    assert "results of 6 of its 8 samples were written" in caught.value.__notes__[0]
    assert state_of(network) == in_training and not _line


def test_out_is_no_metadata(extractor):
    set_config(enable_metadata_routing=True)
    try:
        assert not extractor.get_metadata_routing().transform.requests
    finally:
        set_config(enable_metadata_routing=False)


def test_one_batch_is_held_at_a_time(network, z):
    """Activations of earlier batches are gone when the next is made."""
    import weakref

    extractor = GeneratorFeatureExtractor(network, "block1", batch_size=1).fit(z)
    alive, most = weakref.WeakSet(), []

    def note(module, args, output):
        alive.add(output)
        most.append(len(alive))

    handle = network.block1.register_forward_hook(note)
    open_source(extractor.batches(z)).samples(LAYOUT, batch_size=1).accumulate(
        lambda batch: None
    )
    handle.remove()
    assert len(most) == 8 and max(most) <= 2
