"""Results of calls as bytes and arrays, without the networks that the caller has.

In a file they follow a digest of it all, so that one which is not as it was written,
for whatever reason, is never taken for a result.

Floor 2: torch and numpy.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.files import write_whole
from panda_sklearn.utils.hashing import bytes_of

__all__ = ["Packed", "pack", "read_packed", "unpack", "write_packed"]

#: A pickle, and the arrays that were left out of it.
Packed = tuple[bytes | memoryview, list[np.ndarray]]

# Of the standard library's, the fastest where processors have instructions for it.
DIGEST = hashlib.sha256

# Bytes that are read, then hashed, while they are still in the processor's cache.
CHUNK = 2**18


class _Packer(pickle.Pickler):
    """Pickles all but what the arguments already had, and arrays out of band."""

    def __init__(self, file: io.BytesIO, shared: Iterable) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        super().__init__(file, protocol=5, buffer_callback=self.buffers.append)
        self._places = {id(thing): place for place, thing in enumerate(shared)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.layout == torch.strided:
            where = str(obj.device)
            about = obj.dtype, where, tuple(obj.shape), obj.requires_grad
            parameter = isinstance(obj, nn.Parameter)
            return _make_tensor, (bytes_of(obj), *about, parameter)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: list, shared: list) -> None:
        super().__init__(file, buffers=buffers)
        self._shared = shared

    def persistent_load(self, place: int) -> Any:
        return self._shared[place]


def pack(result: Any, shared: Iterable) -> Packed:
    """Pickle a result; what is shared by the places in the list."""
    file = io.BytesIO()
    packer = _Packer(file, shared)
    packer.dump(result)
    return file.getvalue(), [np.frombuffer(b.raw(), np.uint8) for b in packer.buffers]


def unpack(pickled: bytes | memoryview, buffers: list[np.ndarray], shared: list) -> Any:
    """What was packed, with the caller's own shared things in it."""
    return _Unpacker(io.BytesIO(pickled), buffers, shared).load()


def write_packed(path: Path, packed: Packed) -> None:
    """Write a packed result to a file, which appears whole or not at all."""
    pickled, buffers = packed
    parts = [np.frombuffer(pickled, np.uint8), *buffers]
    sizes = np.array([len(parts), *map(len, parts)], "<u8").view(np.uint8)
    digest = DIGEST()
    for part in (sizes, *parts):
        digest.update(part.data)
    write_whole(path, [digest.digest(), sizes, *parts])


def read_packed(path: Path) -> Packed:
    """What was written; ValueError if the file is no longer as it was."""
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        digest = DIGEST()

        def take(size: int) -> np.ndarray:
            """The next bytes, of which there must be as many."""
            nonlocal left
            left -= size
            if left < 0:
                raise ValueError(f"{path} is cut off")
            part = np.empty(size, np.uint8)
            for start in range(0, size, CHUNK):
                chunk = part[start : start + CHUNK].data
                if file.readinto(chunk) != len(chunk):
                    raise ValueError(f"{path} is cut off")
                digest.update(chunk)
            return part

        expected = take(digest.digest_size).tobytes()
        digest = DIGEST()
        (n_parts,) = take(8).view("<u8").tolist()
        sizes = take(8 * n_parts).view("<u8").tolist()
        pickled, *buffers = [take(size) for size in sizes]
    if left or digest.digest() != expected:
        raise ValueError(f"{path} is damaged")
    return pickled.data, buffers


def _make_tensor(
    values: np.ndarray,
    dtype: torch.dtype,
    device: str,
    shape: tuple[int, ...],
    requires_grad: bool,
    parameter: bool,
) -> Tensor:
    T = torch.from_numpy(values).view(dtype).reshape(shape).to(device)
    if parameter:
        return nn.Parameter(T, requires_grad)
    return T.requires_grad_(requires_grad)
