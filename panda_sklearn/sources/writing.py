"""Writing results, batch by batch, into an array that the user gives."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.sources.mapped import mapping_of, release
from panda_sklearn.utils.validation import check_array_like, check_fits

__all__ = ["Writer"]


class Writer:
    """Writes results of samples, in their order, into slices of an array.

    Use it as a context manager, which adds a note to an exception that ends the block:
    how much of the array was written. The array is checked before anything is
    written.

    Parameters
    ----------
    out : object
        An array or tensor, a memory map, an HDF5 dataset, a Zarr array, or anything
        else with ``shape`` and ``dtype`` that supports assignment to slices.

    shape : tuple of int or None
        Shape of all results; ``None`` for a number of samples that is not known yet.

    dtype : torch.dtype
        Type of the results.

    name : str, default="out"
        The user's name for it, for messages.

    Raises
    ------
    TypeError, ValueError
        If it does not support assignment, has another shape, or does not hold
        floating-point numbers.
    OSError
        If it maps a file for which there is not enough space on the disk.
    """

    def __init__(
        self,
        out: Any,
        shape: tuple[int | None, ...],
        dtype: torch.dtype,
        name: str = "out",
    ) -> None:
        self.out, self.name = out, name
        self.n_written = 0
        expected = ", ".join("n_samples" if n is None else str(n) for n in shape)
        wanted = f"an array of shape ({expected}) that can be assigned to by slices"
        check_array_like(out, name, wanted)
        for needed in ("shape", "dtype", "__setitem__"):
            if not hasattr(out, needed):
                raise TypeError(f"{name} must be {wanted}, got a {type(out).__name__}.")
        found = tuple(out.shape)
        if len(found) != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, found, strict=True)
        ):
            raise ValueError(f"{name} must be {wanted}, got one of shape {found}.")
        into = _floating_type(out)
        if into is None:
            raise ValueError(
                f"{name} must hold floating-point numbers, such as {dtype}, got "
                f"{out.dtype}."
            )
        self.dtype = into
        if _is_read_only(out):
            raise ValueError(f"{name} is read-only: open it for writing.")
        self._mapped = mapping_of(out) is not None
        if self._mapped:
            _allocate(out, name)

    def write(self, values: Tensor) -> None:
        """Write the results of the next samples.

        Raises
        ------
        OSError
            If the array cannot be written to.
        ValueError
            If there are more results than ``out`` has room for, or they do not fit its
            type.
        """
        start, stop = self.n_written, self.n_written + len(values)
        if stop > self.out.shape[0]:
            raise ValueError(
                f"{self.name} has room for {self.out.shape[0]} samples, but there are "
                f"{stop} or more."
            )
        check_fits(values, f"What goes into {self.name}", self.dtype)
        values = values.detach().to(self.dtype)
        try:
            if isinstance(self.out, Tensor):
                self.out.detach()[start:stop] = values.to(self.out.device)
            else:
                self.out[start:stop] = _as_numpy(values)
            if self._mapped:
                release(self.out)
        except Exception as error:
            raise OSError(
                f"Results of samples {start} to {stop - 1} could not be written to "
                f"{self.name} ({type(error).__name__}: {error})."
            ) from error
        self.n_written = stop

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except Exception as problem:
            problem.add_note(self._state())
            raise
        if error is not None:
            error.add_note(self._state())

    def _finish(self) -> None:
        """Raise unless all results were written, and flush them to the file."""
        if self.n_written != self.out.shape[0]:
            raise ValueError(
                f"{self.name} has room for {self.out.shape[0]} samples, but there are "
                f"only {self.n_written}."
            )
        try:
            getattr(self.out, "flush", lambda: None)()
        except Exception as error:
            raise OSError(
                f"{self.name} could not be written to its file "
                f"({type(error).__name__}: {error})."
            ) from error

    def _state(self) -> str:
        return (
            f"{self.name} is not complete: results of {self.n_written} of its "
            f"{self.out.shape[0]} samples were written."
        )


def _floating_type(out: Any) -> torch.dtype | None:
    """Torch's type for an array of floating-point numbers; ``None`` for other types."""
    if isinstance(out.dtype, torch.dtype):
        return out.dtype if out.dtype.is_floating_point else None
    dtype = np.dtype(out.dtype)
    if dtype.name == "bfloat16":
        return torch.bfloat16
    if dtype.kind != "f":
        return None
    return {2: torch.float16, 4: torch.float32}.get(dtype.itemsize, torch.float64)


def _as_numpy(values: Tensor) -> np.ndarray:
    values = values.cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _is_read_only(out: Any) -> bool:
    if isinstance(out, np.ndarray):
        return not out.flags.writeable
    mode = getattr(getattr(out, "file", None), "mode", None)  # of HDF5
    return mode == "r" or getattr(out, "read_only", False) is True  # of Zarr


def _allocate(out: np.memmap, name: str) -> None:
    """Allocate space on the disk for a memory map, keeping its values.

    Writing where there is no space would kill the process.
    """
    if out.filename is None or out.mode == "c" or not hasattr(os, "posix_fallocate"):
        return
    try:
        with open(out.filename, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(out.filename))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return  # the file system does not support it, or the file is gone
        raise OSError(
            error.errno, f"There is no room on the disk for {name}: {error}."
        ) from error
