"""From users' arrays to tensors (N, C, S) and back.

Settles kind, dtype, device and layout; :mod:`panda_sklearn.utils.validation` checks the
values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ArrayLike",
    "MapLayout",
    "Origin",
    "as_tensor",
    "is_floating",
    "promoted",
    "randomness",
]

#: What users pass in and get back.
ArrayLike = np.ndarray | Tensor

# Types that torch can hold, but barely computes with.
UNSIGNED = {torch.uint16, torch.uint32, torch.uint64}


@dataclass(frozen=True)
class Origin:
    """Where an input came from, so that results can go back there."""

    tensor: bool
    device: torch.device

    @classmethod
    def of(cls, X: object) -> Origin:
        """The origin of an array or tensor."""
        if isinstance(X, Tensor):
            return cls(True, X.device)
        return cls(False, torch.device("cpu"))

    def give(self, result: Tensor) -> ArrayLike:
        """The result as an array of the input's kind, on the input's device.

        In numpy, bfloat16 becomes float32.
        """
        result = result.detach().to(self.device)
        if self.tensor:
            return result
        return (result.float() if result.dtype == torch.bfloat16 else result).numpy()


def as_tensor(
    X: ArrayLike,
    device: str | torch.device | None = None,
    *,
    keep_type: bool = False,
) -> Tensor:
    """A tensor of single or double precision, which shares X's memory if possible.

    Numpy arrays go to ``device``; tensors stay where they are. ``keep_type`` keeps half
    precision, integers and booleans; of the types that torch does not compute with,
    floats become float32 and integers int64.
    """
    T = X.detach() if isinstance(X, Tensor) else _shared(X)
    if device is not None and not isinstance(X, Tensor):
        T = T.to(device)
    if not keep_type:
        return promoted(T)
    if T.dtype in UNSIGNED:
        return T.to(torch.int64)
    return promoted(T) if T.is_floating_point() and T.dtype.itemsize == 1 else T


def is_floating(X: object) -> bool:
    """Whether an array or tensor holds floating-point numbers."""
    if isinstance(X, Tensor):
        return X.is_floating_point()
    return np.asarray(X).dtype.kind == "f"


def promoted(T: Tensor) -> Tensor:
    """Single and double precision as they are; everything else as float32."""
    return T if T.dtype in (torch.float32, torch.float64) else T.to(torch.float32)


def _shared(X: np.ndarray) -> Tensor:
    """A tensor on the CPU that shares an array's memory if possible."""
    if X.dtype.kind == "f" and X.dtype.itemsize > 8:  # long double
        X = X.astype(np.float64)
    if not X.dtype.isnative or any(stride < 0 for stride in X.strides):
        X = np.array(X, dtype=X.dtype.newbyteorder("="), order="C")
    if not X.flags.writeable:
        # Read-only memory is shared too, since nothing here writes into it. Torch would
        # warn, and filters of warnings belong to all threads.
        X = np.asarray(_Writeable(X))
    return torch.from_numpy(X)


class _Writeable:
    """Claims that an array's memory may be written to, and keeps it alive."""

    def __init__(self, X: np.ndarray) -> None:
        self.owner = X
        address, _ = X.__array_interface__["data"]
        self.__array_interface__ = {**X.__array_interface__, "data": (address, False)}


def randomness(random_state: np.random.RandomState) -> torch.Generator:
    """A torch generator on the CPU, seeded from a numpy random state."""
    return torch.Generator().manual_seed(int(random_state.randint(2**31 - 1)))


@dataclass(frozen=True)
class MapLayout:
    """How feature maps are laid out in a user's array.

    Torch can trace and differentiate both conversions.

    Attributes
    ----------
    map_shape : tuple of int
        (C, *spatial) of one sample.
    channel_axis : {1, -1}
        Where the channels are in arrays of more than two axes.
    flattened : bool
        Whether samples are rows of C * S numbers, channels first.
    """

    map_shape: tuple[int, ...]
    channel_axis: int = 1
    flattened: bool = False

    @property
    def n_channels(self) -> int:
        """C."""
        return self.map_shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The spatial sizes."""
        return self.map_shape[1:]

    @property
    def n_positions(self) -> int:
        """S."""
        return math.prod(self.spatial)

    def sliced(self, n: int) -> MapLayout:
        """The layout of one of n equal slices of the channels."""
        return replace(self, map_shape=(self.n_channels // n, *self.spatial))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in the user's array."""
        if self.flattened:
            return (math.prod(self.map_shape),)
        if self.channel_axis == -1:
            return (*self.spatial, self.n_channels)
        return self.map_shape

    def to_maps(self, X: Tensor) -> Tensor:
        """Tensor in this layout -> (N, C, S), contiguous."""
        if not self.flattened and self.channel_axis == -1:
            X = X.movedim(-1, 1)
        return X.reshape(X.shape[0], self.n_channels, self.n_positions).contiguous()

    def from_maps(self, Z: Tensor) -> Tensor:
        """(N, C, S) -> tensor in this layout."""
        if self.flattened:
            return Z.reshape(Z.shape[0], *self.sample_shape)
        X = Z.reshape(Z.shape[0], *self.map_shape)
        if self.channel_axis == -1:
            X = X.movedim(1, -1).contiguous()
        return X
