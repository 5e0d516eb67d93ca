"""The extractor on networks that run a layer many times, or multiply batches."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.memory import TensorMemory
from tests.networks import TinySteps

CALLS = [1, 3]


@pytest.fixture
def z():
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def fitted(z, network=None, **options):
    network = TinySteps() if network is None else network
    options = {"call": "all", "batch_size": 4, **options}
    return GeneratorFeatureExtractor(network, "block", **options).fit(z)


@pytest.fixture
def each(z):
    """Activations of each call, one by one."""
    return [fitted(z, call=c).transform(z) for c in range(4)]


@pytest.mark.parametrize(
    ("call", "chosen"),
    [
        ("all", [0, 1, 2, 3]),
        ([1, 3], [1, 3]),
        ([3, 1], [1, 3]),
        (slice(1, None), [1, 2, 3]),
        (slice(-1, None), [3]),
        (slice(None, None, 2), [0, 2]),
        (slice(None, None, -1), [0, 1, 2, 3]),
        (2, [2]),
    ],
)
class TestCalls:
    def test_samples(self, z, each, call, chosen):
        extractor = fitted(z, call=call)
        found = extractor.transform(z)
        assert found.shape == (6 * len(chosen), 5, 4, 4)
        assert extractor.feature_shape_ == (5, 4, 4)
        assert extractor.n_calls_ == len(chosen)
        split = extractor.split_calls(found)
        for k, c in enumerate(chosen):
            torch.testing.assert_close(split[:, k], each[c])

    def test_channels(self, z, each, call, chosen):
        extractor = fitted(z, call=call, calls_as="channels")
        found = extractor.transform(z)
        assert found.shape == (6, 5 * len(chosen), 4, 4)
        split = extractor.split_calls(found)
        for k, c in enumerate(chosen):
            torch.testing.assert_close(split[:, k], each[c])

    def test_mean(self, z, each, call, chosen):
        extractor = fitted(z, call=call, calls_as="mean")
        expected = torch.stack([each[c] for c in chosen]).mean(dim=0)
        torch.testing.assert_close(extractor.transform(z), expected)


@pytest.mark.parametrize("calls_as", ["samples", "channels", "mean"])
class TestAllWaysOfTaking:
    def test_give_the_same(self, z, calls_as, tmp_path):
        extractor = fitted(z, call=CALLS, calls_as=calls_as)
        found = extractor.transform(z)
        assert torch.equal(
            fitted(z[:1], call=CALLS, calls_as=calls_as).transform(z), found
        )
        out = np.zeros(found.shape, dtype=np.float32)
        assert extractor.transform(z, out=out) is out
        np.testing.assert_array_equal(out, found)
        batches = extractor.batches(z)
        assert batches.n_samples == len(found)
        assert torch.equal(torch.cat(list(batches)), found)
        assert isinstance(extractor.transform(z.numpy()), np.ndarray)
        once = clone(extractor).fit_transform(z)
        assert torch.equal(once, found)
        stored = make_pipeline(
            clone(extractor),
            PartsAppearanceDecomposition(2, 3, max_iter=3, tol=0),
            memory=TensorMemory(tmp_path),
        ).fit(z)
        assert torch.equal(stored[0].transform(z), found)

    def test_a_decomposition_of_a_stream(self, z, calls_as):
        panda = PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0)
        extractor = fitted(z, call=CALLS, calls_as=calls_as)
        whole = clone(panda).fit(extractor.transform(z))
        stream = make_pipeline(
            clone(extractor).set_params(stream=True), clone(panda)
        ).fit(z)[-1]
        np.testing.assert_allclose(stream.parts_, whole.parts_, atol=1e-4)

    def test_generate(self, z, calls_as):
        extractor = fitted(z, call=CALLS, calls_as=calls_as)
        plain = extractor.generate(z)
        calls = []

        def double(maps):
            calls.append(tuple(maps.shape))
            return 2 * maps

        doubled = extractor.generate(z, double)
        assert calls == [(4, 5, 4, 4)] * 2 + [(2, 5, 4, 4)] * 2
        assert not torch.allclose(doubled, plain)
        features = extractor.transform(z)
        if calls_as == "mean":
            with pytest.raises(ValueError, match="give a callable"):
                extractor.generate(z, features)
            return
        torch.testing.assert_close(extractor.generate(z, features), plain)
        # Each call has its own.
        split = extractor.split_calls(0 * features)
        split[:, 1] = extractor.split_calls(features)[:, 1]
        one = extractor.generate(z, features * 0 + split.reshape(features.shape))
        alone = fitted(z, call=CALLS[0]).generate(z, lambda maps: 0 * maps)
        other = fitted(z, call=CALLS[1])
        mixed = other.generate(z, split[:, 1])
        assert not torch.allclose(one, alone) and not torch.allclose(one, mixed)
        with pytest.raises(ValueError, match="features must be of shape"):
            extractor.generate(z, features[:3])


def test_the_pass_ends_with_the_last_call(z):
    network = TinySteps()
    seen = []
    extractor = fitted(z, network, call=slice(0, 2))
    with network.out.register_forward_hook(lambda *args: seen.append(1)):
        extractor.transform(z[:2])
    assert len(seen) == 1  # between the two


def test_fit_transform_runs_each_sample_once(z):
    network = TinySteps()
    extractor = GeneratorFeatureExtractor(network, "block", call="all", batch_size=4)
    extractor.fit_transform(z)
    assert network.n_runs == 3  # two batches, and one sample to count the calls


class TestGuidance:
    @pytest.mark.parametrize(
        ("guidance", "which"), [("first", 0), ("last", 1), (0, 0), (1, 1)]
    )
    def test_the_part_that_is_the_samples(self, z, guidance, which):
        network = TinySteps(k=2)
        extractor = fitted(z, network, guidance=guidance, call=CALLS)
        both = []
        with network.block.register_forward_hook(lambda m, a, out: both.append(out[0])):
            network(z[:4])
        found = extractor.split_calls(extractor.transform(z[:4]))
        for k, c in enumerate(CALLS):
            torch.testing.assert_close(found[:, k], both[c][4 * which : 4 * which + 4])

    def test_the_other_parts_stay_as_they_are(self, z):
        network = TinySteps(k=2)
        extractor = fitted(z, network, guidance="last", call=[0])
        seen = []
        with network.out.register_forward_pre_hook(lambda m, a: seen.append(a[0])):
            extractor.generate(z[:2], lambda maps: 0 * maps)
            extractor.generate(z[:2])
        assert not seen[0][2:].any() and torch.equal(seen[0][:2], seen[4][:2])

    def test_a_multiplied_batch_is_said(self, z):
        with pytest.raises(ValueError, match="set guidance"):
            fitted(z, TinySteps(k=2))
        with pytest.raises(ValueError, match="guidance=2"):
            fitted(z, TinySteps(k=2), guidance=2)


@pytest.mark.parametrize("tap", ["input", "update"])
def test_inputs_and_updates(z, tap):
    class Residual(TinySteps):
        def __init__(self):
            super().__init__()
            self.inner = nn_with_update()

        def forward(self, x):
            for _ in range(self.n_steps):
                x = self.inner(hidden_states=x)
            return x

    network = Residual()
    select = "hidden_states" if tap == "input" else None
    extractor = GeneratorFeatureExtractor(
        network, "inner", tap=tap, select=select, call="all"
    ).fit(z)
    found = extractor.split_calls(extractor.transform(z))
    x = z
    for step in range(4):
        expected = x if tap == "input" else network.inner.conv(x)
        torch.testing.assert_close(found[:, step], expected.detach())
        x = network.inner(x)
    stopped = extractor.generate(z, lambda maps: 0 * maps)
    expected = network.inner.conv(0 * z) if tap == "input" else z
    torch.testing.assert_close(stopped, expected.detach())


def nn_with_update():
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, hidden_states):
            return hidden_states + self.conv(hidden_states)

    return Inner()


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"call": [4]}, "call"),
            ({"call": []}, "call is empty"),
            ({"call": [1, 1]}, "each call once"),
            ({"call": slice(9, None)}, "leaves none of the 4"),
            ({"call": None}, "ran 4 times"),
            ({"calls_as": "rows"}, "calls_as"),
            ({"guidance": "middle"}, "guidance"),
        ],
    )
    def test_parameters(self, z, options, words):
        with pytest.raises((ValueError, TypeError), match=words):
            fitted(z, **options)

    def test_splitting(self, z):
        extractor = fitted(z, call=CALLS)
        with pytest.raises(ValueError, match="2 rows for each sample"):
            extractor.split_calls(extractor.transform(z)[:3])
        with pytest.raises(ValueError, match="all calls together"):
            fitted(z, calls_as="mean").split_calls(torch.zeros(6, 5, 4, 4))
        one = fitted(z, call=1)
        assert one.split_calls(one.transform(z)).shape == (6, 1, 5, 4, 4)


def test_copies_know_their_calls(z):
    extractor = fitted(z, call=slice(-2, None))
    twin = copy.deepcopy(extractor)
    assert torch.equal(twin.transform(z), extractor.transform(z))
    other = clone(extractor)
    assert other.call == slice(-2, None) and not hasattr(other, "feature_shape_")
