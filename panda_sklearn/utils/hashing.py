"""Hashes of weights, and of calls with tensors, networks and functions.

joblib's own hash of a tensor depends on where the tensor is in memory. Here tensors,
networks and functions count by their content.

Imports joblib, torch, numpy and scikit-learn, for its version.
"""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import torch
from joblib.hashing import NumpyHasher
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from panda_sklearn._version import __version__

__all__ = ["bytes_of", "fingerprint", "hash_call"]

# A result computed by other versions is computed anew.
VERSIONS = (__version__, torch.__version__, sklearn.__version__, np.__version__)

# Hexadecimal digits of a network's fingerprint: 64 bits, for a name to compare.
DIGITS = 16

# Attributes that every module has. Of these, the ones that say what it computes.
OF_EVERY_MODULE = {*vars(nn.Module()), "_compiled_call_impl"}
TELLING = {"training", "_parameters", "_buffers", "_modules"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class _Hasher(NumpyHasher):
    """joblib's hash, with tensors taken by their content.

    Attributes
    ----------
    shared : list
        The networks, functions and local classes met, in order: alike for equal
        values. They count by their place in it.
    """

    def __init__(self, shared: list) -> None:
        super().__init__("sha1")
        self.shared = shared
        self._places = {id(thing): place for place, thing in enumerate(shared)}

    def save(self, obj: Any) -> None:
        if isinstance(obj, Tensor):
            obj = _tensor_content(obj)
        elif _is_shared(obj):
            place = self._places.setdefault(id(obj), len(self.shared))
            if place == len(self.shared):
                self.shared.append(obj)
            obj = ("shared", place)
        super().save(obj)


def hash_call(func: Callable, arguments: dict[str, Any]) -> tuple[str, list]:
    """Hash of a call, and the networks, functions and local classes in it.

    Raises
    ------
    TypeError
        If something in it cannot be hashed.
    """
    plain = getattr(func, "__func__", func)
    owner = getattr(func, "__self__", None)
    shared: list = []
    hashes = [_hash((VERSIONS, plain, owner, sorted(arguments.items())), shared)]
    for thing in shared:  # which grows meanwhile
        hashes.append(_hash(_content(thing), shared))
    return _hash(hashes, shared), shared


def _hash(value: Any, shared: list) -> str:
    """Hash of a value; adds what it shares to the list."""
    try:
        return _Hasher(shared).hash(value)
    except (pickle.PicklingError, TypeError) as error:
        raise TypeError(
            f"An argument cannot be hashed for the cache ({error.args[0]}). Take it "
            "out, or set memory=None."
        ) from error


def fingerprint(network: nn.Module) -> str:
    """Name a network's weights in a short text.

    Networks of equal weights have equal ones, on any device and in either mode; another
    weight, name of a weight or type of its numbers makes another one. A file of a
    decomposition keeps that of its network (``save(path, network=network)``), and
    :class:`~panda_sklearn.LocalEditor` compares.

    Parameters
    ----------
    network : torch.nn.Module
        Any network whose weights are in memory.

    Returns
    -------
    fingerprint : str
        16 hexadecimal digits: the start of the SHA-256 of names, types, shapes and
        values of its parameters and buffers.

    Raises
    ------
    TypeError
        If it is no network.
    ValueError
        If it has weights without values: on the device "meta", or not initialised yet.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator
    >>> from panda_sklearn.generators import fingerprint
    >>> fingerprint(load_face_generator()) == fingerprint(load_face_generator())
    True
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network must be a torch.nn.Module, got {type(network).__name__}."
        )
    total = hashlib.sha256()
    weights = [*network.named_parameters(), *network.named_buffers()]
    # What torch.compile wraps is the network that it was.
    named = {name.replace("_orig_mod.", ""): weight for name, weight in weights}
    for name, weight in sorted(named.items()):
        if weight.is_meta or is_lazy(weight):
            raise ValueError(
                f"The weight {name!r} of {type(network).__name__} has no values yet: "
                "load or initialise the network first."
            )
        total.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        total.update(bytes_of(weight).data)
    return total.hexdigest()[:DIGITS]


def _tensor_content(T: Tensor) -> tuple:
    """What two equal tensors have in common."""
    if T.layout != torch.strided:
        raise TypeError(f"tensor of layout {T.layout}")
    digest = hashlib.sha256(bytes_of(T).data).digest()
    about = (str(T.dtype), str(T.device), tuple(T.shape), T.requires_grad)
    return (type(T).__qualname__, *about, digest)


def bytes_of(T: Tensor) -> np.ndarray:
    """The values of a tensor as a one-dimensional array of bytes, on the CPU."""
    values = T.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy()


def _is_shared(obj: Any) -> bool:
    """Whether it is taken by its content, and never stored.

    Networks, functions, and classes that cannot be imported by name.
    """
    local = isinstance(obj, type) and "<locals>" in obj.__qualname__
    return local or isinstance(obj, nn.Module | types.FunctionType)


def _content(thing: Any) -> Any:
    """What two equal networks, functions or local classes have in common."""
    if isinstance(thing, nn.Module):
        return _network_content(thing)
    if isinstance(thing, types.FunctionType):
        cells = thing.__closure__ or ()
        # An empty cell is that of a variable that has no value yet.
        full = [cell.cell_contents for cell in cells if cell != types.CellType()]
        return _function_content(thing), full
    return thing.__module__, thing.__qualname__


def _network_content(network: nn.Module) -> tuple:
    network = getattr(network, "_orig_mod", network)  # compiled code computes the same
    kind = type(network)
    items = {
        name: value
        for name, value in vars(network).items()
        if name in TELLING or name not in OF_EVERY_MODULE
    }
    # Without their keys, which count up through the process, and without the closures
    # of functions, in which hooks gather what they see.
    hooks = [
        _function_content(hook) if isinstance(hook, types.FunctionType) else hook
        for name in HOOKS
        for hook in (name, *getattr(network, name).values())
    ]
    return kind.__module__, kind.__qualname__, items, hooks


def _function_content(function: types.FunctionType) -> tuple:
    """What equal functions have in common, but for their closures."""
    return (
        function.__module__,
        function.__qualname__,
        _code_content(function.__code__),
        function.__defaults__,
        function.__kwdefaults__,
    )


def _code_content(code: types.CodeType) -> tuple:
    constants = [
        _code_content(c) if isinstance(c, types.CodeType) else repr(c)
        for c in code.co_consts
    ]
    return code.co_code, constants, code.co_names
