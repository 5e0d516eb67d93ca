"""A cache for scikit-learn's ``memory`` that hits on tensors and networks.

joblib's own cache never does: its hash of a tensor depends on where the tensor is in
memory, so that a clone or another process has another one.

Results are files in folders that joblib would make, so that joblib can keep their size
within limits. Anything may delete or damage them at any time: what is not found whole
is computed again.

Floor 2: joblib. What calls have in common is the business of
:mod:`panda_sklearn.utils.hashing`, how results are stored of
:mod:`panda_sklearn.utils.packing`.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import joblib
from filelock import FileLock

from panda_sklearn.utils.files import as_path
from panda_sklearn.utils.hashing import call_key, call_structure, settings_of
from panda_sklearn.utils.packing import Packed, pack, read_packed, unpack, write_packed

__all__ = ["TensorMemory"]

# Something done in a folder is tried so often, while others delete the folder.
ATTEMPTS = 100

Result = TypeVar("Result")


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
        Above 0, it prints which functions it calls, having no result yet.

    See Also
    --------
    joblib.Memory : A cache for numpy arrays.

    Notes
    -----
    As with joblib's, only load a cache that you trust: results are pickled. As there
    too, a function's result must depend on its arguments alone. What code reads from
    elsewhere counts as far as it consists of numbers, strings and functions of the
    same module.

    Values count to the last bit, which other numbers of threads and devices compute
    otherwise.

    What a call changes itself in a network or a function's closure, a count of its
    calls for example, does not tell calls apart.

    One process computes a result while others that ask for it wait. A result that was
    damaged, or deleted by any of them, is computed again.

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
        TypeError
            If ``ignore`` is no list of strings, or ``location`` no path.
        ValueError
            If ``ignore`` names something that is no argument.
        """
        if isinstance(ignore, str) or not (
            ignore is None
            or (
                isinstance(ignore, list | tuple | set | frozenset)
                and all(isinstance(name, str) for name in ignore)
            )
        ):
            raise TypeError(
                "ignore must be a list of names of arguments, as ignore=['verbose'], "
                f"got {ignore!r} of type {type(ignore).__name__}."
            )
        if self.location is None:
            return func
        folder = self._folder()
        signature = inspect.signature(func)
        ignored = set(ignore or ())
        if not ignored <= set(signature.parameters):
            raise ValueError(
                f"ignore must name arguments of {func.__qualname__}, "
                f"{list(signature.parameters)}, got {sorted(ignored)}."
            )

        def compute(key, shared, structure, roots, args, kwargs):
            if self.verbose:
                print(f"[{type(self).__name__}] calling {func.__qualname__}")
            before = settings_of(shared)
            result = func(*args, **kwargs)
            if self._note_volatile(before, settings_of(shared)):
                key, shared = call_key(structure, roots, self._volatile())
            packed = pack(result, shared)
            _keep(folder, key, packed)
            return unpack(*packed, shared)

        def cached(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            counting = {k: v for k, v in bound.arguments.items() if k not in ignored}
            structure, roots = call_structure(func, counting)
            key, shared = call_key(structure, roots, self._volatile())
            found = _recall(folder, key, shared)
            if not found:
                with self._alone(key):
                    # Another may have computed it meanwhile.
                    found = _recall(folder, key, shared)
                    if not found:
                        found = [compute(key, shared, structure, roots, args, kwargs)]
            (result,) = found
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
        if self.location is None:
            return
        location = self._folder()
        if warn:
            logging.getLogger(__name__).warning("%s: deleting what is cached", self)
        for folder in ("joblib", "locks", "volatile"):
            shutil.rmtree(location / folder, ignore_errors=True)

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
            joblib.Memory(self._folder(), verbose=0).reduce_size(
                bytes_limit=bytes_limit, items_limit=items_limit, age_limit=age_limit
            )

    def _folder(self) -> Path:
        """The location, which must be a path; ``None`` is not asked for."""
        return as_path(self.location, "location")

    def _volatile(self) -> set[str]:
        """Names of what the calls so far have changed in networks and functions."""
        try:
            return {unquote(name) for name in os.listdir(self._folder() / "volatile")}
        except FileNotFoundError:
            return set()

    def _note_volatile(self, before: dict, after: dict) -> bool:
        """Remember what differs for all processes; whether something does.

        A call that counts itself in its network must not miss for that reason.
        """
        names = {
            place_and_name[1]
            for place_and_name in before.keys() | after.keys()
            if before.get(place_and_name) != after.get(place_and_name)
        }
        folder = self._folder() / "volatile"
        for name in names:
            _in_folder(folder, (folder / quote(name, safe="")).touch)
        return bool(names)

    def _alone(self, key: str) -> Any:
        """Keep other processes and threads from computing the same result."""
        folder = self._folder() / "locks"
        return _in_folder(folder, FileLock(folder / f"{key}.lock").acquire)

    def _lend(self, result: Any) -> None:
        """Give this cache to the transformers in a result that make use of one."""
        for item in result if isinstance(result, tuple) else (result,):
            inner = item.get_params() if hasattr(item, "get_params") else {}
            for estimator in (item, *inner.values()):
                if hasattr(type(estimator), "_memory"):
                    estimator._memory = self


def _entry(location: Path, key: str) -> Path:
    """The file of a result: joblib's name, in a folder named as joblib names them."""
    return location / "joblib" / __name__ / key / "output.pkl"


def _recall(location: Path, key: str, shared: list) -> list:
    """The result of a call in a list, which is empty if there is none to be read."""
    try:
        return [unpack(*read_packed(_entry(location, key)), shared)]
    except Exception:  # of any kind: what pickle raises depends on what it reads
        return []


def _keep(location: Path, key: str, packed: Packed) -> None:
    """Store a packed result; warn if that cannot be, since the result is there."""
    path = _entry(location, key)
    try:
        _in_folder(path.parent, lambda: write_packed(path, packed))
    except OSError as error:
        warnings.warn(
            f"A result could not be kept in the cache {str(location)!r}: {error}.",
            RuntimeWarning,
            stacklevel=4,
        )


def _in_folder(folder: Path, act: Callable[[], Result]) -> Result:
    """Do something in a folder, again if others delete the folder meanwhile."""
    for _ in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return act()
        except (FileNotFoundError, FileExistsError) as error:
            last = error
    raise last
