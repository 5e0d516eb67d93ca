"""What every call of a generator needs, of whatever family or none.

Floor 2: see :mod:`panda_sklearn.generators`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.utils.batches import is_out_of_memory
from panda_sklearn.utils.hooks import TapTypeError

__all__ = [
    "ConventionError",
    "check_forward",
    "device_of",
    "dtype_of",
    "explained_failures",
    "prepare_latents",
]


class ConventionError(TypeError):
    """A generator is not written as its family says."""


def check_forward(forward: Any) -> None:
    """Raise TypeError if ``forward`` is a class, where its instance is meant."""
    if isinstance(forward, type):
        raise TypeError(
            f"forward is the class {forward.__name__}: pass an object of it, such as "
            f"{forward.__name__}()."
        )


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
        raise ValueError(
            f"The network could not be run on latents of shape {tuple(latents.shape)} "
            f"({type(error).__name__}: {error}). {advice}."
        ) from error


def device_of(generator: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; else the CPU."""
    # Asked before every batch: looks no further than the first.
    tensors = itertools.chain(generator.parameters(), generator.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def dtype_of(generator: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of the network's first floating parameter."""
    floating = (p.dtype for p in generator.parameters() if p.is_floating_point())
    return next(floating, default)


def prepare_latents(
    generator: nn.Module,
    latents: Tensor,
    device: torch.device,
    forward: Callable[[nn.Module, Tensor], Any] | None,
) -> Tensor:
    """Latents on the device; floating ones in the dtype of the network's parameters.

    Integers (class labels, token numbers) keep their dtype, and so do latents for a
    ``forward`` that casts them itself.
    """
    dtype = latents.dtype
    if latents.is_floating_point() and not getattr(forward, "casts_latents", False):
        dtype = dtype_of(generator, dtype)
    return latents.to(device=device, dtype=dtype)
