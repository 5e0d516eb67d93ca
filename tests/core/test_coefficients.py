"""How coefficients vary: sums over samples, partial covariances, principal vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core.channels import ChannelMoments, ChannelSums
from panda_sklearn.core.coefficients import (
    RIDGE,
    CoefficientSums,
    principal_variations,
    without_others,
)
from panda_sklearn.core.samples import InMemory, in_one_pass

C, S, R_C, R_S = 6, 5, 4, 3


def make(n, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    Z, A, P = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((n, C, S), (C, R_C), (S, R_S))
    )
    return Z + offset, A, P.abs()


def moments_of(Z, A, P, batch_size=None):
    samples = InMemory(Z, batch_size=batch_size)
    (moments,) = in_one_pass(samples, CoefficientSums(A, P))
    assert samples.n_passes == 1
    return moments


def assert_same(found, expected):
    assert found.n == expected.n
    for name in ("mean", "own", "cross"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@given(st.integers(1, 20), st.integers(1, 8), st.sampled_from([0.0, 1e4]))
def test_they_are_those_of_all_samples(n, batch_size, offset):
    Z, A, P = make(n, offset=offset)
    moments = moments_of(Z, A, P, batch_size)
    L = (A.T @ Z @ P).numpy()
    away = L - L.mean(axis=0)
    assert moments.n == n
    slack = {"atol": 1e-7 * max(1, offset), "rtol": 1e-6}
    np.testing.assert_allclose(moments.mean.T, L.mean(axis=0), **slack)
    for k in range(R_S):
        np.testing.assert_allclose(
            moments.own[k], away[:, :, k].T @ away[:, :, k], **slack
        )
        np.testing.assert_allclose(
            moments.cross[k], away[:, :, k].T @ away.sum(axis=2), **slack
        )


@given(st.integers(1, 10), st.integers(1, 10))
def test_they_add(n, m):
    Z, A, P = make(n + m)
    halves = moments_of(Z[:n], A, P) + moments_of(Z[n:], A, P)
    assert_same(halves, moments_of(Z, A, P))


def test_several_sums_take_one_pass():
    Z, A, P = make(7)
    samples = InMemory(Z, batch_size=2)
    sums = CoefficientSums(A, P), ChannelSums(samples, A)
    coefficients, channels = in_one_pass(samples, *sums)
    assert samples.n_passes == 1
    assert_same(coefficients, moments_of(Z, A, P))
    expected = ChannelMoments.of_data(Z, A)
    torch.testing.assert_close(channels.scatter, expected.scatter)


def test_they_follow_the_factors():
    """Exactly, where the new are combinations and multiples of the old."""
    Z, A, P = make(9)
    generator = torch.Generator().manual_seed(1)
    turn = torch.randn(R_C, R_C, dtype=torch.float64, generator=generator)
    new = A @ torch.linalg.qr(turn).Q, 0.5 * P[:, [2, 0, 1]]
    followed = moments_of(Z, A, P).turned((A, P), new)
    assert_same(followed, moments_of(Z, *new))


def test_parts_may_change_scale_and_sign():
    """Their own sums follow exactly; that over all parts is known in the mean."""
    Z, A, P = make(9)
    new = A, P[:, [2, 0, 1]] * torch.tensor([0.5, -2.0, 1.0])
    followed, expected = moments_of(Z, A, P).turned((A, P), new), moments_of(Z, *new)
    torch.testing.assert_close(followed.own, expected.own)
    torch.testing.assert_close(followed.mean, expected.mean)
    before = moments_of(Z, A, P).cross[[2, 0, 1]]
    scales = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(followed.cross, 3.5 / 3 * scales * before)


def test_what_the_others_explain_is_taken_out():
    """As by a regression on the sum of the other parts' coefficients, with a ridge."""
    Z, A, P = make(40)
    moments = moments_of(Z, A, P)
    L = A.T @ Z @ P
    away = L - L.mean(dim=0)
    cross = moments.cross / 40
    found = without_others(moments.own / 40, cross, cross.sum(dim=0))
    for k in range(R_S):
        others = away.sum(dim=2) - away[:, :, k]
        gram = others.T @ others / 40
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(R_C)
        slopes = torch.linalg.solve(gram + ridge, others.T @ away[:, :, k] / 40)
        expected = away[:, :, k].T @ (away[:, :, k] - others @ slopes) / 40
        torch.testing.assert_close(found[k], (expected + expected.T) / 2)
        assert torch.linalg.eigvalsh(found[k]).min() > -1e-9


def test_nothing_else_explains_nothing():
    own = torch.eye(R_C, dtype=torch.float64)[None]
    torch.testing.assert_close(without_others(own, own, own[0]), own)


def test_nothing_is_explained_by_what_is_no_covariance():
    """As in a stream whose parts had other scales: variances stay above zero."""
    own = torch.eye(R_C, dtype=torch.float64)[None]
    found = without_others(own, 2 * own, own[0])  # of the others: -2
    assert found.isfinite().all()


@pytest.mark.parametrize("rank", [R_C, 2])
def test_principal_vectors_are_those_of_what_a_part_shows(rank):
    Z, A, P = make(50)
    A[:, rank:] = 0
    shown = (A.T @ Z @ P)[:, :, 0] @ A.T  # (n, C)
    shown -= shown.mean(dim=0)
    _, sizes, Vh = torch.linalg.svd(shown, full_matrices=False)
    covariance = moments_of(Z, A, P).own[0] / 50
    vectors, stds = principal_variations(A, covariance)
    assert vectors.shape == (C, rank)
    torch.testing.assert_close(stds, sizes[:rank] / 50**0.5)
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(rank, dtype=torch.float64)
    )
    cosines = (vectors * Vh[:rank].T).sum(dim=0)
    torch.testing.assert_close(cosines.abs(), torch.ones_like(cosines))
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    assert (peaks > 0).all()
