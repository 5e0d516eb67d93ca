"""What every call of a generator needs, of whatever family or none.

Floor 2: see :mod:`panda_sklearn.generators`.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.arrays import ArrayLike, as_tensor, is_floating
from panda_sklearn.utils.batches import is_out_of_memory
from panda_sklearn.utils.borrowing import (
    borrow,
    preserve_random_state,
    seed_noise,
)
from panda_sklearn.utils.hooks import check_hookable
from panda_sklearn.utils.taps import TapTypeError
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import check_function, check_kind

CPU = torch.device("cpu")

__all__ = [
    "ConventionError",
    "Run",
    "called",
    "check_forward",
    "check_network",
    "device_of",
    "dtype_of",
    "explained_failures",
    "running",
    "takes_rows",
]

# forward(generator, latents), with rows if it takes them, and run(latents, rows) of a
# borrowed generator, where rows are the numbers of the latents among all.
Forward = Callable[..., Any]
Run = Callable[..., Any]


class ConventionError(TypeError):
    """A generator is not written as its family says."""


def check_forward(forward: Any) -> None:
    """Raise TypeError unless ``forward`` can be called, or is None."""
    check_function("forward", forward, "generator, latents")


def check_network(name: str, network: Any) -> None:
    """Raise TypeError unless it is a module that hooks can be attached to."""
    check_kind(name, network, nn.Module)
    check_hookable(network)


def called(
    forward: Forward | None, generator: nn.Module, latents: Tensor, rows: Any = None
) -> Any:
    """Images of latents, with the numbers that they have among all, if it takes them.

    ``rows`` is a slice or a tensor; ``None`` is from 0.
    """
    takes = takes_rows(forward) if forward is not None else _says_so(generator)
    options = {}
    if takes:
        if not isinstance(rows, Tensor):
            start = 0 if rows is None else rows.start
            rows = torch.arange(start, start + len(latents), device="cpu")
        options = {"rows": rows.cpu()}
    if forward is None:
        return generator(latents, **options)
    return forward(generator, latents, **options)


def _says_so(generator: nn.Module) -> bool:
    """Whether a generator of ours takes rows; networks may call other things so."""
    return getattr(generator, "takes_rows", None) is True


def takes_rows(forward: Any) -> bool:
    """Whether a function has an argument called rows."""
    try:
        return "rows" in inspect.signature(forward).parameters
    except (TypeError, ValueError):  # of C
        return False


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
        if not is_floating(latents):
            advice += ", and pass floats unless they are classes or token numbers"
        if forward is None:
            advice += "; if the network is called in another way, pass forward"
        kind = latents.dtype if isinstance(latents, Tensor) else np.array(latents).dtype
        raise ValueError(
            "The network could not be run on latents of shape "
            f"{tuple(np.shape(latents))} and type {kind} ({type(error).__name__}: "
            f"{error}). {advice}."
        ) from error


def device_of(generator: nn.Module, default: torch.device = CPU) -> torch.device:
    """Where the network wants its inputs.

    The device of its first parameter or buffer, else the default; where weights are
    offloaded by the hooks of accelerate, that on which those run the layers.
    """
    tensors = itertools.chain(generator.parameters(), generator.buffers())
    device = next((tensor.device for tensor in tensors), default)
    if device.type != "meta":
        return device
    for module in generator.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in (hook, *getattr(hook, "hooks", ())):
            where = getattr(each, "execution_device", None)
            if where is not None:
                return torch.empty(0, device=where).device
    raise ValueError(
        "The network's weights are on the device 'meta', where they have no values: "
        "load them first."
    )


def dtype_of(generator: nn.Module, default: Any) -> Any:
    """The dtype of the network's first floating parameter."""
    floating = (p.dtype for p in generator.parameters() if p.is_floating_point())
    return next(floating, default)


def running(
    undo: Undo,
    generator: nn.Module,
    forward: Forward | None,
    device: torch.device | None = None,
) -> Run:
    """Borrow a network for forward passes.

    Noise that it draws is the same in each pass.

    Parameters
    ----------
    undo : Undo
        Where to note how to give the network back.

    generator : Module

    forward : callable or None
        ``forward(generator, latents)``, with ``rows`` if it takes them; ``None`` is
        ``generator(latents)``.

    device : torch.device, default=None
        Where to run it; ``None`` is where it is.

    Returns
    -------
    run : callable
        ``run(latents, rows=None)`` makes a forward pass. Latents come to the device,
        floating ones in the dtype of the network's parameters; integers (class labels,
        token numbers) keep theirs, and so do latents for a ``forward`` that casts them
        itself.
    """
    where = device_of(generator) if device is None else device
    dtype = dtype_of(generator, None)
    if getattr(forward, "casts_latents", False):
        dtype = None
    borrow(undo, generator, device)
    preserve_random_state(undo, where)

    def run(latents: ArrayLike, rows: Any = None) -> Any:
        if isinstance(latents, Tensor) and latents.requires_grad:
            batch = latents
        else:
            given = latents if isinstance(latents, Tensor) else np.asarray(latents)
            batch = as_tensor(given, keep_type=True)
        kind = dtype if dtype is not None and batch.is_floating_point() else batch.dtype
        # A copy: the network may write into its inputs.
        batch = batch.to(device=where, dtype=kind, copy=True)
        seed_noise(where)
        return called(forward, generator, batch, rows)

    return run
