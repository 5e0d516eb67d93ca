"""Starting points."""

import numpy as np
import pytest
import torch

from panda_sklearn.core import (
    grown_parts,
    hosvd,
    random_appearances,
    random_parts,
    samples,
)
from panda_sklearn.core.starts import nearly_hosvd


def make_maps(n=30, c=12, s=20, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, s, dtype=torch.float64, generator=generator).to(dtype)


def test_hosvd_is_the_leading_left_singular_vectors():
    Z = make_maps() * torch.linspace(1, 2, 12, dtype=torch.float64)[:, None]
    A = hosvd(Z, 5)
    unfolded = Z.transpose(0, 1).reshape(12, -1).numpy()
    U = np.linalg.svd(unfolded, full_matrices=False)[0][:, :5]
    np.testing.assert_allclose(np.abs(U.T @ A.numpy()), np.eye(5), atol=1e-9)


def test_hosvd_is_uncentred():
    direction = torch.linspace(-1, 2, 12, dtype=torch.float64)
    Z = 0.01 * make_maps() + 5 * direction[:, None]
    np.testing.assert_allclose(
        hosvd(Z, 1)[:, 0], direction / direction.norm(), atol=1e-3
    )


def test_hosvd_is_accurate_in_single_precision():
    # Singular values from 1 to 1e-4; the squares of the last are lost.
    U = torch.linalg.qr(make_maps(1, 12, 12, seed=1)[0]).Q
    V = torch.linalg.qr(make_maps(1, 200, 12, seed=2)[0]).Q
    unfolded = U * torch.logspace(0, -4, 12, dtype=torch.float64) @ V.T
    Z = unfolded.reshape(12, 10, 20).transpose(0, 1)
    A = hosvd(Z.to(torch.float32).contiguous(), 10)
    assert A.dtype == torch.float32
    overlap = (U[:, :8].T @ A[:, :8].double()).abs().diagonal()
    assert overlap.min() > 0.99


def test_hosvd_does_not_depend_on_how_samples_are_batched(monkeypatch):
    Z = make_maps()
    whole = hosvd(Z, 12)
    monkeypatch.setattr(samples, "BATCH_ELEMENTS", 12 * 20 * 7)
    np.testing.assert_allclose(hosvd(Z, 12), whole, atol=1e-9)


def test_hosvd_never_copies_all_samples(monkeypatch):
    monkeypatch.setattr(samples, "BATCH_ELEMENTS", 12 * 20 * 4)
    sizes = []
    to = torch.Tensor.to

    def note(tensor, *args, **kwargs):
        sizes.append(tensor.numel())
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", note)
    hosvd(make_maps(dtype=torch.float32), 3)
    assert max(sizes[1:]) <= 12 * 20 * 4  # the first is make_maps' own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hosvd_is_orthonormal_for_rank_deficient_and_zero_data(dtype):
    for Z in (make_maps(1, 12, 3, dtype=dtype), torch.zeros(4, 12, 3, dtype=dtype)):
        A = hosvd(Z, 12)
        np.testing.assert_allclose(A.T @ A, np.eye(12), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 5, 60])
def test_nearly_hosvd(dtype, rank):
    """For falling singular values, as activations have."""
    falling = 0.8 ** torch.arange(60, dtype=torch.float64)
    Z = (torch.linalg.qr(make_maps(1, 60, 60, seed=1)[0]).Q * falling) @ make_maps(
        20, 60, 30
    )
    Z = Z.to(dtype)
    exact = hosvd(Z, rank).double()
    A = nearly_hosvd(Z, rank, torch.Generator().manual_seed(0))
    assert A.shape == (60, rank) and A.dtype == dtype
    assert torch.equal(A, nearly_hosvd(Z, rank, torch.Generator().manual_seed(0)))
    A = A.double()
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(A.T @ A, identity, rtol=0, atol=1e-5)
    assert (A.gather(0, A.abs().argmax(0, keepdim=True)) > 0).all()

    def energy(A):
        return float((A.T @ Z.double()).square().sum())

    assert energy(A) == pytest.approx(energy(exact), rel=1e-5)
    first = min(rank, 5)
    assert (A[:, :first] * exact[:, :first]).sum(0).min() > 0.99


def test_nearly_hosvd_beyond_the_rank_of_the_data():
    Z = make_maps(1, 12, 3)
    for data in (Z, 0 * Z):
        A = nearly_hosvd(data, 6, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(A.T @ A, np.eye(6), atol=1e-9)
    A = nearly_hosvd(Z, 6, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(A @ (A.T @ Z), Z, atol=1e-9)


def test_random_starts_come_from_their_generator_alone():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return random_appearances(6, 4, generator), random_parts(9, 3, generator)

    before = torch.get_rng_state()
    A, P = draw(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip((A, P), draw(0), strict=True))
    assert not torch.equal(P, draw(1)[1])
    np.testing.assert_allclose(A.T @ A, np.eye(4), atol=1e-12)
    assert P.min() >= 0 and 0.005 < P.max() <= 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grown_parts_are_never_empty(dtype):
    """Not even where the rank is below their number and rounding decides."""
    eps = torch.finfo(dtype).eps
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        Y = torch.randn(4, 1, generator=generator) * torch.rand(6, generator=generator)
        gram = (Y.to(dtype).T @ Y.to(dtype)).double()
        P = grown_parts(gram, 6, generator, eps)
        assert P.isfinite().all() and (P >= 0).all() and P.any(dim=0).all()


def test_grown_parts_find_positions_that_share_nothing():
    Y = torch.zeros(30, 9, dtype=torch.float64)
    for k in range(3):
        Y[10 * k : 10 * k + 10, 3 * k : 3 * k + 3] = k + 1
    P = grown_parts(Y.T @ Y, 3, torch.Generator(), 1e-15)
    assert P.argmax(dim=1).tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert (P > 0).sum() == 9
