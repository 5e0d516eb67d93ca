"""Sums of outer products, of which little more than half is computed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_gram", "mirror"]

# Matrices up to this size are computed whole: there the number of calls is what costs.
SMALL = 192


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rows' rows to ``total``, except for the blocks that :func:`mirror` fills.

    It goes by strips of rows of ``total``, each from the diagonal on.
    """
    for strip in _strips(len(total)):
        total[strip, strip.start :] += rows[:, strip].T @ rows[:, strip.start :]


def mirror(total: Tensor) -> Tensor:
    """Fill in what :func:`add_gram` left out, in place."""
    for strip in _strips(len(total)):
        total[strip.stop :, strip] = total[strip, strip.stop :].T
    return total


def _strips(n: int) -> list[slice]:
    """Return four strips of n rows; one where n is small."""
    size = -(-n // 4) if n > SMALL else n
    return [slice(i, i + size) for i in range(0, n, size)]
