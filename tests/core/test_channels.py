"""The first pass of a fit: mean and scatter, energy, samples to keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core.channels import ChannelMoments, summarise
from panda_sklearn.core.samples import InMemory, Samples


def make(n, c=4, s=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, s, dtype=torch.float64, generator=generator)


class Passing(Samples):
    """Samples that come in batches, whose number is not known beforehand."""

    def __init__(self, Z, size=3):
        super().__init__(*Z.shape[1:], dtype=Z.dtype, device=Z.device)
        self.Z, self.size = Z, size

    def _read(self):
        yield from self.Z.split(self.size)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scatter_of(Z):
    rows = Z.double().transpose(0, 1).flatten(1)
    return np.cov(rows.numpy(), bias=True) * rows.shape[1]


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 7), st.booleans())
def test_a_summary_is_that_of_all_samples(n, n_some, size, channels):
    Z = make(n)
    some = lambda n: min(n, n_some)
    summaries = []
    generators = seeded(), seeded()
    for samples, generator in zip(
        (InMemory(Z), Passing(Z, size)), generators, strict=True
    ):
        known = summarise(samples, some, generator, channels=channels)
        summaries.append(known)
        assert samples.n_passes == 1 and known.n_samples == n
        assert float(known.energy) == pytest.approx(float((Z**2).sum()))
        kept = known.kept.Z
        assert known.kept.n_samples == len(kept) == min(n, n_some)
        assert float(known.energy_of_kept) == pytest.approx(float((kept**2).sum()))
        # Samples of Z, in their order, none twice.
        places = [int((z == Z).all((1, 2)).nonzero()) for z in kept]
        assert places == sorted(set(places))
        if channels:
            rows = Z.transpose(0, 1).flatten(1)
            torch.testing.assert_close(known.channels.about_zero(), rows @ rows.T)
            assert known.channels.n == n * 5
            torch.testing.assert_close(known.channels.mean, Z.mean((0, 2)))
            np.testing.assert_allclose(known.channels.scatter, scatter_of(Z), atol=1e-9)
        else:
            assert known.channels is None
    # The same samples, wherever they are; and what is drawn next is the same.
    assert torch.equal(*(generator.get_state() for generator in generators))
    assert torch.equal(summaries[0].kept.Z, summaries[1].kept.Z)


def test_samples_that_are_all_kept_are_not_copied():
    samples = InMemory(make(10))
    assert summarise(samples, lambda n: n, seeded(), channels=False).kept is samples


def test_samples_are_kept_whatever_becomes_of_the_batch():
    class Reusing(Passing):
        def _read(self):
            memory = torch.empty_like(self.Z[:3])
            for batch in self.Z.split(3):
                memory[: len(batch)] = batch
                yield memory[: len(batch)]
                memory[:] = torch.nan

    Z = make(20)
    known = summarise(Reusing(Z), lambda n: min(n, 8), seeded(), channels=True)
    expected = summarise(InMemory(Z), lambda n: min(n, 8), seeded(), channels=True)
    assert torch.equal(known.kept.Z, expected.kept.Z)


def test_each_sample_is_as_likely_to_be_kept():
    """A thousand draws of 5 of 20: each is kept 250 times, give or take 14."""
    Z = torch.arange(20.0)[:, None, None]
    counts = torch.zeros(20)
    for seed in range(1000):
        known = summarise(Passing(Z), lambda n: min(n, 5), seeded(seed), channels=False)
        counts[known.kept.Z.flatten().long()] += 1
    assert counts.sum() == 5000
    assert counts.min() > 250 - 5 * 14 and counts.max() < 250 + 5 * 14


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("kind", [InMemory, Passing])
def test_scatter_of_single_precision_far_from_zero(kind, offset):
    """The scatter is about the mean, known from the first batch alone."""
    Z = (make(200) + offset * torch.tensor([1.0, -1, 2, 0])[:, None]).float()
    known = summarise(kind(Z), lambda n: 1, seeded(), channels=True)
    expected = scatter_of(Z)
    error = np.abs(known.channels.scatter.numpy() - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def test_moments_add_turn_and_tell():
    Z, A = make(30) + 2, make(1, 4, 3)[0]
    whole = ChannelMoments.of_data(Z)
    halves = ChannelMoments.of_data(Z[:11]) + ChannelMoments.of_data(Z[11:])
    for name in ("n", "mean", "scatter"):
        torch.testing.assert_close(getattr(whole, name), getattr(halves, name))
    turned, direct = whole.turned(A), ChannelMoments.of_data(Z, A)
    for name in ("n", "mean", "scatter"):
        torch.testing.assert_close(getattr(turned, name), getattr(direct, name))
    assert whole.tells(A, 1e-12)
    # A direction in which hardly anything varies, beside others that do.
    Z[:, 0] = Z[:, 1] + 1e-9 * Z[:, 0]
    difference = torch.tensor([[1.0], [-1], [0], [0]])
    assert not ChannelMoments.of_data(Z).tells(difference, 1e-12)
