"""Sums of outer products, of which little more than one half is computed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_gram", "mirror"]

SMALL = 192


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rows' rows to ``total``, but for the blocks that :func:`mirror` fills.

    In strips of rows, of which each begins at the diagonal.
    """
    for strip in _strips(len(total)):
        total[strip, strip.start :] += rows[:, strip].T @ rows[:, strip.start :]


def mirror(total: Tensor) -> Tensor:
    """Fill in, in place, what :func:`add_gram` left out."""
    for strip in _strips(len(total)):
        total[strip.stop :, strip] = total[strip, strip.stop :].T
    return total


def _strips(n: int) -> list[slice]:
    """Four; one, where a matrix is so small that calls are what costs."""
    size = -(-n // 4) if n > SMALL else n
    return [slice(i, i + size) for i in range(0, n, size)]
