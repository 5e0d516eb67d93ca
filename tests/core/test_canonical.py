"""The canonical form is one of the equivalent pairs, and the same for all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core import FREE, NONNEGATIVE, objective_of
from panda_sklearn.core.canonical import canonical_factors
from panda_sklearn.core.moments import appearance_moments, part_moments
from panda_sklearn.core.objective import sample_energies


def make(seed, nonnegative):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    Z = draw(20, 5, 8) * torch.linspace(1, 3, 5, dtype=torch.float64)[:, None]
    P = draw(8, 3)
    return Z, draw(5, 4), P.abs() if nonnegative else P


def canonical_of(Z, A, P, nonnegative):
    energy = sample_energies(Z).sum()
    return canonical_factors(
        A,
        P,
        [M[0] for M in part_moments(Z, A, energy=energy).products(P[None])],
        appearance_moments(Z, P, energy=energy),
        constraint=NONNEGATIVE if nonnegative else FREE,
    )


@given(
    st.integers(0, 50),
    st.floats(0.01, 100),
    st.permutations(range(3)),
    st.booleans(),
)
def test_equivalent_pairs_have_the_same_form(seed, c, order, nonnegative):
    Z, A, P = make(seed, nonnegative)
    R = torch.linalg.qr(make(seed + 1, False)[0][:4, :4, 0]).Q
    one = canonical_of(Z, A, P, nonnegative)
    other = canonical_of(Z, c * A @ R, P[:, list(order)] / c, nonnegative)
    torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one[1], other[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objective_of(Z, A, P), objective_of(Z, *one[:2]))


@pytest.mark.parametrize("nonnegative", [True, False])
def test_the_convention(nonnegative):
    Z, A, P = make(0, nonnegative)
    A, P, _ = canonical_of(Z, A, P, nonnegative)
    g = torch.linalg.eigvalsh(A.T @ A)
    assert float(g.sum()) == pytest.approx(float(g.square().sum()))
    L = A.T @ Z @ P
    energies = torch.einsum("nrk,nqk->rq", L, L)
    torch.testing.assert_close(energies, energies.diagonal().diag(), atol=1e-8, rtol=0)
    assert (energies.diagonal().diff() < 0).all()
    contributions = (
        (torch.einsum("cr,nrk->nck", A, L) ** 2).sum(dim=(0, 1)) * (P**2).sum(dim=0)
        if nonnegative
        else (L**2).sum(dim=(0, 1))
    )
    assert (contributions.diff() < 0).all()
    signed = (A,) if nonnegative else (A, P)
    for factor in signed:
        assert (factor.gather(0, factor.abs().argmax(dim=0)[None]) > 0).all()


def test_appearances_beyond_the_rank_of_the_data_are_zero():
    Z, A, P = make(0, True)
    Z = Z.clone()
    Z[:, 2:] = 0  # rank 2
    A = torch.cat([A[:2], torch.zeros(3, 4, dtype=A.dtype)])
    A, _, _ = canonical_of(Z, A, P, True)
    assert A[:, :2].any(dim=0).all() and not A[:, 2:].any()


def test_many_weak_appearances_are_kept_together():
    """Each holds next to nothing, all of them a share that counts."""
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(100, 128, 1, generator=generator)
    Z[:, 1:] *= 5e-3
    one = torch.ones(1, 1, dtype=torch.float64)
    A, _, _ = canonical_of(Z, torch.eye(128, dtype=torch.float64), one, True)
    lost = float(objective_of(Z.double(), A, one)) / float((Z.double() ** 2).sum())
    assert lost < 1e-6
