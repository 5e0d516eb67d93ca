"""The objective and its gradients, as properties.

Problems are drawn as sizes, ranks, a scale and one seed. ``literal_*`` transcribe
the paper with P P' and A A' formed.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from panda_sklearn.core import (
    gradient_appearances,
    gradient_parts,
    objective_of,
)
from panda_sklearn.core.objective import sample_energies
from tests.allocations import LargestResult


class Problem(NamedTuple):
    Z: torch.Tensor
    A: torch.Tensor
    P: torch.Tensor

    def to(self, dtype):
        return Problem(*(t.to(dtype) for t in self))


@st.composite
def problems(draw, max_size=6):
    """Z, A and P in double precision; P may be negative: no formula minds."""
    n = draw(st.integers(1, 4))
    c, s = draw(st.integers(1, max_size)), draw(st.integers(1, max_size + 1))
    r_c, r_s = draw(st.integers(1, c)), draw(st.integers(1, s))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return Problem(scale * normal(n, c, s), normal(c, r_c), normal(s, r_s))


def literal_objective(Z, A, P):
    """Equation (3)."""
    return sum(torch.linalg.norm(z - A @ (A.T @ z @ P) @ P.T) ** 2 for z in Z)


def literal_gradient_parts(Z, A, P):
    """Equation (4)."""
    Pb, Ab = P @ P.T, A @ A.T
    return 2 * sum(
        Pb @ z.T @ Ab @ Ab @ z @ P + z.T @ Ab @ Ab @ z @ Pb @ P - 2 * z.T @ Ab @ z @ P
        for z in Z
    )


def literal_gradient_appearances(Z, A, P):
    """Equation (5)."""
    Pb, Ab = P @ P.T, A @ A.T
    return 2 * sum(
        Ab @ z @ Pb @ Pb @ z.T @ A + z @ Pb @ Pb @ z.T @ Ab @ A - 2 * z @ Pb @ z.T @ A
        for z in Z
    )


def assert_close(actual, desired, rtol=1e-9):
    """Entries agree to ``rtol`` of the largest one."""
    size = float(desired.abs().max())
    np.testing.assert_allclose(
        actual.numpy(), desired.numpy(), rtol=rtol, atol=rtol * size
    )


@given(problems())
def test_objective_is_equation_3(problem):
    assert_close(objective_of(*problem), literal_objective(*problem))


@given(problems())
def test_gradients_are_equations_4_and_5(problem):
    assert_close(gradient_parts(*problem), literal_gradient_parts(*problem))
    assert_close(gradient_appearances(*problem), literal_gradient_appearances(*problem))


@given(problems())
def test_given_products_change_nothing(problem):
    Z, _, P = problem
    known = {"W": Z @ P}
    assert_close(objective_of(*problem, **known), objective_of(*problem))
    assert_close(gradient_parts(*problem, **known), gradient_parts(*problem))
    assert_close(
        gradient_appearances(*problem, **known), gradient_appearances(*problem)
    )


@given(problems())
def test_gradients_agree_with_autograd_through_the_plain_formula(problem):
    Z, A, P = problem
    A, P = A.clone().requires_grad_(), P.clone().requires_grad_()
    wrt_A, wrt_P = torch.autograd.grad(literal_objective(Z, A, P), [A, P])
    A, P = A.detach(), P.detach()
    assert_close(gradient_appearances(Z, A, P), wrt_A)
    assert_close(gradient_parts(Z, A, P), wrt_P)


@given(problems())
def test_autograd_through_the_objective_gives_the_same_gradients(problem):
    Z, A, P = problem
    leaves = A.clone().requires_grad_(), P.clone().requires_grad_()
    wrt_A, wrt_P = torch.autograd.grad(objective_of(Z, *leaves), leaves)
    assert_close(wrt_A, gradient_appearances(Z, A, P))
    assert_close(wrt_P, gradient_parts(Z, A, P))


class _WithOurGradients(torch.autograd.Function):
    """The objective with our formulas as its derivative, for gradcheck."""

    @staticmethod
    def forward(ctx, Z, A, P):
        ctx.save_for_backward(Z, A, P)
        return objective_of(Z, A, P)

    @staticmethod
    def backward(ctx, upstream):
        Z, A, P = ctx.saved_tensors
        gradients = gradient_appearances(Z, A, P), gradient_parts(Z, A, P)
        return None, *(upstream * g for g in gradients)


@given(problems(max_size=5))
def test_gradcheck(problem):
    Z, A, P = problem
    Z = Z / Z.abs().max()  # gradcheck's step of 1e-6 suits values near 1
    leaves = A.requires_grad_(), P.requires_grad_()
    assert torch.autograd.gradcheck(_WithOurGradients.apply, (Z, *leaves))


@given(problems())
def test_single_precision_agrees_with_double(problem):
    single, size = problem.to(torch.float32), float(sample_energies(problem.Z).sum())
    f = objective_of(*problem)
    assert abs(objective_of(*single) - f) < 1e-5 * (f + size)
    for gradient in (gradient_parts, gradient_appearances):
        result = gradient(*single)
        assert result.dtype == torch.float32
        # The three terms of a gradient cancel: compare with the size of one.
        bound = torch.linalg.norm(gradient(*problem)) + size
        norm_A, norm_P = (torch.linalg.norm(t) for t in problem[1:])
        bound *= (1 + norm_A**4) * (1 + norm_P**4)
        assert torch.linalg.norm(result - gradient(*problem)) < 1e-5 * bound


def orthogonal(size, seed=0):
    draw = torch.randn(
        size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return torch.linalg.qr(draw).Q


@given(problems())
def test_invariant_under_rotation_of_the_appearances(problem):
    Z, A, P = problem
    R = orthogonal(A.shape[1])
    rotated = Z, A @ R, P
    assert_close(objective_of(*rotated), objective_of(*problem))
    assert_close(gradient_parts(*rotated), gradient_parts(*problem))
    assert_close(gradient_appearances(*rotated), gradient_appearances(*problem) @ R)


@given(problems(), st.floats(0.1, 10))
def test_invariant_under_exchange_of_scale(problem, factor):
    Z, A, P = problem
    scaled = Z, A * factor, P / factor
    assert_close(objective_of(*scaled), objective_of(*problem))
    assert_close(gradient_parts(*scaled), gradient_parts(*problem) * factor)
    assert_close(gradient_appearances(*scaled), gradient_appearances(*problem) / factor)


@given(problems())
def test_invariant_under_order_of_parts_samples_and_positions(problem):
    Z, A, P = problem
    f = objective_of(*problem)
    wrt_A, wrt_P = gradient_appearances(*problem), gradient_parts(*problem)

    parts = torch.randperm(
        P.shape[1], generator=torch.Generator().manual_seed(P.shape[1])
    )
    assert_close(objective_of(Z, A, P[:, parts]), f)
    assert_close(gradient_appearances(Z, A, P[:, parts]), wrt_A)
    assert_close(gradient_parts(Z, A, P[:, parts]), wrt_P[:, parts])

    assert_close(objective_of(Z.flip(0), A, P), f)
    assert_close(gradient_appearances(Z.flip(0), A, P), wrt_A)
    assert_close(gradient_parts(Z.flip(0), A, P), wrt_P)

    assert_close(objective_of(Z.roll(1, 2), A, P.roll(1, 0)), f)
    assert_close(gradient_appearances(Z.roll(1, 2), A, P.roll(1, 0)), wrt_A)
    assert_close(gradient_parts(Z.roll(1, 2), A, P.roll(1, 0)), wrt_P.roll(1, 0))


@given(problems())
def test_zero_with_zero_gradients_at_planted_factors(problem):
    Z, A, P = problem
    A, P = torch.linalg.qr(A).Q, torch.linalg.qr(P).Q
    planted = A @ (A.T @ Z @ P) @ P.T
    energy = float(sample_energies(planted).sum())
    assert abs(objective_of(planted, A, P)) <= 1e-12 * energy
    assert gradient_parts(planted, A, P).abs().max() <= 1e-12 * energy
    assert gradient_appearances(planted, A, P).abs().max() <= 1e-12 * energy


@pytest.mark.parametrize("R_C, R_S", [(4, 8), (8, 4), (32, 8), (2, 40)])
def test_no_product_is_as_large_as_the_data(R_C, R_S):
    """All three ways round: no copy of Z is made, in whatever order of axes."""
    Z, A, P = torch.rand(10, 32, 48), torch.rand(32, R_C), torch.rand(48, R_S)
    thin = 10 * max(R_C * 48 if R_C < R_S else 0, 32 * R_S)
    for function in TERMS:
        with LargestResult() as largest:
            function(Z, A, P)
        assert 0 < largest.numel <= thin < Z.numel()


def count(function, *args):
    """Multiplications in the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() / 2


def best_order(term, shapes):
    """Multiplications of one einsum term in its best pairwise order."""
    operands = [
        np.broadcast_to(0.0, [shapes[i] for i in axes])
        for axes in term.split("->")[0].split(",")
    ]
    report = np.einsum_path(term, *operands, optimize="optimal")[1]
    line = next(row for row in report.splitlines() if "Optimized FLOP" in row)
    return float(line.split(":")[1]) / 2


# Terms of the objective and of each gradient: n samples, c d channels, s t positions,
# r q appearances, k l parts. Products of ranks alone count as free: where a term has
# A A'A or P P'P, these are given as one factor.
TERMS = {
    objective_of: ["ncs,cr,sk,dr,ndt,tk->", "ncs,cr,dr,ndt,tk,sk->"],
    gradient_parts: [
        "ncs,cr,dr,ndt,tk->sk",
        "ncs,cr,dr,ndt,tk,kl->sl",
    ],
    gradient_appearances: [
        "ncs,sk,tk,ndt,dr->cr",
        "ncs,sk,tk,ndt,dr,rq->cq",
    ],
}


@pytest.mark.parametrize(
    "sizes, most",
    [
        ((96, 256, 64, 10), 2),
        ((512, 256, 512, 8), 2),
        ((64, 1024, 4, 64), 2),
        ((512, 4, 512, 2), 3),
        ((100, 1, 10, 1), 2),
        ((16, 16, 16, 16), 3),
    ],
    ids=str,
)
def test_multiplications_against_the_dearest_term_in_its_best_order(sizes, most):
    N, (C, S, R_C, R_S) = 10_000, sizes
    sizes_of_axes = [N, C, C, S, S, R_C, R_C, R_S, R_S]
    shapes = dict(zip("ncdstrqkl", sizes_of_axes, strict=True))
    Z, A, P = (
        torch.zeros(shape, dtype=torch.float64, device="meta")
        for shape in ((N, C, S), (C, R_C), (S, R_S))
    )
    for function, terms in TERMS.items():
        dearest = max(best_order(term, shapes) for term in terms)
        assert count(function, Z, A, P) <= 1.01 * most * dearest
