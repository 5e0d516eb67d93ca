"""A cache for scikit-learn's ``memory`` that hits on tensors and networks.

joblib's own cache never does: its hash of a tensor depends on where the tensor is in
memory, so that a clone or another process has another one.

Floor 2: joblib. What calls have in common is the business of
:mod:`panda_sklearn.utils.hashing`, how results are stored of
:mod:`panda_sklearn.utils.packing`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import joblib
from filelock import FileLock

from panda_sklearn.utils.hashing import call_key, call_structure, fingerprints
from panda_sklearn.utils.packing import Packed, pack, unpack

__all__ = ["TensorMemory"]


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
    joblib.Memory : The cache that this one writes through, for numpy arrays.

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
            structure, roots = call_structure(func, counting)
            key, shared = call_key(structure, roots, self._volatile())
            keep = _keeper(os.fspath(self.location))
            with self._alone(key):
                if keep.check_call_in_cache(key, None):
                    packed = keep(key, None)
                else:
                    if self.verbose:
                        print(f"[{type(self).__name__}] calling {func.__qualname__}")
                    before = fingerprints(shared)
                    result = func(*args, **kwargs)
                    if self._note_volatile(before, fingerprints(shared)):
                        key, shared = call_key(structure, roots, self._volatile())
                    packed = keep(key, pack(result, shared))
            result = unpack(*packed, shared)
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
            for folder in ("locks", "volatile"):
                shutil.rmtree(Path(self.location) / folder, ignore_errors=True)

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
        return joblib.Memory(os.fspath(self.location), verbose=0)

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


@functools.lru_cache
def _keeper(location: str) -> Any:
    """:func:`_keep` in joblib's cache; making it reads this file, so only once."""
    return joblib.Memory(location, verbose=0).cache(_keep, ignore=["packed"])


def _keep(key: str, packed: Packed) -> Packed:
    """What joblib stores under the key: a packed result."""
    return packed
