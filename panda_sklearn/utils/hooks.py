"""Looking into a network while it runs.

Floor 2: torch alone. A :class:`Tap` says which tensor of a network is meant, and how
maps lie in it; :func:`capture` and :func:`replace` attach to it for the length of a
``with`` block, for the calling thread only.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.utils.layouts import CHANNELS_FIRST, FeatureLayout

__all__ = [
    "StopForward",
    "Tap",
    "TapTypeError",
    "capture",
    "check_hookable",
    "choices_of",
    "find_layer",
    "replace",
    "watch",
]


class StopForward(BaseException):
    """Ends a forward pass once the tapped tensor is known.

    Not an ``Exception``: networks that catch those must not catch this.
    """


class TapTypeError(TypeError):
    """What a layer returned or was given holds no tensor to tap."""


@dataclass(frozen=True)
class Tap:
    """One tensor of a network.

    Attributes
    ----------
    name : str
        The layer's dotted name, for messages.
    layer : Module
    where : {"output", "input"}
        The layer's output, or its first positional input.
    select : int, str or None
        Index or key, where that is a tuple, a list or a dict.
    call : int or None
        Which of the layer's calls in one forward pass, from 0; ``None`` is the only
        one.
    layout : FeatureLayout
        How the maps lie in that tensor.
    """

    name: str
    layer: nn.Module
    where: str = "output"
    select: int | str | None = None
    call: int | None = None
    layout: FeatureLayout = CHANNELS_FIRST

    def pick(self, value: Any) -> Tensor:
        """The tensor in what the layer returned or was given."""
        if isinstance(value, Tensor):
            if self.select is not None:
                raise ValueError(
                    f"The {self.where} of layer {self.name!r} is a tensor: leave "
                    f"select at None, got {self.select!r}."
                )
            return value
        choices = choices_of(value)
        if choices is None:
            raise TapTypeError(
                f"The {self.where} of layer {self.name!r} is of type "
                f"{type(value).__name__}; expected a tensor, or a tuple, list or dict "
                "of tensors. Choose another layer."
            )
        if self.select is None:
            raise ValueError(
                f"The {self.where} of layer {self.name!r} is a {type(value).__name__} "
                f"of several: say which with select, one of {choices}."
            )
        if self.select not in choices:
            raise ValueError(
                f"select={self.select!r} is not in the {self.where} of layer "
                f"{self.name!r}; choose one of {choices}."
            )
        picked = value[self.select]
        if not isinstance(picked, Tensor):
            raise TapTypeError(
                f"select={self.select!r} of layer {self.name!r} is of type "
                f"{type(picked).__name__}, expected a tensor."
            )
        return picked

    def put(self, value: Any, tensor: Tensor) -> Any:
        """``value`` with its picked tensor replaced, in a container of its type."""
        if isinstance(value, Tensor):
            return tensor
        if isinstance(value, dict):
            changed = type(value)(value)
            changed[self.select] = tensor
            return changed
        items = list(value)
        items[self.select] = tensor  # type: ignore[index]
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*items)
        return type(value)(items)


def choices_of(value: Any) -> list | None:
    """Values that ``select`` can take."""
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    return None


def check_hookable(model: nn.Module) -> None:
    """Raise TypeError for a scripted, traced or replicated network."""
    if isinstance(model, nn.DataParallel):
        raise TypeError(
            "The network is wrapped in DataParallel, which runs copies of it that "
            "cannot be hooked. Use its module, generator.module."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "The network is scripted or traced (torch.jit), and its layers cannot be "
            "hooked. Use the Python module it was made from."
        )


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of a dotted name.

    Raises
    ------
    ValueError
        If there is none; the message offers the nearest names.
    TypeError
        If the model or the layer is scripted: torch does not let Python code into
        those.
    """
    check_hookable(model)
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        names = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[:5]
        raise ValueError(
            f"The network has no layer {name!r}. Nearest names: "
            f"{', '.join(near) or '(it has no layers)'}. list_layers shows all."
        ) from None
    if isinstance(layer, torch.jit.ScriptModule):
        raise TypeError(
            f"Layer {name!r} is scripted or traced (torch.jit) and cannot be hooked. "
            "Use the Python module it was made from."
        )
    return layer


@dataclass
class Seen:
    """What :func:`capture` or :func:`replace` saw of its layer."""

    tap: Tap
    n_calls: int = 0
    tensor: Tensor | None = field(default=None, repr=False)

    def is_at_tap(self) -> bool:
        """Count a call of the layer; whether it is the tapped one."""
        self.n_calls += 1
        return self.n_calls - 1 == (self.tap.call or 0)

    def check(self) -> None:
        """Raise ValueError unless the tapped call happened and was unambiguous."""
        name, call = self.tap.name, self.tap.call
        if self.n_calls == 0:
            raise ValueError(
                f"Layer {name!r} never ran in the forward pass. It may be a mere "
                "container, an unused head, or called other than as a module; choose "
                "a layer that list_layers shows."
            )
        if call is None and self.n_calls > 1:
            raise ValueError(
                f"Layer {name!r} ran {self.n_calls} times in one forward pass: say "
                f"which with call, from 0 to {self.n_calls - 1}."
            )
        if call is not None and call >= self.n_calls:
            raise ValueError(
                f"call={call}, but layer {name!r} ran {self.n_calls} times in one "
                f"forward pass: call must be from 0 to {self.n_calls - 1}."
            )

    def found(self) -> Tensor:
        """The tensor, after :meth:`check`."""
        self.check()
        assert self.tensor is not None
        return self.tensor


@contextlib.contextmanager
def capture(tap: Tap, *, stop: bool = False) -> Iterator[Seen]:
    """Keep the tapped maps of a forward pass made inside the ``with`` block.

    Parameters
    ----------
    tap : Tap
        Which tensor.

    stop : bool, default=False
        Whether to end the forward pass, and the block, as soon as it is known.

    Yields
    ------
    seen : Seen
        Its ``tensor`` is a detached copy, since later layers may write in place;
        with ``stop``, when there are none, the maps themselves.
    """
    seen = Seen(tap)

    def look(value):
        if seen.is_at_tap():
            seen.tensor = tap.layout.take(tap.pick(value)).detach()
            if stop:
                raise StopForward
            seen.tensor = seen.tensor.clone()

    with watch(tap, look), contextlib.suppress(*([StopForward] if stop else [])):
        yield seen


@contextlib.contextmanager
def replace(tap: Tap, change: Callable[[Tensor], Tensor]) -> Iterator[Seen]:
    """Put ``change(maps)`` in the place of the tapped maps of a forward pass.

    The replacement is given the original's dtype, device and memory layout. Replacing
    an output reaches every consumer of it; replacing an input the one layer alone.
    Gradients flow through ``change`` where they are on.

    Yields
    ------
    seen : Seen
    """
    seen = Seen(tap)

    def swap(value):
        if not seen.is_at_tap():
            return None
        original = tap.pick(value)
        maps = tap.layout.take(original)
        changed = change(maps)
        if changed.shape != maps.shape:
            raise ValueError(
                f"The replacement for layer {tap.name!r} must be of shape "
                f"{tuple(maps.shape)}, got {tuple(changed.shape)}."
            )
        changed = tap.layout.put(original, changed.to(original))
        if changed.stride() != original.stride():
            changed = torch.empty_like(original).copy_(changed)
        return tap.put(value, changed)

    with watch(tap, swap):
        yield seen


@contextlib.contextmanager
def watch(tap: Tap, act: Callable[[Any], Any]) -> Iterator[None]:
    """Call ``act`` with the output (or first input) of each call of the tapped layer.

    What it returns, if not ``None``, takes the place of that value. Calls made by
    other threads pass by.
    """
    thread = threading.get_ident()

    def on_output(layer, args, output):
        return act(output) if threading.get_ident() == thread else None

    def on_input(layer, args):
        if threading.get_ident() != thread:
            return None
        if not args:
            raise ValueError(
                f"Layer {tap.name!r} is called without positional inputs; tap its "
                "output, or another layer."
            )
        changed = act(args[0])
        return None if changed is None else (changed, *args[1:])

    if tap.where == "output":
        handle = tap.layer.register_forward_hook(on_output)
    else:
        handle = tap.layer.register_forward_pre_hook(on_input)
    try:
        yield
    finally:
        handle.remove()
