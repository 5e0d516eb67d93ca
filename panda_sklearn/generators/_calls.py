"""What every call of a generator needs, of whatever family or none.

Floor 2: see :mod:`panda_sklearn.generators`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.arrays import ArrayLike
from panda_sklearn.utils.batches import is_out_of_memory
from panda_sklearn.utils.borrowing import (
    borrowed,
    preserved_random_state,
    seed_noise,
)
from panda_sklearn.utils.hooks import TapTypeError, check_hookable
from panda_sklearn.utils.validation import check_function, check_kind

__all__ = [
    "ConventionError",
    "Run",
    "check_forward",
    "check_network",
    "device_of",
    "dtype_of",
    "explained_failures",
    "running",
]

# forward(generator, latents), and run(latents) of a borrowed generator.
Forward = Callable[[nn.Module, Tensor], Any]
Run = Callable[[ArrayLike], Any]


class ConventionError(TypeError):
    """A generator is not written as its family says."""


def check_forward(forward: Any) -> None:
    """Raise TypeError unless ``forward`` can be called, or is None."""
    check_function("forward", forward, "generator, latents")


def check_network(name: str, network: Any) -> None:
    """Raise TypeError unless it is a module that hooks can be attached to."""
    check_kind(name, network, nn.Module)
    check_hookable(network)


@contextlib.contextmanager
def explained_failures(latents: Any, forward: Any) -> Iterator[None]:
    """Put failures of a first forward pass down to how the network was called.

    Raises
    ------
    ValueError
        Instead of what networks raise on inputs that they cannot take.
    """
    try:
        yield
    except (TapTypeError, ConventionError):
        raise
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        advice = "Check their shape"
        if forward is None:
            advice += "; if the network is called in another way, pass forward"
        shape = tuple(np.shape(latents))
        raise ValueError(
            f"The network could not be run on latents of shape {shape} "
            f"({type(error).__name__}: {error}). {advice}."
        ) from error


def device_of(generator: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; else the CPU."""
    tensors = itertools.chain(generator.parameters(), generator.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def dtype_of(generator: nn.Module, default: Any) -> Any:
    """The dtype of the network's first floating parameter."""
    floating = (p.dtype for p in generator.parameters() if p.is_floating_point())
    return next(floating, default)


@contextlib.contextmanager
def running(
    generator: nn.Module, forward: Forward | None, device: torch.device | None = None
) -> Iterator[Run]:
    """Borrow a network for forward passes.

    Noise that it draws is the same in each pass.

    Parameters
    ----------
    generator : Module

    forward : callable or None
        ``forward(generator, latents)``; ``None`` is ``generator(latents)``.

    device : torch.device, default=None
        Where to run it; ``None`` is where it is.

    Yields
    ------
    run : callable
        ``run(latents)`` makes a forward pass. Latents come to the device, floating ones
        in the dtype of the network's parameters; integers (class labels, token numbers)
        keep theirs, and so do latents for a ``forward`` that casts them itself.
    """
    where = device_of(generator) if device is None else device
    dtype = dtype_of(generator, None)
    if getattr(forward, "casts_latents", False):
        dtype = None

    def run(latents: ArrayLike) -> Any:
        if not isinstance(latents, Tensor):
            latents = torch.from_numpy(np.array(latents, order="C"))
        batch = latents.detach()
        batch = batch.to(where, dtype if batch.is_floating_point() else None)
        seed_noise(where)
        return generator(batch) if forward is None else forward(generator, batch)

    with borrowed(generator, device), preserved_random_state(where):
        yield run
