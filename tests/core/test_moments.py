"""Second moments: the same objective and gradients as from the data."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.core import gradient_appearances, gradient_parts, objective
from panda_sklearn.core.moments import (
    appearance_moments,
    factored_part_moments,
    is_cheaper_factored,
    part_moments,
)
from panda_sklearn.core.objective import sample_energies

MOMENTS = sys.modules["panda_sklearn.core.moments"]


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
    f = objective(Z, A, P)
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
    formed, unformed = (
        form(Z, A, energy=energy, batch_size=7)
        for form in (part_moments, factored_part_moments)
    )
    for one, other in zip(
        formed.products(starts), unformed.products(starts), strict=True
    ):
        torch.testing.assert_close(one, other)


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
    monkeypatch.setattr(MOMENTS, "SMALLEST_BATCH", 1)
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
    factored_part_moments(Z, A, energy=energy).products(P[None])
    assert len(sizes) > 3 * MOMENTS.BATCHES_AT_LEAST
    assert max(sizes) <= Z.numel() / MOMENTS.BATCHES_AT_LEAST


def test_factored_where_positions_are_many():
    assert is_cheaper_factored(C=512, S=64 * 64, R_C=512, R_S=8)
    assert is_cheaper_factored(C=512, S=64 * 64, R_C=64, R_S=8)
    assert not is_cheaper_factored(C=512, S=256, R_C=512, R_S=8)
    assert not is_cheaper_factored(C=64, S=1024, R_C=64, R_S=16)
