"""Data that are read in batches, once per pass, rather than loaded.

:func:`is_source` recognises them and :func:`open_source` opens them: arrays on disk
(:mod:`panda_sklearn.sources.stored`), loaders, datasets and the user's own batches
(:mod:`panda_sklearn.sources.batches`), and activations that are computed in each pass
(:mod:`panda_sklearn.sources.extracted`). :mod:`panda_sklearn.sources.writing` writes
results into arrays.
"""

from __future__ import annotations

import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch.utils.data import DataLoader, Dataset

from panda_sklearn.sources.base import Source
from panda_sklearn.sources.batches import BatchSource, ItemsInBatches
from panda_sklearn.sources.blocks import BlockedArray, is_blocked
from panda_sklearn.sources.extracted import ExtractedBatches
from panda_sklearn.sources.loaded import LoadedArray
from panda_sklearn.sources.mapped import mapping_of
from panda_sklearn.sources.stored import StoredArray
from panda_sklearn.sources.writing import Writer
from panda_sklearn.utils.validation import (
    check_columns,
    check_numeric_array,
    shown,
)

__all__ = [
    "BlockedArray",
    "ExtractedBatches",
    "LoadedArray",
    "Source",
    "Writer",
    "is_blocked",
    "is_source",
    "open_data",
    "open_source",
]

# Types that are never a source: their data are in memory, or they are not data.
IN_MEMORY = (
    *(torch.Tensor, np.generic, list, tuple, range, deque, array.array, memoryview),
    *(str, bytes, bytearray, Mapping, Set, type),
)


def is_source(X: Any) -> bool:
    """Whether something is to be read in batches, rather than loaded.

    True for memory maps; for objects with ``shape``, ``dtype`` and slices that are not
    arrays in memory; for a torch ``Dataset`` or ``DataLoader``; and for other
    iterables. Lists and tuples count as arrays in memory. Nothing is read.
    """
    if isinstance(X, np.ndarray):
        return mapping_of(X) is not None
    if isinstance(X, IN_MEMORY) or scipy.sparse.issparse(X) or is_blocked(X):
        return False
    if isinstance(X, Dataset | DataLoader) or _is_stored(X):
        return True
    return isinstance(X, Iterable) and not hasattr(X, "__array__")


def open_source(
    X: Any, name: str = "X", device: str | torch.device | None = None
) -> Source:
    """Open data that are read in batches.

    Parameters
    ----------
    X : object
        Data for which :func:`is_source` is true.

    name : str, default="X"
        The user's name for the data, for messages.

    device : str or torch.device, default=None
        Device to move batches to; tensors stay where they are.

    Returns
    -------
    source : Source

    Raises
    ------
    TypeError, ValueError
        If X is not a source, can be iterated over only once, is empty, or does not hold
        real numbers.
    """
    if not is_source(X):
        raise TypeError(
            f"{name} must be an array on disk, a Dataset, a DataLoader or an object "
            f"that gives batches each time it is iterated over, got {shown(X)}."
        )
    if isinstance(X, Dataset):
        return BatchSource(ItemsInBatches(X, name), name, device)
    if isinstance(X, DataLoader):
        return BatchSource(X, name, device)
    if isinstance(X, np.ndarray) or _is_stored(X):
        return StoredArray(X, name, device)
    if isinstance(X, Iterator):
        raise TypeError(
            f"{name} is a {type(X).__name__}, which can be iterated over only once, but"
            " samples are read several times. Give its batches to partial_fit one by "
            "one, or pass a DataLoader or an object whose __iter__ begins anew each "
            "time."
        )
    return BatchSource(X, name, device)


def open_data(
    estimator: Any, X: Any, *, reset: bool, in_memory: bool = False
) -> Source | LoadedArray | BlockedArray:
    """Open the data given to an estimator, of any kind, without looking at the values.

    Parameters
    ----------
    estimator : estimator
        Has the number of columns and their names, and the ``device`` for the work.

    X : object
        An array, or data for which :func:`is_source` is true.

    reset : bool
        Whether to set the number and names of the columns on the estimator; otherwise
        those of X are compared with them.

    in_memory : bool, default=False
        Whether the data must be in memory.

    Raises
    ------
    TypeError, ValueError
        If X is neither, has no samples, or is not in memory but must be.
    """
    data: Source | BlockedArray
    if is_blocked(X):
        data, kind = BlockedArray(X), "dask array"
    elif is_source(X) and not (in_memory and isinstance(X, np.ndarray)):
        data, kind = open_source(X, device=estimator.device), type(X).__name__
    else:
        X = check_numeric_array(estimator, X, reset=reset, finite=False)
        return LoadedArray(X, estimator.device)
    if in_memory:
        raise ValueError(
            f"solver={estimator.solver!r} draws samples at random and needs them in "
            f"memory, but X is a {kind}. Load it, or use solver='spg'."
        )
    if data.ndim == 2:
        check_columns(estimator, data, reset=reset)
    return data


def _is_stored(X: Any) -> bool:
    """Whether an object has a shape, a type and slices."""
    return all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__"))
