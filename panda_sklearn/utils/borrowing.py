"""Running somebody else's network, and leaving it and the process as they were.

Floor 2: torch alone. :func:`borrowed` puts a network into the state in which it may be
run, and back; :func:`preserved_random_state` keeps torch's global random numbers, which
:func:`seed_noise` sets before a pass. Several threads may use them at a time.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

__all__ = [
    "borrowed",
    "preserved_random_state",
    "seed_noise",
    "uncompiled",
]

# Networks now in use by `borrowed`: how many blocks use each, and what to restore.
_loans: weakref.WeakKeyDictionary[nn.Module, _Loan] = weakref.WeakKeyDictionary()
_loans_lock = threading.Lock()

# Seed of whatever noise a network draws during a borrowed forward pass.
NOISE_SEED = 0


@dataclass
class _Loan:
    device: torch.device | None
    modes: list[tuple[nn.Module, bool]]
    home: torch.device | None  # where to bring the network back to
    users: int = 0


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Run a network in evaluation mode, on a device, without gradients.

    ``device=None`` leaves it on its device, or devices. On exit each submodule's own
    mode and the network's device are as they were. Any number of threads may borrow a
    network at a time, with the same ``device``; the last to leave restores it.
    """
    with _loans_lock:
        loan = _loans.get(model)
        if loan is None:
            loan = _loans[model] = _lend(model, device)
        elif loan.device != device:
            raise RuntimeError(
                f"The network is in use with device={loan.device} by another thread, "
                f"and cannot be used with device={device} now. Give both the same."
            )
        loan.users += 1
    try:
        with torch.no_grad(), uncompiled(model):
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


def _lend(model: nn.Module, device: torch.device | None) -> _Loan:
    """Put the network into evaluation mode on the device, or leave it as it is."""
    homes = set()
    if device is not None:
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


def uncompiled(model: nn.Module) -> contextlib.AbstractContextManager:
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
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Context after which torch's random numbers go on as they were before.

    The global numbers are one stream: threads that draw noise at the same time get
    parts of it in any order, but the state is restored when the last is done.
    """
    with contextlib.ExitStack() as stack:
        for generator in _random_generators(device):
            stack.enter_context(_preserved(generator).joined())
        yield


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
def _preserved(generator: torch.Generator) -> _Shared:
    """Context after which a generator is as it was."""

    @contextlib.contextmanager
    def preserved():
        before = generator.get_state()
        try:
            yield
        finally:
            generator.set_state(before)

    return _Shared(preserved)
