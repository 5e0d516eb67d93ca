"""What a call of any generator needs, whatever its family."""

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

# forward(generator, latents), or forward(generator, latents, rows=rows) if it takes
# rows: the indices of these latents among all.
Forward = Callable[..., Any]
# run(latents, rows=None), for a generator that is borrowed already.
Run = Callable[..., Any]


class ConventionError(TypeError):
    """A generator does not follow any known convention of its family."""


def check_forward(forward: Any) -> None:
    """Raise TypeError unless ``forward`` can be called, or is None."""
    check_function("forward", forward, "generator, latents")


def check_network(name: str, network: Any) -> None:
    """Raise TypeError unless ``network`` is a module that hooks can be attached to."""
    check_kind(name, network, nn.Module)
    check_hookable(network)


def called(
    forward: Forward | None, generator: nn.Module, latents: Tensor, rows: Any = None
) -> Any:
    """Images of latents.

    ``rows``, the indices of the latents among all, are passed on if the function takes
    them: a slice or a tensor; ``None`` counts from 0.
    """
    if forward is not None:
        takes = takes_rows(forward)
    else:  # networks of others may use the name for something else
        takes = getattr(generator, "takes_rows", None) is True
    options = {}
    if takes:
        if not isinstance(rows, Tensor):
            start = 0 if rows is None else rows.start
            rows = torch.arange(start, start + len(latents), device="cpu")
        options = {"rows": rows.cpu()}
    if forward is None:
        return generator(latents, **options)
    return forward(generator, latents, **options)


def takes_rows(forward: Any) -> bool:
    """Whether a function has an argument called rows."""
    try:
        return "rows" in inspect.signature(forward).parameters
    except (TypeError, ValueError):  # functions written in C may have no signature
        return False


@contextlib.contextmanager
def explained_failures(latents: Any, forward: Any) -> Iterator[None]:
    """Explain failures of a first forward pass by how the network was called.

    Raises
    ------
    ValueError
        In place of what networks raise for inputs that they cannot take.
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
    """The device on which the network expects its inputs.

    That of its first parameter or buffer, or the default if it has none. If the hooks
    of accelerate offload the weights, the device on which they run the layers.
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
        "The network's weights are on the device 'meta', where they have no values. "
        "Load them first."
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

    The noise that it draws is the same in each pass.

    Parameters
    ----------
    undo : Undo
        Notes how to give the network back.

    generator : Module
        The network.

    forward : callable or None
        ``forward(generator, latents)``, with ``rows`` if it takes them; ``None`` is
        ``generator(latents)``.

    device : torch.device, default=None
        Where to run it; ``None`` is where it is.

    Returns
    -------
    run : callable
        ``run(latents, rows=None)`` makes a forward pass. Latents are moved to the
        device. Floating ones are cast to the dtype of the network's parameters, unless
        ``forward`` casts them itself; integers (classes, tokens) keep their dtype.
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
