"""A cache for scikit-learn's ``memory`` that hits on tensors and networks.

joblib's own cache never does: its hash of a tensor depends on where the tensor is in
memory, so that a clone or another process has another one.

Floor 2: joblib, torch, numpy and scikit-learn.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import os
import pickle
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import joblib
import numpy as np
import sklearn
import torch
from filelock import FileLock
from joblib.hashing import NumpyHasher
from torch import Tensor, nn

from panda_sklearn._version import __version__

__all__ = ["TensorMemory"]

# A result computed by other versions is computed anew.
VERSIONS = (__version__, torch.__version__, sklearn.__version__, np.__version__)

# What a network holds for its own bookkeeping, and what hooks are stored under.
BOOKKEEPING = {"_is_full_backward_hook", "_non_persistent_buffers_set"}

PLAIN = (int, float, complex, str, bytes, type(None))
SETTINGS = (*PLAIN, tuple, list, dict, set, frozenset, Tensor, np.ndarray)


class TensorMemory:
    """Cache of function results on disk, for arguments with tensors and networks.

    For scikit-learn's parameter ``memory``, as in ``Pipeline(steps, memory=...)``.
    A result is found again by equal arguments, also by clones and by other processes:
    tensors count by values, shape, dtype and device; networks by their class's code,
    weights and settings; functions by their code, defaults and closure. A result
    computed by another version of this package, torch, scikit-learn or numpy is
    computed anew.

    A :class:`~panda_sklearn.GeneratorFeatureExtractor` fitted through the cache also
    answers ``transform`` from it, so that in a grid search the network sees each
    training set and each test set once. Networks themselves are not stored: a
    transformer from the cache has the caller's own.

    Parameters
    ----------
    location : str, os.PathLike or None
        Folder of the cache; ``None`` caches nothing.

    verbose : int, default=0
        Above 0, calls that are computed are printed.

    See Also
    --------
    joblib.Memory : The cache that this one writes through, for numpy arrays.

    Notes
    -----
    As with joblib's, only load a cache that you trust: results are pickled. As there
    too, a function's result must depend on its arguments alone. What code reads from
    elsewhere counts as far as it consists of numbers, strings and functions of the
    same module.

    What a call changes itself in a network or a function's closure, a count of its
    calls for example, does not tell calls apart.

    One process computes a result while others that ask for it wait.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from sklearn.pipeline import make_pipeline
    >>> from panda_sklearn import (
    ...     GeneratorFeatureExtractor, PartsAppearanceDecomposition
    ... )
    >>> from panda_sklearn.datasets import load_face_generator, sample_latents
    >>> from panda_sklearn.memory import TensorMemory
    >>> generator = load_face_generator()
    >>> pipeline = make_pipeline(
    ...     GeneratorFeatureExtractor(generator, "block8"),
    ...     PartsAppearanceDecomposition(n_parts=4, n_appearances=8, random_state=0),
    ...     memory=TensorMemory(mkdtemp()),
    ... )
    >>> latents = sample_latents(generator, 20, random_state=0)
    >>> pipeline.fit(latents).transform(latents).shape
    torch.Size([20, 32])
    >>> pipeline[0].generator is generator
    True
    """

    def __init__(self, location, *, verbose=0):
        self.location = location
        self.verbose = verbose

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={self.location!r})"

    def cache(self, func, ignore=None):
        """Make a function that looks its results up first.

        Parameters
        ----------
        func : callable
            The function, or a method: then its object counts as an argument.

        ignore : list of str, default=None
            Arguments that do not count.

        Returns
        -------
        cached : callable
            With the signature of ``func``.

        Raises
        ------
        ValueError
            If ``ignore`` names something that is no argument.
        """
        if self.location is None:
            return func
        signature = inspect.signature(func)
        ignored = set(ignore or ())
        if not ignored <= set(signature.parameters):
            raise ValueError(
                f"ignore must name arguments of {func.__qualname__}, "
                f"{list(signature.parameters)}, got {sorted(ignored)}."
            )

        def cached(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            counting = {k: v for k, v in bound.arguments.items() if k not in ignored}
            structure, roots = _structure(func, counting)
            key, shared = _key(structure, roots, self._volatile())
            keep = _keeper(os.fspath(self.location), self.verbose)
            with self._alone(key):
                if keep.check_call_in_cache(key, None):
                    packed = keep(key, None)
                else:
                    before = _fingerprints(shared)
                    result = func(*args, **kwargs)
                    if self._note_volatile(before, _fingerprints(shared)):
                        key, shared = _key(structure, roots, self._volatile())
                    packed = keep(key, _pack(result, shared))
            result = _unpack(*packed, shared)
            self._lend(result)
            return result

        cached.__signature__ = signature
        cached.__wrapped__ = func
        return cached

    def clear(self, warn=True):
        """Delete what is cached.

        Parameters
        ----------
        warn : bool, default=True
            Whether to say so.
        """
        if self.location is not None:
            self._store().clear(warn=warn)

    def reduce_size(self, bytes_limit=None, items_limit=None, age_limit=None):
        """Delete the results that were used least recently.

        Parameters
        ----------
        bytes_limit : int or str, default=None
            Size to come below, in bytes or as "10G".

        items_limit : int, default=None
            Number of results to keep.

        age_limit : datetime.timedelta, default=None
            Results older than this are deleted.
        """
        if self.location is not None:
            self._store().reduce_size(
                bytes_limit=bytes_limit, items_limit=items_limit, age_limit=age_limit
            )

    def _store(self) -> joblib.Memory:
        return joblib.Memory(os.fspath(self.location), verbose=self.verbose)

    def _volatile(self) -> set[str]:
        """Names of what the calls so far have changed in networks and functions."""
        folder = Path(self.location) / "volatile"
        return (
            {unquote(name) for name in os.listdir(folder)} if folder.exists() else set()
        )

    def _note_volatile(self, before: dict, after: dict) -> bool:
        """Remember what differs for all processes; whether something does.

        A call that counts itself in its network must not miss for that reason.
        """
        names = {
            place_and_name[1]
            for place_and_name in before.keys() | after.keys()
            if before.get(place_and_name) != after.get(place_and_name)
        }
        folder = Path(self.location) / "volatile"
        for name in names:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / quote(name, safe="")).touch()
        return bool(names)

    def _alone(self, key: str) -> contextlib.AbstractContextManager:
        """Keep other processes and threads from computing the same result."""
        folder = Path(self.location) / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def _lend(self, result: Any) -> None:
        """Give this cache to the transformers in a result that make use of one."""
        for item in result if isinstance(result, tuple) else (result,):
            inner = item.get_params() if hasattr(item, "get_params") else {}
            for estimator in (item, *inner.values()):
                if hasattr(type(estimator), "_memory"):
                    estimator._memory = self


# Looking up


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


def _structure(func: Callable, arguments: dict) -> tuple[str, list]:
    """Hash of a call but for what is shared, and what that is."""
    roots: list = []
    plain = getattr(func, "__func__", func)
    owner = getattr(func, "__self__", None)
    name = f"{plain.__module__}.{plain.__qualname__}"
    call = (VERSIONS, name, owner, plain, sorted(arguments.items()))
    return _hash(call, roots, name), roots


def _key(structure: str, roots: list, volatile: set[str]) -> tuple[str, list]:
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


def _fingerprints(shared: list) -> dict[tuple[int, str], Any]:
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


def _tensor_content(T: Tensor) -> tuple:
    """What two equal tensors have in common."""
    if T.layout != torch.strided:
        raise TypeError(f"tensor of layout {T.layout}")
    digest = hashlib.sha256(_bytes_of(T).data).digest()
    about = (str(T.dtype), str(T.device), tuple(T.shape), T.requires_grad)
    return (type(T).__qualname__, *about, digest)


def _bytes_of(T: Tensor) -> np.ndarray:
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


# Storing


@functools.lru_cache
def _keeper(location: str, verbose: int) -> Any:
    """:func:`_keep` in joblib's cache; making it reads this file, so only once."""
    return joblib.Memory(location, verbose=verbose).cache(_keep, ignore=["packed"])


def _keep(key: str, packed: tuple) -> tuple[bytes, list[np.ndarray]]:
    """What joblib stores under the key: a packed result."""
    return packed


class _Packer(pickle.Pickler):
    """Pickles all but what the arguments already had, and arrays out of band."""

    def __init__(self, file: io.BytesIO, shared: Iterable) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        super().__init__(file, protocol=5, buffer_callback=self.buffers.append)
        self._places = {id(thing): place for place, thing in enumerate(shared)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.layout == torch.strided:
            where = str(obj.device)
            about = obj.dtype, where, tuple(obj.shape), obj.requires_grad
            parameter = isinstance(obj, nn.Parameter)
            return _make_tensor, (_bytes_of(obj), *about, parameter)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: list, shared: list) -> None:
        super().__init__(file, buffers=buffers)
        self._shared = shared

    def persistent_load(self, place: int) -> Any:
        return self._shared[place]


def _pack(result: Any, shared: Iterable) -> tuple[bytes, list[np.ndarray]]:
    file = io.BytesIO()
    packer = _Packer(file, shared)
    packer.dump(result)
    return file.getvalue(), [np.frombuffer(b.raw(), np.uint8) for b in packer.buffers]


def _unpack(pickled: bytes, buffers: list[np.ndarray], shared: list) -> Any:
    return _Unpacker(io.BytesIO(pickled), buffers, shared).load()


def _make_tensor(
    values: np.ndarray,
    dtype: torch.dtype,
    device: str,
    shape: tuple[int, ...],
    requires_grad: bool,
    parameter: bool,
) -> Tensor:
    T = torch.from_numpy(values).view(dtype).reshape(shape).to(device)
    if parameter:
        return nn.Parameter(T, requires_grad)
    return T.requires_grad_(requires_grad)
