"""Second moments: the same objective and gradients as from the data."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core import (
    gradient_appearances,
    gradient_parts,
    objective_of,
    samples,
)
from panda_sklearn.core.moments import (
    appearance_moments,
    factored_part_moments,
    is_cheaper_factored,
    part_moments,
    thin_products,
)
from panda_sklearn.core.objective import sample_energies
from panda_sklearn.core.samples import InMemory


def make(n, c, s, r_c, r_s, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = [
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((n, c, s), (c, r_c), (s, r_s))
    ]
    return tuple(x.to(dtype) for x in draw)


def value(moments, X):
    """Objective and gradient at X, as the module's docstring has them."""
    M1X, M2X = (M[0] for M in moments.products(X[None]))
    f = moments.energy - 2 * (X * M1X).sum() + ((X.T @ X) * (X.T @ M2X)).sum()
    return f, -4 * M1X + 2 * (X @ (X.T @ M2X) + M2X @ (X.T @ X))


sizes = st.integers(1, 6)


@given(sizes, sizes, sizes, st.data())
def test_objective_and_gradients_are_those_of_the_data(n, c, s, data):
    r_c, r_s = data.draw(st.integers(1, c)), data.draw(st.integers(1, s))
    Z, A, P = make(n, c, s, r_c, r_s, seed=data.draw(st.integers(0, 99)))
    energy = sample_energies(Z).sum()
    f = objective_of(Z, A, P)
    for form in (part_moments, factored_part_moments):
        moments = form(Z, A, energy=energy)
        f_parts, gradient = value(moments, P)
        torch.testing.assert_close(f_parts, f)
        torch.testing.assert_close(gradient, gradient_parts(Z, A, P))
    f_appearances, gradient = value(appearance_moments(Z, P, energy=energy), A)
    torch.testing.assert_close(f_appearances, f)
    torch.testing.assert_close(gradient, gradient_appearances(Z, A, P))


@pytest.mark.parametrize("r_c", [1, 16])  # A'Z is kept, or Z gone through
def test_factored_products_of_several_starts(r_c):
    Z, A, P = make(40, 16, 9, r_c, 3)
    starts = torch.stack([P, 2 - P, P**2])
    energy = sample_energies(Z).sum()
    formed = part_moments(InMemory(Z, batch_size=7), A, energy=energy)
    unformed = factored_part_moments(Z, A, energy=energy)
    unformed = dataclasses.replace(unformed, batch_size=7)
    for one, other in zip(
        formed.products(starts), unformed.products(starts), strict=True
    ):
        torch.testing.assert_close(one, other)


@given(sizes, sizes, sizes, st.data())
def test_thin_products_are_those_of_the_matrices(n, c, s, data):
    r_c, r_s = data.draw(st.integers(1, c)), data.draw(st.integers(1, s))
    Z, A, P = make(n, c, s, r_c, r_s, seed=data.draw(st.integers(0, 99)))
    energy = sample_energies(Z).sum()
    size = data.draw(st.integers(1, n))
    batched = InMemory(Z, batch_size=size)
    of_appearances, products = thin_products(batched, A, P, energy=energy)
    assert batched.n_passes == 1
    expected = appearance_moments(Z, P, energy=energy)
    torch.testing.assert_close(of_appearances.M1, expected.M1)
    torch.testing.assert_close(of_appearances.M2, expected.M2)
    torch.testing.assert_close(of_appearances.M1, sum(z @ P @ P.T @ z.T for z in Z))
    metric = P @ (P.T @ P) @ P.T
    torch.testing.assert_close(of_appearances.M2, sum(z @ metric @ z.T for z in Z))
    M1P, M2P = products
    torch.testing.assert_close(M1P, sum(z.T @ A @ (A.T @ (z @ P)) for z in Z))
    metric = A @ (A.T @ A) @ A.T
    torch.testing.assert_close(M2P, sum(z.T @ metric @ (z @ P) for z in Z))


@pytest.mark.parametrize("r_c", [2, 7])  # thin, or A A' formed
def test_thin_products_of_single_precision(r_c):
    Z, A, P = make(30, 8, 9, r_c, 3)
    energy = sample_energies(Z).sum()
    exact, exact_products = thin_products(Z, A, P, energy=energy)
    single, products = thin_products(Z.float(), A, P, energy=energy)
    wide, wide_products = thin_products(
        Z.float(), A, P, energy=energy, dtype=torch.float64
    )
    assert single.M1.dtype == products[0].dtype == torch.float64
    assert wide.eps < single.eps
    for one, other, tol in ((single, exact, 1e-4), (wide, exact, 1e-5)):
        torch.testing.assert_close(one.M1, other.M1, rtol=tol, atol=tol)
        torch.testing.assert_close(one.M2, other.M2, rtol=tol, atol=10 * tol)
    for some in (products, wide_products):
        for one, other in zip(some, exact_products, strict=True):
            assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_add_over_batches(dtype):
    Z, A, P = make(30, 5, 7, 4, 3, dtype=dtype)
    whole, halves = [], []
    for part, into in ((Z, whole), (Z[:11], halves), (Z[11:], halves)):
        energy = sample_energies(part).sum()
        into.append(
            (
                part_moments(part, A.double(), energy=energy),
                appearance_moments(part, P.double(), energy=energy),
            )
        )
    for k in range(2):
        one, other = whole[0][k], halves[0][k] + halves[1][k]
        assert one.M1.dtype == torch.float64
        for name in ("M1", "M2", "energy"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-4
            )


def test_rescaled_moments_are_those_of_the_rescaled_factor():
    Z, A, _ = make(10, 5, 7, 4, 3)
    energy = sample_energies(Z).sum()
    one = part_moments(Z, A, energy=energy).rescaled(3.0)
    other = part_moments(Z, 3 * A, energy=energy)
    torch.testing.assert_close(one.M1, other.M1)
    torch.testing.assert_close(one.M2, other.M2)


def test_rotating_the_held_factor_changes_nothing():
    Z, A, _ = make(10, 5, 7, 4, 3)
    energy = sample_energies(Z).sum()
    R = torch.linalg.qr(make(1, 4, 4, 4, 4)[0][0]).Q
    one, other = (part_moments(Z, X, energy=energy) for X in (A, A @ R))
    torch.testing.assert_close(one.M1, other.M1)
    torch.testing.assert_close(one.M2, other.M2)


def test_no_product_as_long_as_the_data_is_formed(monkeypatch):
    monkeypatch.setattr(samples, "BATCH_ELEMENTS", 4 * 8 * 12)
    monkeypatch.setattr(samples, "LARGEST_BATCH", 1)
    Z, A, P = make(64, 8, 12, 8, 3)
    energy = sample_energies(Z).sum()
    sizes = []
    matmul = torch.Tensor.__matmul__

    def watched(one, other):
        result = matmul(one, other)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    part_moments(Z, A, energy=energy)
    appearance_moments(Z, P, energy=energy)
    factored = factored_part_moments(Z, A, energy=energy)
    assert factored.batch_size * Z[0].numel() <= 2**21  # of data that are larger
    dataclasses.replace(factored, batch_size=4).products(P[None])
    thin_products(Z, A, P, energy=energy)
    assert len(sizes) > 4 * 16
    assert max(sizes) <= Z.numel() / 16


def test_factored_where_positions_are_many():
    assert is_cheaper_factored(C=512, S=64 * 64, R_C=512, R_S=8)
    assert is_cheaper_factored(C=512, S=64 * 64, R_C=64, R_S=8)
    assert not is_cheaper_factored(C=512, S=256, R_C=512, R_S=8)
    assert is_cheaper_factored(C=64, S=1024, R_C=64, R_S=16)
    assert not is_cheaper_factored(C=64, S=512, R_C=64, R_S=16)
    # Where A'Z is not kept, each product takes C, not R_C.
    assert is_cheaper_factored(C=512, S=512, R_C=256, R_S=8)
    assert not is_cheaper_factored(C=512, S=512, R_C=300, R_S=8)
