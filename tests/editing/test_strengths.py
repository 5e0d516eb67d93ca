"""The search for the factors of strengths."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from panda_sklearn.editing._strengths import MAX_EVALUATIONS, TOLERANCE, find_factors


@given(
    st.lists(st.floats(-3, 4), min_size=1, max_size=8),
    st.floats(0.3, 3),
    st.floats(1e-3, 1e3),
)
def test_powers(exponents, power, target):
    """Changes that grow as a power of the factor, on very different scales."""
    scale = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    n_evaluations = torch.zeros(len(scale))

    def change_of(x, rows):
        n_evaluations[rows] += 1
        return target * (scale[rows] * x) ** power

    factors, changes = find_factors(change_of, len(scale), target)
    torch.testing.assert_close(changes, target * (scale * factors) ** power)
    assert bool(((changes / target - 1).abs() <= TOLERANCE).all())
    assert n_evaluations.max() <= MAX_EVALUATIONS


def test_proportional_changes_take_few_evaluations():
    counts = []

    def change_of(x, rows):
        counts.append(len(rows))
        return 5 * x

    find_factors(change_of, 3, 1.0)
    assert len(counts) <= 3


def test_out_of_reach_ends_with_the_nearest():
    factors, changes = find_factors(lambda x, rows: x / (1 + x), 2, 3.0)
    assert bool((changes < 1).all()) and bool((changes > 0.99).all())
    assert bool(factors.isfinite().all())
    factors, changes = find_factors(lambda x, rows: 0 * x, 2, 3.0)
    assert bool((factors == 0).all()) and bool((changes == 0).all())


def test_values_that_are_not_finite_are_too_much():
    def change_of(x, rows):
        return torch.where(x > 0.5, torch.nan, x)

    factors, _ = find_factors(change_of, 2, 0.3)
    torch.testing.assert_close(
        factors, torch.full_like(factors, 0.3), rtol=TOLERANCE, atol=0
    )
