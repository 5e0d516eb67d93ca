"""Running somebody else's network, and leaving it and the process as they were.

Imports torch alone. :func:`borrow` puts a network into the state in which it may be
run; :func:`preserve_random_state` keeps torch's global random numbers, which
:func:`seed_noise` sets before a pass. They note in an
:class:`~panda_sklearn.utils.undo.Undo` how to put back what they change, and take a
turn first (:mod:`panda_sklearn.utils.turns`): what they change, they alone change.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import Any

import torch
from torch import nn

from panda_sklearn.utils.turns import take_turn
from panda_sklearn.utils.undo import Undo

__all__ = [
    "borrow",
    "move",
    "preserve_random_state",
    "run_eagerly",
    "seed_noise",
]

# Seed of the noise that a network draws in a borrowed forward pass.
NOISE_SEED = 0


def borrow(undo: Undo, model: nn.Module, device: torch.device | None = None) -> None:
    """Have a network in evaluation mode, on a device, with gradients off.

    ``device=None`` leaves it on its device, or devices. At the end each submodule's own
    mode, the network's device and the thread's mode of gradients are as they were.

    Raises
    ------
    ValueError
        If the network is to be moved, and cannot be.
    """
    take_turn(undo)
    gradients = torch.is_grad_enabled()
    undo.note(lambda: torch.set_grad_enabled(gradients))
    torch.set_grad_enabled(False)
    run_eagerly(undo, model)
    move(undo, model, device)
    _evaluate(undo, model)


def move(undo: Undo, model: nn.Module, device: torch.device | None) -> None:
    """Have a network on a device; ``None`` leaves it where it is.

    Takes turns only to move it there and back.

    Raises
    ------
    ValueError
        If it cannot be moved.
    """
    if device is None:
        return
    homes = {t.device for t in itertools.chain(model.parameters(), model.buffers())}
    if homes <= {device}:
        return
    if len(homes) > 1:
        raise ValueError(
            "The network is spread over several devices "
            f"({', '.join(sorted(map(str, homes)))}): leave device at None."
        )
    (home,) = homes
    if home.type == "meta":
        raise ValueError(
            "The network's weights are offloaded or not loaded: they are on the "
            f"device 'meta', without values, and cannot be moved to {device}. "
            "Leave device at None; weights that are not loaded, load first."
        )
    undo.note(functools.partial(_move, model, home))
    _move(model, device)


def _move(model: nn.Module, device: torch.device) -> None:
    with Undo() as undo, undo:
        take_turn(undo)
        model.to(device)


def _evaluate(undo: Undo, model: nn.Module) -> None:
    """Put a network into evaluation mode as it does itself."""
    modes = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        for module, training in modes:
            module.training = training

    undo.note(put_back)
    if not any(training for _, training in modes):
        return
    own = [each for each in modes if _has_own_methods(each[0])]
    # Noted last and so called first are parents, whose methods set their children too.
    for module, training in sorted(own, key=lambda each: len(list(each[0].modules()))):
        undo.note(functools.partial(_ask, module, training))
    try:
        model.eval()
    except NotImplementedError:  # a part is exported, and has no modes
        for module, _ in modes:
            if not _has_own_methods(module):
                module.training = False


def _ask(module: nn.Module, training: bool) -> None:
    """Ask a module with a method of its own to go back to its mode."""
    if training or module.training:
        with contextlib.suppress(NotImplementedError):  # exported: it has no modes
            module.train(training)


def _has_own_methods(module: nn.Module) -> bool:
    """Whether a mode is more than a flag, as where low-rank weights are merged."""
    return any(
        getattr(getattr(module, name), "__func__", None) is not plain
        for name, plain in (("train", nn.Module.train), ("eval", nn.Module.eval))
    )


def run_eagerly(undo: Undo, model: nn.Module) -> None:
    """Run compiled parts of a network as plain Python.

    Code compiled by ``torch.compile`` ignores hooks that were added later.
    """
    if any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        for module in model.modules()
    ):
        take_turn(undo)
        stances: list[Any] = []

        def put_back() -> None:
            while stances:
                stances[-1].__exit__(None, None, None)
                stances.pop()

        undo.note(put_back)
        stances.append(torch.compiler.set_stance("force_eager"))


def preserve_random_state(undo: Undo, device: torch.device) -> None:
    """Have torch's random numbers go on at the end as they were before."""
    take_turn(undo)
    for generator in _random_generators(device):
        undo.note(functools.partial(generator.set_state, generator.get_state()))


def seed_noise(device: torch.device) -> None:
    """Seed torch's random numbers for a pass of a network on the device."""
    for generator in _random_generators(device):
        generator.manual_seed(NOISE_SEED)


def _random_generators(device: torch.device) -> list[torch.Generator]:
    """The global generators that a network on the device may draw from."""
    generators = [torch.default_generator]
    if device.type == "cuda" and torch.cuda.is_available():
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators
