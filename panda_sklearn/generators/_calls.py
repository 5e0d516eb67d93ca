"""What every call of a generator needs: where it is, and latents as it takes them.

Floor 2: see :mod:`panda_sklearn.generators`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["device_of", "dtype_of", "prepare_latents"]


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
