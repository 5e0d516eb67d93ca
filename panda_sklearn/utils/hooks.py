"""Looking into a network while it runs.

Floor 2: torch alone. A :class:`Tap` says which tensor of a network is meant, and how
maps lie in it; :func:`capture` and :func:`replace` attach to it for the length of a
forward pass, for the calling thread only.
"""

from __future__ import annotations

import copy
import difflib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from panda_sklearn.utils.layouts import CHANNELS_FIRST, FeatureLayout
from panda_sklearn.utils.undo import Undo

__all__ = [
    "StopForward",
    "Tap",
    "TapTypeError",
    "add_hook",
    "can_be_stopped",
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

    Parameters
    ----------
    seen : Seen
        What :func:`capture` waits for; others let it pass.
    """

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen


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
        try:
            return _with_item(value, self.select, tensor)
        except Exception as error:
            raise TapTypeError(
                f"The {self.where} of layer {self.name!r} is of type "
                f"{type(value).__name__}, of which no copy can be made to hold the "
                f"replacement ({type(error).__name__}: {error}). Tap another layer."
            ) from error


def _with_item(container: Any, key: Any, item: Any) -> Any:
    """A shallow copy of a container with one item replaced.

    Constructors are the classes' own business, so none is called if that can be.
    """
    old = container[key]
    if not isinstance(container, tuple):
        changed = copy.copy(container)
        changed[key] = item
        return _with_attributes(changed, old, item)
    items = list(container)
    items[key] = item
    cls = type(container)
    try:
        changed = tuple.__new__(cls, items)
    except TypeError:  # a type of torch's, written in C
        return cls(items)
    if hasattr(container, "__dict__"):
        vars(changed).update(vars(container))
    return _with_attributes(changed, old, item)


def _with_attributes(container: Any, old: Any, item: Any) -> Any:
    """The container, with attributes that hold the old item holding the new one."""
    slots = (getattr(cls, "__slots__", ()) for cls in type(container).__mro__)
    names = [
        name for some in slots for name in ([some] if isinstance(some, str) else some)
    ]
    for name in (*getattr(container, "__dict__", ()), *names):
        if (
            name not in ("__dict__", "__weakref__")
            and getattr(container, name, None) is old
        ):
            object.__setattr__(container, name, item)
    return container


def choices_of(value: Any) -> list | None:
    """Values that ``select`` can take."""
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    return None


def check_hookable(model: nn.Module) -> None:
    """Raise TypeError for what is no network, or cannot be hooked."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            "generator must be a torch.nn.Module, got one of type "
            f"{type(model).__name__}."
        )
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
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        raise TypeError(
            "The network is exported (torch.export): it is one graph, in which there "
            "are no layers to hook. Use the Python module it was made from."
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
    result: Any = field(default=None, repr=False)

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


def capture(
    tap: Tap, run: Callable[[], Any], *, stop: bool = False, detach: bool = True
) -> Seen:
    """Keep the tapped maps of a forward pass.

    Parameters
    ----------
    tap : Tap
        Which tensor.

    run : callable
        Makes the forward pass.

    stop : bool, default=False
        Whether to end the pass as soon as the tensor is known; see
        :func:`can_be_stopped`.

    detach : bool, default=True
        Whether to detach it from the graph of gradients.

    Returns
    -------
    seen : Seen
        Its ``tensor`` is a copy, since later layers may write in place; with ``stop``,
        when there are none, the maps themselves. Its ``result`` is what ``run``
        returned, if it did.
    """
    seen = Seen(tap)

    def look(value):
        if seen.is_at_tap():
            seen.tensor = tap.layout.take(tap.pick(value))
            if detach:
                seen.tensor = seen.tensor.detach()
            if stop:
                raise StopForward(seen)
            seen.tensor = seen.tensor.clone()

    try:
        with Undo() as undo, undo:
            watch(undo, tap, look)
            seen.result = run()
    except StopForward as end:
        if end.seen is not seen:
            raise
    return seen


def replace(
    tap: Tap, change: Callable[[Tensor], Tensor], run: Callable[[], Any]
) -> Any:
    """Make a forward pass with ``change(maps)`` in the place of the tapped maps.

    The replacement is given the original's dtype, device and memory layout. Replacing
    an output reaches every consumer of it; replacing an input the one layer alone.
    Gradients flow through ``change`` where they are on.

    Returns
    -------
    result : object
        What ``run`` returned.

    Raises
    ------
    TypeError, ValueError
        If ``change`` gives no tensor of the same shape, or as :meth:`Seen.check`.
    """
    seen = Seen(tap)

    def swap(value):
        if not seen.is_at_tap():
            return None
        original = tap.pick(value)
        maps = tap.layout.take(original)
        changed = change(maps)
        if not isinstance(changed, Tensor):
            raise TypeError(
                f"The replacement for layer {tap.name!r} must be a tensor of shape "
                f"{tuple(maps.shape)}, got one of type {type(changed).__name__}. A "
                "function that changes activations must return them, also if it "
                "writes in place."
            )
        if changed.shape != maps.shape:
            raise ValueError(
                f"The replacement for layer {tap.name!r} must be of shape "
                f"{tuple(maps.shape)}, got {tuple(changed.shape)}."
            )
        changed = tap.layout.put(original, changed.to(original))
        if changed.stride() != original.stride():
            changed = torch.empty_like(original).copy_(changed)
        return tap.put(value, changed)

    with Undo() as undo, undo:
        watch(undo, tap, swap)
        result = run()
    seen.check()
    return result


def watch(undo: Undo, tap: Tap, act: Callable[[Any], Any]) -> None:
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
        add_hook(undo, tap.layer._forward_hooks, on_output)
    else:
        add_hook(undo, tap.layer._forward_pre_hooks, on_input)


def add_hook(undo: Undo, hooks: Any, hook: Callable, **options: dict) -> None:
    """Add a hook to one of a module's dicts of hooks.

    As ``register_forward_hook`` and the like do, of which the handle is known only
    once they are done, and lost if they are interrupted before.

    ``options`` are those dicts in which torch notes of which kind a hook is.
    """
    handle = RemovableHandle(hooks, extra_dict=list(options.values()))
    undo.note(handle.remove)
    for option in options.values():
        option[handle.id] = True
    hooks[handle.id] = hook


def can_be_stopped(model: nn.Module) -> bool:
    """Whether a forward pass may be ended by :class:`StopForward`.

    Not if somebody's hooks are registered with ``always_call=True``: torch calls these
    after an ``Exception``, but not after others, and hooks that come in pairs would be
    left one half. Nor where accelerate takes weights off the device after a layer.
    """
    everywhere = torch_module._global_forward_hooks_always_called
    return not everywhere and not any(
        module._forward_hooks_always_called or hasattr(module, "_hf_hook")
        for module in model.modules()
    )
