"""Looking into a network while it runs, and leaving it as it was.

Floor 2: torch alone. A :class:`Tap` says which tensor of a network is meant;
:func:`capture` and :func:`replace` attach to it for the length of a ``with`` block,
for the calling thread only; :func:`borrowed` puts the network into the state in which
it may be run, and back.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "StopForward",
    "Tap",
    "borrowed",
    "capture",
    "check_hookable",
    "find_layer",
    "fixed_noise",
    "replace",
    "watch",
]


class StopForward(BaseException):
    """Ends a forward pass once the tapped tensor is known.

    Not an ``Exception``: networks that catch those must not catch this.
    """


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
    """

    name: str
    layer: nn.Module
    where: str = "output"
    select: int | str | None = None
    call: int | None = None

    def pick(self, value: Any) -> Tensor:
        """The tensor in what the layer returned or was given."""
        if isinstance(value, Tensor):
            if self.select is not None:
                raise ValueError(
                    f"The {self.where} of layer {self.name!r} is a tensor: leave "
                    f"select at None, got {self.select!r}."
                )
            return value
        choices = _choices(value)
        if choices is None:
            raise TypeError(
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
            raise TypeError(
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


def _choices(value: Any) -> list | None:
    """Values that ``select`` can take."""
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, tuple | list):
        return list(range(len(value)))
    return None


def check_hookable(model: nn.Module) -> None:
    """Raise TypeError for a scripted or traced network."""
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


@contextlib.contextmanager
def capture(tap: Tap, *, stop: bool = False) -> Iterator[Seen]:
    """Keep the tapped tensor of a forward pass made inside the ``with`` block.

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
        with ``stop``, when there are none, the tensor itself.
    """
    seen = Seen(tap)

    def look(value):
        if seen.is_at_tap():
            seen.tensor = tap.pick(value).detach()
            if stop:
                raise StopForward
            seen.tensor = seen.tensor.clone()

    with watch(tap, look), contextlib.suppress(*([StopForward] if stop else [])):
        yield seen


@contextlib.contextmanager
def replace(tap: Tap, change: Callable[[Tensor], Tensor]) -> Iterator[Seen]:
    """Put ``change(tensor)`` in the place of the tapped tensor of a forward pass.

    The replacement is given the original's dtype, device and memory layout. Replacing
    an output reaches every consumer of it; replacing an input the one layer alone.

    Yields
    ------
    seen : Seen
    """
    seen = Seen(tap)

    def swap(value):
        if not seen.is_at_tap():
            return None
        original = tap.pick(value)
        changed = change(original.detach())
        if changed.shape != original.shape:
            raise ValueError(
                f"The replacement for layer {tap.name!r} must be of shape "
                f"{tuple(original.shape)}, got {tuple(changed.shape)}."
            )
        return tap.put(value, torch.empty_like(original).copy_(changed))

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


# Networks now in use by `borrowed`: how many blocks use each, and what to restore.
_loans: weakref.WeakKeyDictionary[nn.Module, _Loan] = weakref.WeakKeyDictionary()
_loans_lock = threading.Lock()

# Seed of whatever noise a network draws during a borrowed forward pass.
NOISE_SEED = 0


@dataclass
class _Loan:
    device: torch.device
    modes: list[tuple[nn.Module, bool]]
    home: torch.device | None  # where to bring the network back to
    users: int = 0


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a network in evaluation mode, on a device, without gradients.

    On exit each submodule's own mode and the network's device are as they were. Any
    number of threads may borrow a network at a time, on one device; the last to leave
    restores it.
    """
    with _loans_lock:
        loan = _loans.get(model)
        if loan is None:
            loan = _loans[model] = _lend(model, device)
        elif loan.device != device:
            raise RuntimeError(
                f"The network is in use on {loan.device} by another thread and cannot "
                f"be used on {device} now. Give both the same device."
            )
        loan.users += 1
    try:
        with torch.no_grad(), _uncompiled(model):
            yield
    finally:
        with _loans_lock:
            loan.users -= 1
            if loan.users == 0:
                del _loans[model]
                for module, training in loan.modes:
                    module.training = training
                if loan.home is not None:
                    model.to(loan.home)


def _lend(model: nn.Module, device: torch.device) -> _Loan:
    """Put the network into evaluation mode on the device, or leave it as it is."""
    homes = {t.device for t in (*model.parameters(), *model.buffers())}
    home = None
    if homes and homes != {device}:
        if len(homes) > 1:
            raise ValueError(
                "The network is spread over several devices "
                f"({', '.join(sorted(map(str, homes)))}): leave device at None."
            )
        (home,) = homes
        try:
            model.to(device)
        except BaseException:
            model.to(home)
            raise
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        model.eval()
    return _Loan(device, modes, home)


class _Shared:
    """A context of the whole process that several threads may be in at once.

    The first to come enters it and the last to go leaves it.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager]) -> None:
        self.make = make
        self.users = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.context = self.make()
                self.context.__enter__()
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.context.__exit__(None, None, None)


_eager = _Shared(lambda: torch.compiler.set_stance("force_eager"))


def _uncompiled(model: nn.Module) -> contextlib.AbstractContextManager:
    """Context in which compiled parts of a network run as plain Python.

    Code compiled by ``torch.compile`` ignores hooks that were added later.
    """
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
    return _eager.joined() if compiled else contextlib.nullcontext()


@contextlib.contextmanager
def fixed_noise(device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers alike for each block, and restore them after.

    The global numbers are one stream: threads that draw noise at the same time get
    parts of it in any order, but the state is restored when the last is done.
    """
    with _preserved_random_state(device).joined():
        for generator in _random_generators(device):
            generator.manual_seed(NOISE_SEED)
        yield


def _random_generators(device: torch.device) -> list[torch.Generator]:
    """The global generators that a network on the device may draw from."""
    generators = [torch.random.default_generator]
    if device.type == "cuda" and torch.cuda.is_available():
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


@functools.cache
def _preserved_random_state(device: torch.device) -> _Shared:
    """Context after which the generators of the device are as they were."""

    @contextlib.contextmanager
    def preserved():
        generators = _random_generators(device)
        before = [generator.get_state() for generator in generators]
        try:
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)

    return _Shared(preserved)
