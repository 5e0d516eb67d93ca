"""Running somebody else's network, and leaving it and the process as they were.

Floor 2: torch alone. :func:`borrow` puts a network into the state in which it may be
run, of which :func:`hold` keeps some between runs; :func:`preserve_random_state` keeps
torch's global random numbers, which :func:`seed_noise` sets before a pass. They note in
an :class:`~panda_sklearn.utils.undo.Undo` how to put back what they change. Several
threads may use them at a time, on one network or on networks that share submodules.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from panda_sklearn.utils.undo import Undo

__all__ = [
    "borrow",
    "hold",
    "preserve_random_state",
    "run_eagerly",
    "seed_noise",
]

# Seed of whatever noise a network draws during a borrowed forward pass.
NOISE_SEED = 0


@dataclass
class _Use:
    """A module in use: by which loans, and what it is to be put back to."""

    module: nn.Module
    training: bool
    loans: set[_Loan] = field(default_factory=set)
    asked: bool = False  # to change modes by a method of its own


@dataclass
class _Move:
    """A network that was moved, and where it is to be brought back to."""

    model: nn.Module
    home: torch.device


# All modules in use, by their id, and all networks that are not at home. A thread that
# is interrupted may come back for its own loans while it has the lock. What is done
# under a lock is one line with it: between two, an interrupt would leave it locked.
_uses: dict[int, _Use] = {}
_moves: list[_Move] = []
_lock = threading.RLock()


def borrow(undo: Undo, model: nn.Module, device: torch.device | None = None) -> None:
    """Have a network in evaluation mode, on a device, and gradients off.

    As :func:`hold`, and for whatever the thread does meanwhile: the mode of gradients
    is put back at the end, too.

    Raises
    ------
    RuntimeError, ValueError
        As :func:`hold`.
    """
    gradients = torch.is_grad_enabled()
    undo.note(lambda: torch.set_grad_enabled(gradients))
    torch.set_grad_enabled(False)
    run_eagerly(undo, model)
    hold(undo, model, device)


def hold(undo: Undo, model: nn.Module, device: torch.device | None = None) -> None:
    """Have a network in evaluation mode and on a device.

    ``device=None`` leaves it on its device, or devices. At the end each submodule's own
    mode and the network's device are as they were. Modules that several calls use at a
    time are put back when the last of these ends; such calls must agree on the device.

    Raises
    ------
    RuntimeError
        If a module is in use on another device.
    ValueError
        If the network is to be moved, and cannot.
    """
    loan = _Loan(model, device)
    undo.note(loan.end)
    loan.begin()


class _Loan:
    """One call's use of a network."""

    def __init__(self, model: nn.Module, device: torch.device | None) -> None:
        self.model = model
        self.device = device
        self.thread = threading.get_ident()
        self.modules = list(model.modules())

    def begin(self) -> None:
        """Count the network's modules as in use, move them and set their mode."""
        with _lock: self._begin()  # noqa: E701  # fmt: skip

    def _begin(self) -> None:
        home = self._home()
        for module in self.modules:
            use = _uses.get(id(module))
            if use is None:
                use = _uses[id(module)] = _Use(module, module.training)
            use.loans.add(self)
        if home is not None:
            _moves.append(_Move(self.model, home))
            self.model.to(self.device)
        if any(module.training for module in self.modules):
            for module in self.modules:
                if _has_own_methods(module):
                    _uses[id(module)].asked = True
            _evaluate(self.model)

    def end(self) -> None:
        """Put back the modules that no other call uses.

        May be called again after it was interrupted.
        """
        with _lock: self._end()  # noqa: E701  # fmt: skip

    def _end(self) -> None:
        for module in self.modules:
            use = _uses.get(id(module))
            if use is not None:
                use.loans.discard(self)
        _put_back()

    def _home(self) -> torch.device | None:
        """Where to bring the network back to, if it has to be moved."""
        homes = set()
        if self.device is not None:
            homes = {t.device for t in _tensors(self.modules)}
        moves = bool(homes) and homes != {self.device}
        away = {id(m) for move in _moves for m in move.model.modules()}
        for module in self.modules:
            use = _uses.get(id(module))
            for other in use.loans if use is not None else ():
                joins = self.device is None and other.thread == self.thread
                moved = id(module) in away
                if other.device != self.device and (moves or moved) and not joins:
                    raise RuntimeError(
                        f"The network is in use with device={other.device} by another "
                        f"call, and cannot be used with device={self.device} now. Give "
                        "both the same."
                    )
        if not moves:
            return None
        if len(homes) > 1:
            raise ValueError(
                "The network is spread over several devices "
                f"({', '.join(sorted(map(str, homes)))}): leave device at None."
            )
        if homes == {torch.device("meta")}:
            raise ValueError(
                "The network's weights are offloaded or not loaded: they are on the "
                f"device 'meta', without values, and cannot be moved to {self.device}. "
                "Leave device at None; weights that are not loaded, load first."
            )
        return homes.pop()


def _put_back() -> None:
    """Put back all modules that are not in use any more, and networks with none."""
    problems: list[Exception] = []
    for use in list(_uses.values()):  # what a parent's method does to others counts
        if use.asked and not any(map(_is_in_use, use.module.modules())):
            for module in use.module.modules():
                _uses.setdefault(id(module), _Use(module, module.training))
    ready = [
        use
        for use in _uses.values()
        if not (use.loans or (use.asked and any(map(_is_in_use, use.module.modules()))))
    ]
    own = [use for use in ready if _has_own_methods(use.module)]
    # Parents first, whose methods set their children too.
    for use in sorted(own, key=lambda use: -len(list(use.module.modules()))):
        try:
            _ask(use)
        except Exception as problem:
            problems.append(problem)
    for use in ready:
        use.module.training = use.training
    for use in ready:
        _uses.pop(id(use.module), None)
    for move in list(_moves):
        if not any(map(_is_in_use, move.model.modules())):
            try:
                move.model.to(move.home)
            except Exception as problem:
                problems.append(problem)
            if move in _moves:
                _moves.remove(move)
    if problems:
        raise problems[0]


def _is_in_use(module: nn.Module) -> bool:
    use = _uses.get(id(module))
    return use is not None and bool(use.loans)


def _evaluate(model: nn.Module) -> None:
    """Put a network into evaluation mode as it does itself."""
    try:
        model.eval()
    except NotImplementedError:  # a part is exported, and has no modes
        for module in model.modules():
            if not _has_own_methods(module):
                module.training = False


def _ask(use: _Use) -> None:
    """Ask a module with a method of its own to go back to its mode."""
    if use.training != use.module.training or (use.asked and use.training):
        with contextlib.suppress(NotImplementedError):  # exported: it has no modes
            use.module.train(use.training)


def _has_own_methods(module: nn.Module) -> bool:
    """Whether a mode is more than a flag, as where low-rank weights are merged."""
    return any(
        getattr(getattr(module, name), "__func__", None) is not plain
        for name, plain in (("train", nn.Module.train), ("eval", nn.Module.eval))
    )


def _tensors(modules: Iterable[nn.Module]) -> Iterable[Tensor]:
    """Parameters and buffers of modules, without those of their submodules."""
    for module in modules:
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)


class _Shared:
    """A state of the whole process that several calls may change at a time.

    The first to come notes it, and the last to go puts it back.
    """

    def __init__(self, note: Callable[[], Any], put_back: Callable[[Any], Any]) -> None:
        self.note = note
        self.put_back = put_back
        self.before: Any = None
        self.users: set[object] = set()
        self.lock = threading.RLock()

    def join(self, undo: Undo) -> None:
        """Begin to use it."""
        user = object()
        undo.note(functools.partial(self.leave, user))
        with self.lock: self._enter(user)  # noqa: E701  # fmt: skip

    def _enter(self, user: object) -> None:
        first = not self.users
        self.users.add(user)
        if first:
            self.before = self.note()

    def leave(self, user: object) -> None:
        """Use it no more; may be called again after it was interrupted."""
        with self.lock: self._leave(user)  # noqa: E701  # fmt: skip

    def _leave(self, user: object) -> None:
        if self.users == {user} and self.before is not None:
            self.put_back(self.before)
            self.before = None
        self.users.discard(user)


_eager = _Shared(
    lambda: torch.compiler.set_stance("force_eager"),
    lambda stance: stance.__exit__(None, None, None),
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
        _eager.join(undo)


def preserve_random_state(undo: Undo, device: torch.device) -> None:
    """Have torch's random numbers go on at the end as they were before.

    The global numbers are one stream: threads that draw noise at the same time get
    parts of it in any order, but the state is put back when the last is done.
    """
    for generator in _random_generators(device):
        _state_of(generator).join(undo)


def seed_noise(device: torch.device) -> None:
    """Seed torch's random numbers for a pass of a network on the device."""
    for generator in _random_generators(device):
        generator.manual_seed(NOISE_SEED)


def _random_generators(device: torch.device) -> list[torch.Generator]:
    """The global generators that a network on the device may draw from."""
    generators = [torch.random.default_generator]
    if device.type == "cuda" and torch.cuda.is_available():
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


@functools.cache
def _state_of(generator: torch.Generator) -> _Shared:
    """The state of a global generator."""
    return _Shared(generator.get_state, generator.set_state)
