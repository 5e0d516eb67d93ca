"""Capturing and replacing a tensor of a network while it runs.

Imports torch alone. A :class:`~panda_sklearn.utils.taps.Tap` says which tensor is
meant, and how maps lie in it. :func:`capture` and :func:`replace` attach to it for one
forward pass. They take a turn (:mod:`panda_sklearn.utils.turns`), and see the calling
thread's calls only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from panda_sklearn.utils.taps import Tap
from panda_sklearn.utils.turns import has_turn, take_turn
from panda_sklearn.utils.undo import Undo

__all__ = [
    "Moment",
    "StopForward",
    "add_hook",
    "can_be_stopped",
    "capture",
    "check_hookable",
    "find_layer",
    "replace",
    "watch",
]


class StopForward(BaseException):
    """Ends a forward pass once the tapped tensor is known.

    Not an ``Exception``, so that networks that catch those do not catch it.

    Parameters
    ----------
    seen : Seen
        Of the :func:`capture` that ends the pass; any other lets it through.
    """

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen


def check_hookable(model: nn.Module) -> None:
    """Raise TypeError unless it is a network that can be hooked."""
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
    """Return the layer of a dotted name.

    Raises
    ------
    ValueError
        If there is none; the message offers the nearest names.
    TypeError
        If the model or the layer is scripted: torch runs no Python hooks in those.
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


class Moment(NamedTuple):
    """Which maps of a forward pass are changed.

    Attributes
    ----------
    call : int
        The layer's call, counted from 0, tapped or not.
    own : bool
        Whether the maps are the samples' own, rather than another part of a batch that
        guidance multiplies.
    """

    call: int = 0
    own: bool = True


@dataclass
class Seen:
    """What :func:`capture` or :func:`replace` saw of its layer.

    Attributes
    ----------
    tap : Tap
    n_samples : int or None
        Samples in the forward pass; needed where ``tap.guidance`` is set.
    n_calls : int
        Calls of the layer so far, tapped or not.
    shape : tuple of int
        Shape of the maps of a tapped call.
    tensors : list of Tensor
        What is kept of the tapped calls; see :meth:`Tap.gathered`.
    result : object
        What the forward pass returned.
    """

    tap: Tap
    n_samples: int | None = None
    n_calls: int = 0
    shape: tuple[int, ...] = ()
    tensors: list[Tensor] = field(default_factory=list, repr=False)
    result: Any = field(default=None, repr=False)

    def position(self) -> int | None:
        """Count a call; return its place among the tapped calls, or ``None``."""
        call, calls = self.n_calls, self.tap.calls
        self.n_calls += 1
        if calls is None:
            return 0 if call == 0 else None
        return calls.index(call) if call in calls else None

    def rows(self, maps: Tensor) -> slice:
        """Return which rows of maps are the samples'."""
        n = len(maps) if self.n_samples is None else self.n_samples
        return self.tap.rows(len(maps), n)

    def keep(self, maps: Tensor, position: int, *, in_place: bool) -> None:
        """Keep the maps of a tapped call."""
        shape = tuple(maps.shape)
        if self.tensors and shape != self.shape:
            raise ValueError(
                f"The tapped calls of layer {self.tap.name!r} give maps of different "
                f"shapes, {self.shape} and {shape}. Tap calls that give the same; "
                "where guidance changes the batch, set guidance."
            )
        self.shape = shape
        self.tensors = self.tap.gathered(
            self.tensors, maps, position, in_place=in_place
        )

    def check(self) -> None:
        """Raise ValueError unless the tapped calls happened and were unambiguous."""
        name, calls = self.tap.name, self.tap.calls
        if self.n_calls == 0:
            raise ValueError(
                f"Layer {name!r} never ran in the forward pass. It may be a mere "
                "container, an unused head, or not called as a module. Choose a layer "
                "that list_layers shows."
            )
        if calls is None and self.n_calls > 1:
            raise ValueError(
                f"Layer {name!r} ran {self.n_calls} times in one forward pass: say "
                f"which with call, from 0 to {self.n_calls - 1}."
            )
        if calls is not None and calls[-1] >= self.n_calls:
            raise ValueError(
                f"call={calls[-1]}, but layer {name!r} ran {self.n_calls} times in one "
                f"forward pass: call must be from 0 to {self.n_calls - 1}."
            )

    def found(self) -> Tensor:
        """Return the maps of all tapped calls as one tensor, after :meth:`check`."""
        self.check()
        return self.tap.joined(self.tensors)


def capture(
    tap: Tap,
    run: Callable[[], Any],
    *,
    n_samples: int | None = None,
    stop: bool = False,
    detach: bool = True,
) -> Seen:
    """Keep the tapped maps of a forward pass.

    Parameters
    ----------
    tap : Tap
        Which tensor.

    run : callable
        Makes the forward pass.

    n_samples : int, default=None
        Samples in the pass; needed where ``tap.guidance`` is set.

    stop : bool, default=False
        Whether to end the pass as soon as all tapped calls are known; see
        :func:`can_be_stopped`.

    detach : bool, default=True
        Whether to detach them from the graph of gradients.

    Returns
    -------
    seen : Seen
        With copies of the maps, since later layers may write in place; with ``stop``,
        those of the last call may be the maps themselves. Its ``result`` is what
        ``run`` returned, if it did.
    """
    seen = Seen(tap, n_samples)

    def look(value: Any, base: Tensor | None) -> None:
        position = seen.position()
        if position is None:
            return
        maps = tap.maps(value, base)
        if tap.guidance is not None:  # slices would fix the shapes of traces
            maps = maps[seen.rows(maps)]
        if detach:
            maps = maps.detach()
        ends = stop and position == tap.n_calls - 1
        # Where gradients are wanted, each call's maps are kept by themselves.
        in_place = detach and tap.n_calls > 1 and maps.ndim > 0
        copied = in_place and tap.calls_as != "mean"
        seen.keep(maps if ends or copied else maps.clone(), position, in_place=in_place)
        if ends:
            raise StopForward(seen)

    try:
        with Undo() as undo, undo:
            watch(undo, tap, look)
            seen.result = run()
    except StopForward as end:
        if end.seen is not seen:
            raise
    return seen


def replace(
    tap: Tap,
    change: Callable[[Tensor, Moment], Tensor],
    run: Callable[[], Any],
    *,
    n_samples: int | None = None,
    others: bool = False,
    n_skipped: int = 0,
) -> Any:
    """Make a forward pass with ``change(maps, moment)`` in the tapped maps' place.

    The replacement gets the original's dtype, device and memory layout. Replacing an
    output reaches everything that reads it; replacing an input reaches that layer only.
    Gradients flow through ``change`` where they are on.

    Parameters
    ----------
    tap : Tap

    change : callable

    run : callable
        Makes the forward pass.

    n_samples : int, default=None
        Samples in the pass; needed where ``tap.guidance`` is set.

    others : bool, default=False
        Whether ``change`` also gets the other parts of a batch that guidance
        multiplies, each by itself.

    n_skipped : int, default=0
        How many calls of the layer the pass leaves out at its start.

    Returns
    -------
    result : object
        What ``run`` returned.

    Raises
    ------
    TypeError, ValueError
        If ``change`` does not return a tensor of the same shape, or as
        :meth:`Seen.check`.
    """
    seen = Seen(tap, n_samples, n_skipped)

    def swap(value: Any, base: Tensor | None) -> Any:
        call = seen.n_calls
        if seen.position() is None:
            return None
        every = tap.maps(value, base)
        rows = seen.rows(every)
        size = rows.stop - rows.start
        # Only a batch that guidance multiplies is split: that fixes shapes in traces.
        parts = every.split(size) if size < len(every) else (every,)
        parts = tuple(
            changed_part(part, Moment(call, n * size == rows.start))
            if others or n * size == rows.start
            else part
            for n, part in enumerate(parts)
        )
        changed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return tap.put_maps(value, changed, base)

    def changed_part(maps: Tensor, moment: Moment) -> Tensor:
        changed = change(maps, moment)
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
        return changed.to(maps)

    with Undo() as undo, undo:
        watch(undo, tap, swap)
        result = run()
    seen.check()
    return result


def watch(undo: Undo, tap: Tap, act: Callable[[Any, Tensor | None], Any]) -> None:
    """Call ``act(value, base)`` at each call of the tapped layer.

    ``value`` is the layer's output, or the input that is tapped; ``base`` is the input
    where the update is tapped, else ``None``. Whatever ``act`` returns replaces
    ``value``, unless it is ``None``.
    """
    layer = tap.layer
    inputs: list[Tensor] = []  # of the calls that are running

    def on_output(layer: nn.Module, args: tuple, output: Any) -> Any:
        return act(output, inputs.pop() if tap.where == "update" else None)

    def on_input(layer: nn.Module, args: tuple, kwargs: dict) -> Any:
        name = tap.keyword(args, kwargs)
        value = args[0] if name is None else kwargs[name]
        if tap.where == "update":
            inputs.append(tap.base(value))
            return None
        selected = name is not None and name == tap.select
        changed = act({name: value} if selected else value, None)
        if changed is None:
            return None
        if name is None:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, name: changed[name] if selected else changed}

    if tap.where != "output":
        add_hook(
            undo,
            layer._forward_pre_hooks,
            on_input,
            with_kwargs=layer._forward_pre_hooks_with_kwargs,
        )
    if tap.where != "input":
        add_hook(undo, layer._forward_hooks, on_output)


def add_hook(undo: Undo, hooks: Any, hook: Callable, **options: dict) -> None:
    """Add a hook to one of a module's dicts of hooks, for this thread's calls.

    Does what ``register_forward_hook`` does, whose handle would be lost if it were
    interrupted. ``options`` are the dicts in which torch notes the hook's kind.
    """
    take_turn(undo)

    def own(*args: Any) -> Any:
        return hook(*args) if has_turn() else None

    handle = RemovableHandle(hooks, extra_dict=list(options.values()))
    undo.note(handle.remove)
    for option in options.values():
        option[handle.id] = True
    hooks[handle.id] = own


def can_be_stopped(model: nn.Module) -> bool:
    """Return whether a forward pass may be ended by :class:`StopForward`.

    Not with hooks registered with ``always_call=True``: torch calls them after an
    ``Exception`` only, and of a pair of hooks the second would be left out. Nor where
    accelerate takes weights off the device after a layer.
    """
    everywhere = torch_module._global_forward_hooks_always_called
    return not everywhere and not any(
        module._forward_hooks_always_called or hasattr(module, "_hf_hook")
        for module in model.modules()
    )
