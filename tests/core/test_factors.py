"""Factors and constraints as values."""

import pickle

import numpy as np
import pytest
import torch

from panda_sklearn.core import FREE, NONNEGATIVE, Factors


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    return draw(5, 4, 6), Factors(draw(4, 3), draw(6, 2).abs(), NONNEGATIVE)


def test_what_factors_make_of_samples(problem):
    Z, factors = problem
    A, P = factors.A.numpy(), factors.P.numpy()
    L = np.stack([A.T @ z @ P for z in Z.numpy()])
    Xhat = np.stack([A @ l @ P.T for l in L])  # noqa: E741
    errors = ((Z.numpy() - Xhat) ** 2).sum(axis=(1, 2))
    saliency = np.stack([A.T @ z for z in Z.numpy()])
    np.testing.assert_allclose(factors.encode(Z), L)
    np.testing.assert_allclose(factors.decode(torch.from_numpy(L)), Xhat)
    np.testing.assert_allclose(factors.saliency(Z), saliency)
    np.testing.assert_allclose(factors.sample_objectives(Z), errors)
    np.testing.assert_allclose(factors.objective(Z), errors.sum())


def test_parts_of_each_sample(problem):
    Z, factors = problem
    parts = torch.stack([n * factors.P.T for n in range(5)])  # (N, R_S, S)
    expected = [
        float(Factors(factors.A, p.T, NONNEGATIVE).objective(z[None]))
        for z, p in zip(Z, parts, strict=True)
    ]
    np.testing.assert_allclose(factors.sample_objectives(Z, parts), expected)


def test_factors_of_another_type(problem):
    Z, factors = problem
    single = factors.to(Z.device, torch.float32)
    assert single.A.dtype == single.P.dtype == torch.float32
    assert single.constraint is factors.constraint
    assert factors.A.dtype == torch.float64


@pytest.mark.parametrize("constraint", [FREE, NONNEGATIVE])
def test_projections_end_in_the_constraint_and_stay_there(constraint):
    X = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    projected = constraint.project(X)
    assert constraint.allows(projected)
    assert torch.equal(constraint.project(projected), projected)
    assert constraint.allows(2.5 * projected)  # a cone
    assert constraint.allows(X) == constraint.rotatable
    assert pickle.loads(pickle.dumps(constraint)) == constraint
