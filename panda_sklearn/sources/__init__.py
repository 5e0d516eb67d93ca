"""Data that are read in batches, again and again, rather than loaded.

Floor 2. :func:`is_source` tells them from arrays, :func:`open_source` makes one of
them: arrays on disk (:mod:`panda_sklearn.sources.stored`), loaders, datasets and
batches of a user's own (:mod:`panda_sklearn.sources.batches`), and activations made
anew in each pass (:mod:`panda_sklearn.sources.extracted`). Results go into arrays by
:mod:`panda_sklearn.sources.writing`.
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
    check_axes,
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

# What is in memory, or no data: never a source.
IN_MEMORY = (
    *(torch.Tensor, np.generic, list, tuple, range, deque, array.array, memoryview),
    *(str, bytes, bytearray, Mapping, Set, type),
)


def is_source(X: Any) -> bool:
    """Whether something is to be read in batches, rather than loaded.

    True for memory maps, for what has ``shape``, ``dtype`` and slices and is no array
    in memory, for a torch ``Dataset`` or ``DataLoader``, and for what can be iterated
    over. Lists and tuples are arrays in memory. Nothing is read.
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
    """Make something readable in batches.

    Parameters
    ----------
    X : object
        What :func:`is_source` says to be one.

    name : str, default="X"
        What the user calls it.

    device : str or torch.device, default=None
        Where to bring what is read; tensors stay where they are.

    Returns
    -------
    source : Source

    Raises
    ------
    TypeError, ValueError
        If it is no source, can be iterated over but once, has nothing in it, or holds
        something else than real numbers.
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
            "one, or make it re-iterable: a DataLoader, or an object whose __iter__ "
            "begins anew each time."
        )
    return BatchSource(X, name, device)


def open_data(
    estimator: Any, X: Any, *, reset: bool, in_memory: bool = False
) -> Source | LoadedArray | BlockedArray:
    """What an estimator is given, whatever it is; its values are not looked at yet.

    Parameters
    ----------
    estimator : estimator
        Learns the number of columns and their names, or compares them with X's. Its
        ``device`` is where the work is to be done.

    X : object
        An array, or what :func:`is_source` says to be read in batches.

    reset : bool
        Whether to learn.

    in_memory : bool, default=False
        Whether it must be in memory.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or has no samples, or is not in memory but must be.
    """
    if is_blocked(X):
        if in_memory:
            raise ValueError(
                f"solver={estimator.solver!r} draws samples at random and needs them in"
                " memory, but X is a dask array. Compute it, or use solver='spg'."
            )
        check_axes(X)
        data = BlockedArray(X)
        if data.ndim == 2:
            check_columns(estimator, data, reset=reset)
        return data
    if is_source(X) and not (in_memory and isinstance(X, np.ndarray)):
        source = open_source(X, device=estimator.device)
        if in_memory:
            raise ValueError(
                f"solver={estimator.solver!r} draws samples at random and needs them in"
                f" memory, but X is a {type(X).__name__}. Load it, or use solver='spg'."
            )
        check_axes(source)
        if source.ndim == 2:
            check_columns(estimator, source, reset=reset)
        return source
    X = check_numeric_array(estimator, X, reset=reset, finite=False)
    return LoadedArray(X, estimator.device)


def _is_stored(X: Any) -> bool:
    """Whether something has a shape, a type and slices."""
    return all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__"))
