"""The extractor when the accelerator's memory runs out."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

from panda_sklearn import Edit, LocalEditor, PartsAppearanceDecomposition
from tests.networks import TinyGenerator
from tests.test_feature_extractor import make_extractor


@pytest.fixture
def z():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


class Hungry(nn.Module):
    """Runs out of memory with batches of more than ``limit`` samples."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.sizes = limit, []
        self.layer = nn.Linear(6, 4)

    def forward(self, z):
        self.sizes.append(len(z))
        if len(z) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return self.layer(z)[:, :, None]


@pytest.mark.parametrize("method", ["transform", "generate", "fit_transform"])
def test_batches_are_halved_until_they_fit(z, method):
    network = Hungry(2)
    extractor = make_extractor(network, "layer", batch_size=7)
    if method != "fit_transform":
        extractor.fit(z)
    network.sizes.clear()
    with torch.no_grad():
        expected = network.layer.weight @ z.T + network.layer.bias[:, None]
    with pytest.warns(UserWarning, match="batches of 7 samples: went on with 1"):
        result = getattr(extractor, method)(z)
    torch.testing.assert_close(result.reshape(7, 4), expected.T)
    assert network.sizes == [7, 3, *[1] * 7]
    network.sizes.clear()
    extractor.generate(z)  # remembers the size, and does not warn again
    assert network.sizes == [1] * 7
    assert extractor.batch_size == 7
    assert "_batch_that_fits" not in pickle.loads(pickle.dumps(extractor)).__dict__


@pytest.mark.gpu
def test_batches_are_halved_until_they_fit_on_a_real_device(z):
    class Greedy(nn.Module):
        """Needs 0.4 of the device's memory for each sample."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, z):
            n_bytes = int(0.4 * torch.cuda.get_device_properties(0).total_memory)
            torch.empty(len(z), n_bytes, dtype=torch.uint8, device=z.device)
            return self.layer(z)

    network = Greedy().cuda()
    latents = z.cuda()
    extractor = make_extractor(network, "layer", batch_size=7).fit(latents)
    with pytest.warns(UserWarning, match="samples: went on with"):
        features = extractor.transform(latents)
    with torch.no_grad():
        torch.testing.assert_close(features, network.layer(latents))
    torch.cuda.empty_cache()


def test_another_batch_size_is_tried_afresh(z):
    network = Hungry(2)
    extractor = make_extractor(network, "layer", batch_size=4).fit(z)
    with pytest.warns(UserWarning, match="went on with 2"):
        extractor.transform(z)
    network.limit = 9
    network.sizes.clear()
    extractor.transform(z)
    assert max(network.sizes) == 2
    network.sizes.clear()
    extractor.set_params(batch_size=7).transform(z)
    assert network.sizes == [7]


def test_fit_with_memory_for_one_sample(z):
    extractor = make_extractor(Hungry(1), "layer").fit(z)
    assert extractor.feature_shape_ == (4,)


@pytest.mark.parametrize(
    "message", ["MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_memory_that_runs_out_by_other_errors(z, message):
    class Other(Hungry):
        def forward(self, z):
            try:
                return super().forward(z)
            except torch.OutOfMemoryError:
                raise RuntimeError(message) from None

    extractor = make_extractor(Other(3), "layer", batch_size=7).fit(z)
    with pytest.warns(UserWarning, match="went on with 3") as caught:
        assert extractor.generate(z).shape == (7, 4, 1)
    assert caught[0].filename == __file__  # the line that called
    other_error = make_extractor(Hungry(9), "layer", forward=lambda g, z: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other_error.fit(z)


@pytest.mark.usefixtures("refining_briefly")
def test_memory_runs_out_while_strengths_are_searched(z):
    """The search goes on with parts of its batches."""
    network = TinyGenerator()
    pipeline = make_pipeline(
        make_extractor(network, batch_size=7),
        PartsAppearanceDecomposition(2, 3, max_iter=20, tol=0, random_state=0),
    ).fit(z)
    editor = LocalEditor.from_pipeline(pipeline)
    edits = [Edit(0, 1, np.arange(1.0, 8)), Edit(1, 0, 2.0)]
    for refine in (False, True):
        expected = editor.edit(z, edits, target_change=0.05, refine=refine)

        def refuse(layer, args):
            if len(args[0]) > 2:
                raise torch.OutOfMemoryError

        handle = network.block2.register_forward_pre_hook(refuse)
        with pytest.warns(UserWarning, match="went on with 1"):
            edited = editor.edit(z, edits, target_change=0.05, refine=refine)
        handle.remove()
        # A factor is found to about 1e-5; a refinement magnifies rounding errors.
        torch.testing.assert_close(edited, expected, atol=1e-3, rtol=1e-3)
        del pipeline[0]._batch_that_fits


def test_a_single_sample_that_does_not_fit(z):
    network = Hungry(9)
    extractor = make_extractor(network, "layer").fit(z)
    network.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        extractor.generate(z)
    network.limit = 9
    assert extractor.generate(z).shape == (7, 4, 1)
    assert not network.layer._forward_hooks


def test_memory_of_a_failed_batch_is_free_for_the_next(z):
    alive = []

    class Watched(Hungry):
        def forward(self, z):
            gc.collect()
            if alive:
                assert alive[-1]() is None
            x = 2 * z
            alive.append(weakref.ref(x))
            return super().forward(x)

    extractor = make_extractor(Watched(3), "layer", batch_size=7).fit(z[:1])
    with pytest.warns(UserWarning, match="went on with"):
        extractor.generate(z)
    assert len(alive) > 3
