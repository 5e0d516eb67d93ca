"""Forward passes of the same inputs that do not compute again what is known.

Imports torch alone. Up to the first tapped call, every pass of the same inputs does the
same. A :class:`Replay` keeps what the layers returned until then, and returns it in
their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from panda_sklearn.utils.hooks import add_hook
from panda_sklearn.utils.taps import Tap
from panda_sklearn.utils.turns import has_turn, take_turn
from panda_sklearn.utils.undo import Undo

__all__ = ["Replay"]


class _Given(NamedTuple):
    """What a call of a layer returned, and the random state that it left."""

    output: Any
    noise: list[Tensor]


class Replay:
    """What the layers of a network returned before the first tapped call ended.

    Parameters
    ----------
    network : Module
    tap : Tap
        What later passes change, from its first call on.

    Attributes
    ----------
    n_skipped : int
        Calls of the tapped layer that later passes do not make, since they are within
        layers that do not run.
    """

    def __init__(self, network: nn.Module, tap: Tap) -> None:
        self._network, self._tap = network, tap
        self._first = tap.calls[0] if tap.calls else 0
        self._devices = _accelerators(network)
        self.n_skipped = 0
        # Of each layer, in the order of its calls.
        self._given: dict[nn.Module, list[_Given]] = {}

    def record(self, run: Callable[[], Any]) -> Any:
        """Make a forward pass, and keep what layers return before the tapped call.

        Of nested layers, only the outermost that end before it are kept.
        """
        tapped, of_input = self._tap.layer, self._tap.where == "input"
        kept: list[tuple[nn.Module, _Given]] = []
        begun: list[int] = []  # how many were kept when the running layers began
        n_tapped, ended = 0, False
        noise: list[Tensor] = []

        def on_begin(layer: nn.Module, args: tuple) -> None:
            nonlocal ended
            if ended:
                return
            ended = of_input and layer is tapped and n_tapped == self._first
            begun.append(len(kept))

        def on_end(layer: nn.Module, args: tuple, output: Any) -> None:
            nonlocal ended, n_tapped, noise
            if ended:
                return
            del kept[begun.pop() :]
            now = self._noise()
            if not noise or not all(map(torch.equal, noise, now)):
                noise = now  # else one copy is enough for all
            kept.append((layer, _Given(_copied(output), noise)))
            if layer is tapped:
                n_tapped += 1
                ended = not of_input and n_tapped > self._first

        with Undo() as undo, undo:
            for layer in self._looked_at():
                add_hook(undo, layer._forward_pre_hooks, on_begin)
                add_hook(undo, layer._forward_hooks, on_end)
            result = run()
        self._given, self.n_skipped = {}, 0
        if ended:
            for layer, given in kept:
                self._given.setdefault(layer, []).append(given)
            self.n_skipped = n_tapped - len(self._given.get(tapped, ()))
        return result

    def _looked_at(self) -> list[nn.Module]:
        """The tapped layer, the layers that contain it, and those beside them.

        What is inside the others need not be looked at: they return it.
        """
        names = self._tap.name.split(".")
        above = {
            self._network.get_submodule(".".join(names[:k]))
            for k in range(len(names) + 1)
        }
        found: dict[nn.Module, None] = {}

        def look(module: nn.Module) -> None:
            for child in module.children():
                if isinstance(child, torch.jit.ScriptModule):
                    continue
                # Lists of layers and the like are never called.
                if type(child).forward is not nn.Module.forward:
                    found[child] = None
                    if child not in above:
                        continue
                look(child)

        look(self._network)
        return [layer for layer in found if layer is not self._network]

    def again(self, run: Callable[[], Any]) -> Any:
        """Make the pass again, with what is known in place of the layers."""
        with Undo() as undo, undo:
            take_turn(undo)
            for layer, given in self._given.items():
                self._stand_in(undo, layer, given)
            return run()

    def _stand_in(self, undo: Undo, layer: nn.Module, given: list[_Given]) -> None:
        """Replace a layer's forward, for this thread's calls."""
        forward, own = layer.forward, vars(layer).get("forward")
        left = iter(given)

        def known(*args: Any, **kwargs: Any) -> Any:
            one = next(left, None) if has_turn() else None
            if one is None:
                return forward(*args, **kwargs)
            torch.set_rng_state(one.noise[0])
            for device, state in zip(self._devices, one.noise[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return _copied(one.output)

        def put_back() -> None:
            if own is not None:
                layer.forward = own
            elif vars(layer).get("forward") is known:
                del layer.forward

        undo.note(put_back)
        layer.forward = known

    def _noise(self) -> list[Tensor]:
        """The states of random numbers, the CPU's first."""
        states = [torch.cuda.get_rng_state(device) for device in self._devices]
        return [torch.get_rng_state(), *states]


def _copied(output: Any) -> Any:
    """The same output with its tensors copied, since later layers may write in place.

    A tensor that is in several places is copied once.
    """
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    return _pytree.tree_map_only(Tensor, copy, output)


def _accelerators(network: nn.Module) -> list[torch.device]:
    """The CUDA devices on which a network may draw noise."""
    found = {p.device for p in network.parameters() if p.device.type == "cuda"}
    return sorted(found, key=str)
