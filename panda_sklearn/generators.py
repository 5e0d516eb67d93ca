"""How generators are called and what is in them.

Floor 2: torch and :mod:`panda_sklearn.utils`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.utils.borrowing import borrowed, fixed_noise
from panda_sklearn.utils.hooks import Tap, check_hookable, choices_of, watch

__all__ = ["LayerInfo", "list_layers"]


class LayerInfo(NamedTuple):
    """A layer of a network, as seen in one forward pass.

    Parameters
    ----------
    name : str
        Dotted name, for ``GeneratorFeatureExtractor(generator, name)``.
    type : str
        Name of the layer's class.
    shape : tuple of int
        Shape of its output, the first axis being the samples.
    n_calls : int
        How often it ran; where that is not 1 the extractor's ``call`` says which.
    select : int, str or None, default=None
        Index or key of the tensor, where the layer gives several: the extractor's
        ``select``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_calls: int
    select: int | str | None = None


def device_of(generator: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; else the CPU."""
    for tensor in (*generator.parameters(), *generator.buffers()):
        return tensor.device
    return torch.device("cpu")


def prepare_latents(
    generator: nn.Module, latents: Tensor, device: torch.device
) -> Tensor:
    """Latents on the device; floating ones in the dtype of the network's parameters.

    Integers (class labels, token numbers) keep their dtype.
    """
    dtype = latents.dtype
    if latents.is_floating_point():
        floating = (p.dtype for p in generator.parameters() if p.is_floating_point())
        dtype = next(floating, dtype)
    return latents.to(device=device, dtype=dtype)


def list_layers(
    generator: nn.Module,
    latents: Any,
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
) -> list[LayerInfo]:
    """List the layers whose output can be extracted, in the order in which they run.

    Runs the network once, in evaluation mode and without gradients, and leaves it as
    it was.

    Parameters
    ----------
    generator : Module
        The network.

    latents : array of shape (n_samples, ...)
        Inputs to run it on; two samples are enough.

    forward : callable, default=None
        ``forward(generator, latents)`` runs the network; ``None`` is
        ``generator(latents)``.

    Returns
    -------
    layers : list of LayerInfo
        Name, type, output shape and number of calls of every layer that gives a
        tensor with one entry for each sample; for a layer that gives several, in a
        tuple, a list or a dict, one item each.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> from panda_sklearn.generators import list_layers
    >>> generator = load_face_generator()
    >>> layers = list_layers(generator, sample_latents(generator, 2))
    >>> [layer.shape for layer in layers if layer.name == "block16"]
    [(2, 96, 16, 16)]
    """
    check_hookable(generator)
    shapes: dict[tuple[str, Any], tuple[int, ...]] = {}
    calls: dict[str, int] = {}
    device = device_of(generator)
    if not isinstance(latents, Tensor):
        latents = torch.from_numpy(np.array(latents))
    latents = prepare_latents(generator, latents, device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(borrowed(generator, None))
        stack.enter_context(fixed_noise(device))
        for name, layer in generator.named_modules():
            if not name or isinstance(layer, torch.jit.ScriptModule):
                continue

            def note(output, name=name):
                calls[name] = calls.get(name, 0) + 1
                tensors = {None: output}
                if not isinstance(output, Tensor):
                    tensors = {key: output[key] for key in choices_of(output) or ()}
                for select, tensor in tensors.items():
                    if isinstance(tensor, Tensor):
                        shapes[name, select] = tuple(tensor.shape)

            stack.enter_context(watch(Tap(name, layer), note))
        _ = generator(latents) if forward is None else forward(generator, latents)
    modules = dict(generator.named_modules())
    return [
        LayerInfo(name, type(modules[name]).__name__, shape, calls[name], select)
        for (name, select), shape in shapes.items()
        if len(shape) > 1 and shape[0] == len(latents)
    ]
