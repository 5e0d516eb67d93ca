"""Hashes of calls in which tensors, networks and functions count by their content.

joblib's own hash of a tensor depends on where the tensor is in memory. Here a call's
hash is made of two: that of its structure, in which what is *shared* (networks,
functions, classes that cannot be imported) is a mere place in a list; and those of the
contents of all in that list. What is in the list is never stored with a result.

Floor 2: joblib, torch, numpy and scikit-learn, for its version.
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

__all__ = ["bytes_of", "call_key", "call_structure", "fingerprint", "settings_of"]

# A result computed by other versions is computed anew.
VERSIONS = (__version__, torch.__version__, sklearn.__version__, np.__version__)

# Hexadecimal digits of a network's fingerprint: 64 bits, for a name to compare.
DIGITS = 16

# What a network holds for its own bookkeeping, and what hooks are stored under.
BOOKKEEPING = {"_is_full_backward_hook", "_non_persistent_buffers_set"}

PLAIN = (int, float, complex, str, bytes, type(None))
SETTINGS = (*PLAIN, tuple, list, dict, set, frozenset, Tensor, np.ndarray)


class _Hasher(NumpyHasher):
    """joblib's hash, with tensors, networks and functions taken by their content.

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


def call_structure(func: Callable, arguments: dict) -> tuple[str, list]:
    """Hash of a call but for what is shared, and what that is."""
    roots: list = []
    plain = getattr(func, "__func__", func)
    owner = getattr(func, "__self__", None)
    name = f"{plain.__module__}.{plain.__qualname__}"
    call = (VERSIONS, name, owner, plain, sorted(arguments.items()))
    return _hash(call, roots, name), roots


def call_key(structure: str, roots: list, volatile: set[str]) -> tuple[str, list]:
    """Hash of a call, and all that is shared in it, what that holds included."""
    shared = list(roots)
    contents = []
    for thing in shared:  # which grows meanwhile
        name, items = _items(thing)
        kept = {
            item: value if isinstance(value, PLAIN) else _hash(value, shared, name)
            for item, value in items.items()
            if f"{name}:{item}" not in volatile
        }
        contents.append((name, kept))
    return _hash((structure, contents), [], ""), shared


def _hash(value: Any, shared: list, name: str) -> str:
    """Hash of a value; adds what it shares to the list."""
    try:
        return _Hasher(shared).hash(value)
    except (pickle.PicklingError, TypeError) as error:
        raise TypeError(
            f"Something in {name} cannot be hashed for the cache ({error.args[0]}). "
            "Take it out, or set memory=None."
        ) from error


def settings_of(shared: list) -> dict[tuple[int, str], Any]:
    """Of each network and function, what a call may change in it besides tensors."""
    found: dict[tuple[int, str], Any] = {}
    for place, thing in enumerate(shared):
        name, items = _items(thing)
        for item, value in items.items():
            if item in ("code", "_parameters", "_buffers", "_modules"):
                continue
            if not isinstance(value, PLAIN):
                value = _hash(value, [], name)
            found[place, f"{name}:{item}"] = value
    return found


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


def _items(thing: Any) -> tuple[str, dict[str, Any]]:
    """A name, and what equal things of that name have in common."""
    if isinstance(thing, type):
        return f"{thing.__module__}.{thing.__qualname__}", _class_items(thing)
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}", _function_items(thing)
    thing = getattr(thing, "_orig_mod", thing)  # compiled code computes the same
    cls = type(thing)
    return f"{cls.__module__}.{cls.__qualname__}", _module_items(thing)


def _class_items(cls: type) -> dict[str, Any]:
    """Code and class attributes, with those of the bases down to torch's."""
    code: list[tuple] = []
    items: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for name, value in sorted(vars(base).items()):
            if isinstance(value, property):
                code.append((name, value.fget, value.fset))
            elif isinstance(value, staticmethod | classmethod):
                code.append((name, value.__func__))
            elif isinstance(value, types.FunctionType):
                code.append((name, value))
            elif not name.startswith("__") and isinstance(value, SETTINGS):
                items[f"{base.__qualname__}.{name}"] = value
    return {"code": code, **items}


def _module_items(module: nn.Module) -> dict[str, Any]:
    """Code, weights, settings and hooks of a network."""
    items = _class_items(type(module))
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            value = list(value.values())  # the keys count up through the process
        if name not in BOOKKEEPING and not name.endswith(("_with_kwargs", "_called")):
            items[name] = value
    return items


def _function_items(function: types.FunctionType) -> dict[str, Any]:
    """Code and defaults of a function, and what the code reads."""
    items: dict[str, Any] = {
        "code": _code_content(function.__code__),
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
    }
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        items[f"closure {name}"] = cell.cell_contents if _full(cell) else None
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        same_module = getattr(value, "__module__", None) == function.__module__
        if isinstance(value, PLAIN) or (
            isinstance(value, types.FunctionType) and same_module
        ):
            items[f"global {name}"] = value
    return items


def _full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code_content(code: types.CodeType) -> tuple:
    constants = [
        _code_content(c) if isinstance(c, types.CodeType) else repr(c)
        for c in code.co_consts
    ]
    return code.co_code, constants, code.co_names
