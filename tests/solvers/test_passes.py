"""Fits to more samples than are kept in memory: few passes, the minimum of all."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core import FREE, NONNEGATIVE, objective_of
from panda_sklearn.core.samples import InMemory, Samples
from panda_sklearn.core.starts import hosvd, random_parts
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.solvers import alternation, fit_spg, spg
from tests.solvers.watchers import Listener

N = 300


class Passing(Samples):
    """Samples that come in batches, whose number is not known beforehand."""

    def __init__(self, Z):
        super().__init__(*Z.shape[1:], dtype=Z.dtype, device=Z.device)
        self.Z = Z

    def _read(self):
        yield from self.Z.split(37)


@pytest.fixture
def keep(monkeypatch):
    """A function that sets how many samples are kept."""

    def keeping(n):
        monkeypatch.setattr(spg, "FEWEST", n)
        monkeypatch.setattr(spg, "MOST", n)

    keeping(40)
    return keeping


@pytest.fixture
def keep_these(monkeypatch):
    """A function that sets which samples are kept."""
    summarise = spg.summarise

    def keeping(Z):
        def summary(*args, **options):
            energy = (Z.double() ** 2).sum()
            known = summarise(*args, **options)
            kept = InMemory(Z)
            return dataclasses.replace(known, kept=kept, energy_of_kept=energy)

        monkeypatch.setattr(spg, "summarise", summary)

    return keeping


def solve(samples, r_c, r_s, init="hosvd", seed=0, **options):
    samples = InMemory(samples) if isinstance(samples, torch.Tensor) else samples
    options = {"max_iter": 200, "tol": 1e-8, "constraint": NONNEGATIVE, **options}
    generator = torch.Generator().manual_seed(seed)
    options = {"n_init": None, "generator": generator, **options}
    return fit_spg(samples, r_c, r_s, init=init, **options)


def planted(snr_db=10, c=8, r_c=5, r_s=3, seed=0, n=N):
    X, *_ = make_parts_appearances(
        n,
        r_s,
        r_c,
        n_channels=c,
        spatial_shape=(6, 6),
        snr_db=snr_db,
        random_state=seed,
    )
    return torch.from_numpy(X).flatten(2)


def rough(c=8, s=30, seed=0):
    """Clipped noise: no structure to find, many minima."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, c, s, dtype=torch.float64, generator=generator).clamp(min=0)


def share(Z, result):
    """The objective, as a fraction of the energy."""
    Z, A, P = Z.double(), result.A.double(), result.P.double()
    return float(objective_of(Z, A, P)) / float((Z**2).sum())


def check(Z, result):
    """The history falls, and ends with the objective of the result."""
    energy = float((Z.double() ** 2).sum()) / len(Z)
    history = np.array(result.objective_history) / energy
    eps = torch.finfo(Z.dtype).eps
    assert np.all(np.diff(history) <= 10 * eps**2)
    assert history[-1] == pytest.approx(share(Z, result), abs=100 * eps)
    assert result.A.dtype == result.P.dtype == Z.dtype
    assert result.A.isfinite().all() and (result.P >= 0).all()


@pytest.mark.parametrize("n_kept", [10, 40, 150])
@pytest.mark.parametrize("ranks", [(5, 3), (8, 3), (3, 2)])
def test_ends_at_the_minimum_of_all_samples(keep, ranks, n_kept):
    Z = planted()
    keep(N)
    whole = solve(Z, *ranks)
    keep(n_kept)
    samples = InMemory(Z)
    result = solve(samples, *ranks)
    check(Z, result)
    assert share(Z, result) == pytest.approx(share(Z, whole), abs=1e-5)
    assert result.converged
    # A pass for the summary and one for each iteration; more, if the kept samples lead
    # nowhere: with fewer parts than there are, minima are many.
    assert samples.n_passes >= 1 + result.n_iter
    if ranks != (3, 2):
        assert samples.n_passes == 1 + result.n_iter
    # The kept samples' own minimum is another.
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(N, dtype=torch.float64, generator=generator).topk(n_kept)
    of_kept = solve(Z[places.indices.sort().values], *ranks)
    assert share(Z, of_kept) > share(Z, result) + (1e-4 if n_kept < 100 else 1e-6)


@pytest.mark.parametrize("make", [rough, lambda seed: planted(r_s=6, seed=seed)])
@pytest.mark.parametrize("seed", range(3))
def test_where_minima_are_many_it_ends_at_one(keep, make, seed):
    """A fit that keeps all samples hardly improves on it.

    Where the objective is flat, ``tol`` ends both a little early, and where depends on
    the processor.
    """
    Z = make(seed=seed)
    keep(60)
    result = solve(Z, 4, 3, seed=seed, tol=1e-6)
    check(Z, result)
    keep(N)
    further = solve(Z, 4, 3, (result.A, result.P), tol=1e-6)
    assert share(Z, result) < share(Z, further) + 1e-3


def test_passes_are_few(keep):
    keep(60)
    structured = planted()
    for Z in (structured, rough()):
        for tol, most in ((1e-4, 8), (1e-6, 12)):
            samples = InMemory(Z)
            result = solve(samples, 5, 3, tol=tol)
            assert result.converged
            assert samples.n_passes <= (most if Z is structured else 6 * most)


def test_passing_samples_are_as_those_in_memory(keep):
    Z = planted()
    one, other = solve(Z, 5, 3), solve(Passing(Z), 5, 3)
    check(Z, other)
    torch.testing.assert_close(other.A, one.A, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.P, one.P, atol=1e-6, rtol=0)


@given(
    st.integers(2, 9),
    st.integers(1, 5),
    st.integers(1, 7),
    st.data(),
    st.sampled_from(["normal", "low rank", "dead", "repeated", "mostly zero"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_whatever_the_data(n, c, s, data, kind, dtype):
    r_c, r_s = data.draw(st.integers(1, c)), data.draw(st.integers(1, s))
    n_kept = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    Z = draw(n, c, s)
    if kind == "low rank":
        Z = draw(n, 1, 1) * draw(c, 1) * draw(1, s)
    elif kind == "dead":
        Z[:, 0], Z[:, :, -1] = 0, 0
    elif kind == "repeated":
        Z = Z[:1].repeat(n, 1, 1)
    elif kind == "mostly zero":
        Z[1:] = 0
    Z = Z.to(dtype)
    free = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spg, "FEWEST", n_kept)
        patch.setattr(spg, "MOST", n_kept)
        constraint = FREE if free else NONNEGATIVE
        result = solve(Z, r_c, r_s, constraint=constraint)
    assert result.A.shape == (c, r_c) and result.P.shape == (s, r_s)
    assert result.A.dtype == result.P.dtype == dtype
    assert result.A.isfinite().all() and result.P.isfinite().all()
    assert free or (result.P >= 0).all()
    history = np.array(result.objective_history)
    assert np.isfinite(history).all()
    energy = float((Z.double() ** 2).sum())
    eps = torch.finfo(dtype).eps
    assert (np.diff(history) <= 10 * eps * energy / n).all()
    if energy > 0:
        assert share(Z, result) <= 1 + 1e-5


# What the kept samples say may be wrong.


def test_kept_samples_that_mislead(keep_these):
    """Their parts and channels differ from those of all others."""
    Z = planted()
    misleading = planted(seed=5)[:30].flip(1, 2)
    keep_these(misleading)
    result = solve(torch.cat([misleading, Z]), 5, 3)
    check(torch.cat([misleading, Z]), result)
    history = result.objective_history
    assert history[-1] < history[0]
    assert share(torch.cat([misleading, Z]), result) < 0.6


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_kept_samples_of_another_scale(keep_these, scale):
    """They have nearly all of the energy, or next to none of it."""
    Z = planted()
    mixed = torch.cat([Z[:40] * scale, Z[40:]])
    keep_these(mixed[:40])
    result = solve(mixed, 5, 3)
    check(mixed, result)
    assert result.objective_history[-1] <= result.objective_history[0]
    assert share(mixed, result) < 0.1


def test_kept_samples_that_are_all_zero(keep_these):
    Z = planted()
    keep_these(0 * Z[:40])
    result = solve(torch.cat([0 * Z[:40], Z]), 5, 3)
    check(torch.cat([0 * Z[:40], Z]), result)
    assert share(Z, result) == pytest.approx(share(Z, solve(Z, 5, 3)), abs=2e-3)


@pytest.mark.parametrize("constraint", [FREE, NONNEGATIVE])
@pytest.mark.parametrize("init", ["hosvd", "random", "pair"])
def test_kept_samples_that_are_zero_in_any_fit(keep_these, init, constraint):
    Z = planted()
    keep_these(0 * Z[:10])
    if init == "pair":
        init = hosvd(Z, 4), random_parts(36, 3, torch.Generator())
    result = solve(Z, 4, 3, init, constraint=constraint)
    assert result.A.isfinite().all() and result.P.isfinite().all()
    assert share(Z, result) < 0.5
    history = result.objective_history
    assert history[-1] <= history[0]


def test_a_single_kept_sample(keep):
    keep(1)
    Z = planted()
    result = solve(Z, 5, 3)
    check(Z, result)  # and ends no worse than it began
    assert share(Z, result) < 0.7


# Precision.


@pytest.mark.parametrize("ranks", [(5, 3), (8, 3)])
def test_small_objectives_in_double_precision(keep, ranks):
    """On data without noise, single precision alone would end at 1e-7."""
    Z = planted(snr_db=None)
    keep(40)
    exact = solve(Z, *ranks, tol=1e-12)
    single = solve(Z.float(), *ranks, tol=1e-12)
    check(Z.float(), single)
    assert share(Z, exact) < 1e-9
    assert share(Z, single) < 1e-8
    assert single.objective_history[-1] < 1e-8 * float((Z**2).sum()) / N


def test_single_precision_loses_little(keep):
    """Where minima are many, rounding may lead to another that is about as low."""
    for Z, tolerance in ((planted(), 1e-4), (rough(), 5e-3)):
        keep(N)
        begun = solve(Z, 4, 3, tol=1e-4)
        keep(60)
        start = begun.A, begun.P
        results = [solve(T, 4, 3, start) for T in (Z, Z.float())]
        assert share(Z, results[1]) < share(Z, results[0]) + tolerance


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_scale_of_the_data_does_not_matter(keep, scale):
    Z = planted()
    one, other = solve(1.0 * Z, 5, 3), solve(scale * Z, 5, 3)
    assert one.n_iter == other.n_iter
    np.testing.assert_allclose(other.A, one.A, atol=1e-9)
    np.testing.assert_allclose(other.P, one.P, atol=1e-9)


# Other ways through it.


@pytest.mark.parametrize("ranks", [(5, 3), (8, 3), (3, 36)])
@pytest.mark.parametrize("kind", [InMemory, Passing])
def test_free_parts(keep, ranks, kind):
    """Their space is found by alternation on all samples, in passes."""
    Z = planted()
    keep(N)
    whole = solve(Z, *ranks, constraint=FREE)
    keep(40)
    result = solve(kind(Z), *ranks, constraint=FREE)
    assert share(Z, result) == pytest.approx(share(Z, whole), abs=1e-6)
    assert np.all(np.diff(result.objective_history) <= 1e-12)
    torch.testing.assert_close(result.P, whole.P, atol=1e-2, rtol=0)


def test_the_parts_moments_may_be_factored(keep, monkeypatch):
    Z = planted()
    results = []
    for factored in (True, False):
        monkeypatch.setattr(
            alternation, "is_cheaper_factored", lambda *shape, f=factored: f
        )
        results.append(solve(Z, 5, 3))
        check(Z, results[-1])
    assert share(Z, results[0]) == pytest.approx(share(Z, results[1]), abs=1e-5)


def test_few_appearances_of_many_channels(keep):
    Z = planted(c=300, r_c=6)
    keep(N)
    whole = solve(Z, 6, 3)
    for n_kept in (10, 60):
        keep(n_kept)
        result = solve(Z, 6, 3)
        check(Z, result)
        assert share(Z, result) == pytest.approx(share(Z, whole), abs=1e-5)


# When it ends.


def test_one_iteration(keep):
    Z = planted()
    samples = InMemory(Z)
    result = solve(samples, 5, 3, max_iter=1)
    assert result.n_iter == 1 and samples.n_passes == 2
    assert not result.converged and "max_iter" in result.reason
    check(Z, result)
    assert share(Z, result) < 0.2


def test_reasons(keep):
    Z = rough()
    reasons = set()
    for tol in (1e-2, 1e-3, 1e-4, 1e-6):
        result = solve(Z, 4, 3, tol=tol)
        assert result.converged
        reasons.add(result.reason)
        falls = -np.diff(result.objective_history) / (float((Z**2).sum()) / N)
        if "fell by less" in result.reason:
            # A pass that failed is no sign of convergence.
            others = falls[:-1]
            assert falls[-1] < tol and (others[others > 0] >= tol).all()
        else:
            assert "promises" in result.reason or "no step" in result.reason
    short = solve(Z, 4, 3, tol=1e-9, max_iter=2)
    assert not short.converged and short.n_iter == 2
    assert reasons


def test_tol_zero_goes_on_until_nothing_helps(keep):
    Z = planted()
    result = solve(Z, 5, 3, tol=0, max_iter=300)
    tight = solve(Z, 5, 3, tol=1e-10)
    check(Z, result)
    assert share(Z, result) <= share(Z, tight) + 1e-12


def test_a_watcher_sees_passes_and_may_stop_them(keep):
    Z = planted()
    listener = Listener(stop_at=2)
    result = solve(Z, 5, 3, tol=0, watcher=listener)
    assert len(listener.objectives) == 2
    assert listener.objectives == result.objective_history
    assert not result.converged and "callback" in result.reason
