"""Arrays that map a file into memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

__all__ = ["mapping_of", "release"]


def mapping_of(X: Any) -> mmap.mmap | None:
    """The mapping behind a memmap or a view of one.

    ``None`` for copies, which may still be of the type memmap.
    """
    if not isinstance(X, np.memmap):
        return None
    while isinstance(X, np.ndarray):
        X = X.base
    return X if isinstance(X, mmap.mmap) else None


def release(X: Any) -> None:
    """Free a memmap's pages in memory; what was written to them is kept.

    Private mappings, of mode "c", are left alone, since they would lose changes.
    """
    mapping = mapping_of(X)
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if mapping is not None and advice is not None and X.mode in ("r", "r+", "w+"):
        mapping.madvise(advice)
