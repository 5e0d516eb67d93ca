"""Results of calls as bytes and arrays, without the networks that the caller has.

Floor 2: torch and numpy.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.hashing import bytes_of

__all__ = ["Packed", "pack", "unpack"]

#: A pickle, and the arrays that were left out of it.
Packed = tuple[bytes, list[np.ndarray]]


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


def unpack(pickled: bytes, buffers: list[np.ndarray], shared: list) -> Any:
    """What was packed, with the caller's own shared things in it."""
    return _Unpacker(io.BytesIO(pickled), buffers, shared).load()


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
