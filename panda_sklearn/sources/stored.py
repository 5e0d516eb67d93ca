"""Arrays on disk: memory maps, HDF5, Zarr, or anything with a shape and slices.

Imports torch and numpy; no storage library is imported. Arrays are read in runs of
samples that end at the ends of chunks, so each chunk is read once. A thread reads the
next run while one is processed.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.sources.base import RUN_BYTES, Source
from panda_sklearn.sources.mapped import mapping_of, release
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import check_array_like, check_axes, shown

__all__ = ["StoredArray"]

# Largest run. A chunk with more bytes is read in pieces, and so more than once; up to
# three runs are in memory at a time.
LARGEST_RUN_BYTES = 2**27

# Types that numpy knows only by name, once ml_dtypes is imported.
SMALL_FLOATS = ("bfloat16", "float8_", "float6_", "float4_")  # but not float64


class StoredArray(Source):
    """An array that is read by slices.

    Parameters
    ----------
    array : object
        Has ``shape``, ``dtype`` and slices along the first axis, which are arrays or
        tensors.

    name : str
        The user's name for it, for messages.

    device : str or torch.device, default=None
        Device to move runs to, unless they are tensors.

    Raises
    ------
    TypeError, ValueError
        If it does not hold real numbers, has fewer than two axes, or is empty.
    """

    def __init__(
        self, array: Any, name: str, device: str | torch.device | None = None
    ) -> None:
        check_array_like(array, name, "an array of numbers")
        shape = tuple(map(int, array.shape))
        dtype = array.dtype
        if not isinstance(dtype, torch.dtype):
            dtype = _numeric_type(array, name)
        super().__init__(
            name,
            shape[1:],
            n_samples=shape[0],
            dtype=_precision(dtype),
            origin=_origin(array),
            device=device,
        )
        check_axes(self)
        self._array = array
        self._run_length = _run_length(array, dtype.itemsize)

    def read(self) -> Generator[Tensor, None, None]:
        """Yield all samples in order, in runs; the next run is read ahead."""
        try:
            shape = tuple(self._array.shape)
        except Exception as error:  # as of a file that is closed
            raise OSError(
                f"{self.name} could not be read ({type(error).__name__}: {error})."
            ) from error
        if shape != self.shape:
            raise ValueError(
                f"{self.name} is of shape {shape}, but was of shape {self.shape} when "
                "it was opened: do not change it while it is read."
            )
        first, *others = (
            slice(start, min(start + self._run_length, shape[0]))
            for start in range(0, shape[0], self._run_length)
        )
        with Undo() as undo, undo:
            thread = ThreadPoolExecutor(1, thread_name_prefix="panda_sklearn read")
            undo.note(lambda: thread.shutdown(cancel_futures=True))
            ahead: Future = thread.submit(self._run, first)
            # Python's join fails if it is interrupted while it waits for a thread, so
            # leave it nothing to wait for.
            undo.note(lambda: ahead.cancel() or wait([ahead]))
            for rows in others:
                run = ahead.result()
                ahead = thread.submit(self._run, rows)
                yield self._converted(run)
            yield self._converted(ahead.result())

    def _run(self, rows: slice) -> ArrayLike:
        """Read the samples of a run into memory."""
        try:
            run = self._array[rows]
            if mapping_of(run) is not None:
                run = np.array(run)
                release(self._array)
            elif not isinstance(run, Tensor):
                run = np.asarray(run)
        except Exception as error:
            raise OSError(
                f"Samples {rows.start} to {rows.stop - 1} of {self.name} could not be "
                f"read ({type(error).__name__}: {error})."
            ) from error
        expected = (rows.stop - rows.start, *self.sample_shape)
        if tuple(run.shape) != expected:
            raise ValueError(
                f"{self.name}[{rows.start}:{rows.stop}] is of shape {tuple(run.shape)},"
                f" expected {expected}."
            )
        return run

    def _converted(self, run: ArrayLike) -> Tensor:
        if not isinstance(run, Tensor) and run.dtype.name.startswith(SMALL_FLOATS):
            run = run.astype(np.float32)
        return as_tensor(run, self.device).to(self.dtype)


def _numeric_type(array: Any, name: str) -> np.dtype:
    """Numpy's type of an array of numbers.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    """
    try:
        dtype = np.dtype(array.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub" and not dtype.name.startswith(SMALL_FLOATS):
        raise TypeError(
            f"{name} must be an array of numbers, got {shown(array)} with values of "
            f"type {array.dtype}."
        )
    return dtype


def _precision(dtype: torch.dtype | np.dtype) -> torch.dtype:
    """Single or double precision, whichever a type needs."""
    if isinstance(dtype, torch.dtype):
        return dtype
    double = dtype.kind == "f" and dtype.itemsize >= 8
    return torch.float64 if double else torch.float32


def _origin(array: Any) -> Origin:
    """Kind and device of the slices: tensors if the array's type is one of torch."""
    tensors = isinstance(array.dtype, torch.dtype)
    where = getattr(array, "device", "cpu") if tensors else "cpu"
    return Origin(tensors, torch.device(where))


def _run_length(array: Any, itemsize: int) -> int:
    """Number of samples to read at a time: whole chunks if they are not too large."""
    sample = max(1, math.prod(array.shape[1:])) * max(4, itemsize)
    chunk = 1
    for chunks in (getattr(array, "shards", None), getattr(array, "chunks", None)):
        if isinstance(chunks, tuple) and chunks and isinstance(chunks[0], int):
            chunk = min(chunks[0], array.shape[0])
            if chunk * sample <= LARGEST_RUN_BYTES:
                break
    n_pieces = math.ceil(chunk * sample / LARGEST_RUN_BYTES)
    if n_pieces > 1:
        return math.ceil(chunk / n_pieces)
    return chunk * max(1, RUN_BYTES // (sample * chunk))
