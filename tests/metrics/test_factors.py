"""Measures of factors, against slow versions and in cases known by hand."""

import itertools

import numpy as np
import pytest
import torch

from panda_sklearn.metrics import (
    dead_parts,
    duplicate_parts,
    match_factors,
    parts_overlap,
)


def cosine(one, other):
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return (one * other).sum() / norms if norms else 0.0


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("ignore_sign", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (5, 3), (1, 1)])
def test_best_of_all_assignments(kind, ignore_sign, sizes):
    random = np.random.default_rng(sum(sizes))
    one, other = (random.normal(size=(n, 2, 3)) for n in sizes)
    rows, columns, cosines = match_factors(
        kind(one), kind(other), ignore_sign=ignore_sign
    )
    assert isinstance(rows, np.ndarray) and isinstance(cosines, np.ndarray)
    assert (np.diff(rows) > 0).all()
    table = np.array([[cosine(a, b) for b in other] for a in one])
    table = abs(table) if ignore_sign else table
    np.testing.assert_allclose(cosines, table[rows, columns], atol=1e-12)
    wide = table if sizes[0] <= sizes[1] else table.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), len(wide))
    )
    assert cosines.sum() == pytest.approx(best)


def test_factors_that_are_zero():
    _, columns, cosines = match_factors(np.zeros((2, 3)), np.eye(3))
    assert cosines.tolist() == [0, 0] and len(set(columns)) == 2


def test_scale_and_order_do_not_matter():
    parts = np.random.default_rng(0).random((4, 3, 3))
    order = [2, 0, 3, 1]
    scaled = 7 * parts[order]
    rows, columns, cosines = match_factors(parts, scaled)
    np.testing.assert_array_equal(np.array(order)[columns], rows)
    np.testing.assert_allclose(cosines, 1)
    assert parts_overlap(scaled) == pytest.approx(parts_overlap(parts))


def test_overlap_is_the_mean_cosine_of_pairs():
    parts = np.random.default_rng(0).random((4, 3, 3))
    pairs = itertools.permutations(parts, 2)
    assert parts_overlap(parts) == pytest.approx(np.mean([cosine(*p) for p in pairs]))
    assert parts_overlap(parts[:1]) == 0


def test_dead_and_duplicate_parts():
    parts = np.array([[1, 1, 0, 0], [0, 0, 2, 0], [1e-8, 0, 0, 0], [3, 3, 0.1, 0]])
    assert dead_parts(parts).tolist() == [False, False, True, False]
    assert dead_parts(parts, tol=0).tolist() == [False] * 4
    assert dead_parts(np.zeros((2, 3))).tolist() == [True, True]
    assert duplicate_parts(parts).tolist() == [False, False, False, True]
    assert duplicate_parts(parts, threshold=0.5).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: match_factors(np.eye(3), np.eye(4)), "rows of the same shape"),
        (lambda: match_factors(np.full((2, 2), np.nan), np.eye(2)), "factors contains"),
        (lambda: parts_overlap(np.ones(3)), "parts must be an array"),
        (lambda: dead_parts(np.eye(2), tol=2), "tol must be"),
        (lambda: duplicate_parts(np.eye(2), threshold="x"), "threshold must be"),
    ],
)
def test_bad_input(call, part):
    with pytest.raises(ValueError, match=part):
        call()
