"""A cache for scikit-learn's ``memory`` that hits on tensors and networks.

joblib's own cache never does: its hash of a tensor depends on where the tensor is in
memory. What calls have in common is the business of
:mod:`panda_sklearn.utils.hashing`.

Results are files in folders that joblib would make, so that joblib can keep their size
within limits. Anything may delete or damage them at any time: a result that cannot be
read is computed again, and one that cannot be kept is returned all the same.

Imports joblib, torch and numpy.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import joblib
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from panda_sklearn.utils.files import as_path, whole_file
from panda_sklearn.utils.hashing import bytes_of, hash_call

__all__ = ["TensorMemory"]


class TensorMemory:
    """Cache of function results on disk, for arguments with tensors and networks.

    For scikit-learn's parameter ``memory``, as in ``Pipeline(steps, memory=...)``.
    A result is found again by equal arguments, also by clones and by other processes:
    tensors count by values, shape, dtype and device; networks by the name of their
    class, their weights, attributes and hooks; functions by their code, defaults and
    closure. A result computed by another version of this package, torch, scikit-learn
    or numpy is computed anew.

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
    The cache does not notice when these change: the code of a network's class, and the
    attributes of that class; what a function calls, and the global variables and files
    that it reads; the closures of hooks. Call ``clear`` after such a change.

    A network whose attributes change in a pass, such as one that counts its calls, is
    another network afterwards, for which results are computed anew.

    Values count to the last bit, which other numbers of threads and devices compute
    otherwise.

    As with joblib's cache, only load one that you trust: results are pickled. One
    process computes a result while others that ask for it wait. A result that cannot be
    read is computed again; of one that cannot be stored a warning says so.

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

    def __init__(self, location: Any, *, verbose: int = 0) -> None:
        self.location = location
        self.verbose = verbose

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={self.location!r})"

    def cache(self, func: Callable, ignore: Any = None) -> Callable:
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
            If ``ignore`` is not a list of strings, or ``location`` not a path.
        ValueError
            If ``ignore`` names something that is not an argument.
        """
        ignored = _names_in(ignore)
        if self.location is None:
            return func
        folder = self._folder()
        signature = inspect.signature(func)
        if not ignored <= set(signature.parameters):
            raise ValueError(
                f"ignore must name arguments of {func.__qualname__}, "
                f"{list(signature.parameters)}, got {sorted(ignored)}."
            )

        def cached(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            counting = {k: v for k, v in bound.arguments.items() if k not in ignored}
            key, shared = hash_call(func, counting)
            # joblib's name, in a folder named as joblib names them.
            path = folder / "joblib" / __name__ / key / "output.pkl"
            found = _recall(path, shared)
            if not found:
                with _alone(path):
                    found = _recall(path, shared)  # another may have computed it
                    if not found:
                        if self.verbose:
                            name = func.__qualname__
                            print(f"[{type(self).__name__}] calling {name}")
                        found = [func(*args, **kwargs)]
                        _keep(path, found[0], shared)
            self._lend(found[0])
            return found[0]

        cached.__signature__ = signature  # type: ignore[attr-defined]
        cached.__wrapped__ = func  # type: ignore[attr-defined]
        return cached

    def clear(self, warn: bool = True) -> None:
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
        shutil.rmtree(location / "joblib", ignore_errors=True)

    def reduce_size(
        self, bytes_limit: Any = None, items_limit: Any = None, age_limit: Any = None
    ) -> None:
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
        """The location, which must be a path."""
        return as_path(self.location, "location")

    def _lend(self, result: Any) -> None:
        """Give this cache to the transformers in a result that make use of one."""
        for item in result if isinstance(result, tuple) else (result,):
            inner = item.get_params() if hasattr(item, "get_params") else {}
            for estimator in (item, *inner.values()):
                if hasattr(type(estimator), "_memory"):
                    estimator._memory = self


def _names_in(ignore: Any) -> set[str]:
    """The arguments that do not count."""
    if ignore is None:
        return set()
    if not isinstance(ignore, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in ignore
    ):
        raise TypeError(
            "ignore must be a list of names of arguments, as ignore=['verbose'], "
            f"got {ignore!r} of type {type(ignore).__name__}."
        )
    return set(ignore)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes and threads from computing the same result.

    Nobody is kept from it where no file can be made or locked, or others delete the
    folder.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name("lock")))
        yield


def _recall(path: Path, shared: list) -> list:
    """The result of a call in a list, which is empty if none can be read."""
    try:
        with open(path, "rb") as file:
            return [_Unpickler(file, shared).load()]
    except Exception:  # of any kind: what pickle raises depends on what it reads
        return []


def _keep(path: Path, result: Any, shared: list) -> None:
    """Store a result; warn if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            _Pickler(file, shared).dump(result)
    except (FileNotFoundError, FileExistsError):
        pass  # others deleted the folder meanwhile
    except Exception as error:  # of any kind: objects say in their own way that they
        warnings.warn(  # cannot be pickled
            f"A result could not be kept in the cache, in {str(path)!r}: "
            f"{type(error).__name__}: {error}.",
            RuntimeWarning,
            stacklevel=3,
        )


class _Pickler(pickle.Pickler):
    """Pickles all but what the arguments already had."""

    def __init__(self, file: BinaryIO, shared: list) -> None:
        super().__init__(file, protocol=5)
        self._places = {id(thing): place for place, thing in enumerate(shared)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        # By their values alone: torch pickles all of the memory that a view is of.
        if isinstance(obj, Tensor) and obj.layout == torch.strided:
            where = str(obj.device)
            about = obj.dtype, where, tuple(obj.shape), obj.requires_grad
            parameter = isinstance(obj, nn.Parameter)
            return _make_tensor, (bytes_of(obj), *about, parameter)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    """Puts the caller's own in the places of what was left out."""

    def __init__(self, file: BinaryIO, shared: list) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, place: int) -> Any:
        return self._shared[place]


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
