"""One safetensors file of plain values: arrays by name, everything else as JSON.

Reading a file runs no code from it and trusts none of its content. The header is read
first, and its size is bounded. Each array is named after its place among the values, so
that it is read once, and arrays without a known place are never read.

Imports numpy and safetensors, and torch for its version.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from panda_sklearn._version import __version__
from panda_sklearn.utils.files import as_path, check_target, whole_file

__all__ = ["read_parts", "reading", "write_parts"]

#: Most bytes of a header: enough for the names of 100,000 columns. As Python objects
#: they take about twenty times as much memory, which is still little.
MAX_HEADER = 2**21

#: How deeply containers may be nested; a fitted decomposition needs six levels.
MAX_NESTING = 16

#: The largest integer, which torch takes and floats hold exactly.
MAX_INT = 2**53

# The types of arrays, as numpy and as safetensors call them.
DTYPES = {
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


def write_parts(
    path: str | os.PathLike, kind: str, version: int, parts: dict[str, dict]
) -> None:
    """Write dicts of plain values to a file, which appears whole or not at all.

    Raises
    ------
    TypeError
        If a value cannot be stored in such a file, or ``path`` is not a path.
    ValueError
        If :func:`read_parts` would refuse the values: too many, too deep or too large.
    """
    target = check_target(path)
    arrays: dict[str, np.ndarray] = {}
    text = {
        part: json.dumps({k: _encode(v, k, arrays) for k, v in state.items()})
        for part, state in parts.items()
    }
    for part in text.values():
        _parse(part)
    versions = {"panda_sklearn": __version__, "torch": torch.__version__}
    metadata = {
        "kind": kind,
        "format_version": str(version),
        "versions": json.dumps(versions),
        **text,
    }
    content = save(arrays, metadata)
    _check_size(int.from_bytes(content[:8], "little"))
    with whole_file(target) as file:
        file.write(content)


def read_parts(
    path: str | os.PathLike,
    kind: str,
    version: int,
    known: dict[str, Collection[str]],
) -> tuple[dict[str, dict[str, Any]], int, set[str]]:
    """Read dicts given to :func:`write_parts`.

    Parameters
    ----------
    path : str or os.PathLike

    kind : str
        The kind of content that the file must name.

    version : int
        The latest version of the format to read.

    known : dict of collections of str
        The names of the dicts to read, and the names that each may contain.

    Returns
    -------
    parts : dict of dicts
        The dicts of plain values.

    version : int
        The file's version.

    unread : set of str
        The arrays in the file that no value refers to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a whole file of that kind and of a known version.
    """
    target = as_path(path)
    _check_header(target)
    try:
        with safe_open(target, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = _check_kind(target, metadata, kind, version)
            with reading(target):
                states = {part: _parse(metadata[part]) for part in known}
            _check_names(target, states, known)
            arrays = _Arrays(file)
            with reading(target):
                parts = {
                    part: {k: _decode(v, k, arrays) for k, v in state.items()}
                    for part, state in states.items()
                }
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{str(target)!r} is not a whole safetensors file ({error}). Copy it "
            "again from where it was saved."
        ) from error
    return parts, found, arrays.unread


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn exceptions that a file's values cause in our code into ValueError."""
    try:
        yield
    except (SafetensorError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"What {os.fspath(path)!r} says of its arrays cannot be read "
            f"({type(error).__name__}: {error}). Save it again."
        ) from error


def _check_header(path: Path) -> None:
    """Raise unless there is a file with a header small enough to be read."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a folder or a device")
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"There is no file {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from error
    if size < found.st_size:  # else the file is cut off, and safetensors will say so
        _check_size(size)


def _check_size(header: int) -> None:
    if header > MAX_HEADER:
        raise ValueError(
            f"Parameters and names would take {header} bytes of the file, of which at "
            f"most {MAX_HEADER} are read. Give lists of numbers as arrays, or keep the "
            "estimator with joblib.dump instead."
        )


def _check_kind(path: Path, metadata: dict[str, str], kind: str, version: int) -> int:
    """Return a file's version; ValueError unless version and kind are known."""
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{str(path)!r} does not hold a {kind}, but "
            f"{reprlib.repr(metadata.get('kind', 'something else'))}."
        )
    found = metadata.get("format_version")
    if found is None or found not in [str(n + 1) for n in range(version)]:
        raise ValueError(
            f"{str(path)!r} is of format version {reprlib.repr(found)}, and this "
            f"panda_sklearn {__version__} reads versions up to {version}. Use "
            "the version that saved it, or a later one."
        )
    return int(found)


def _check_names(path: Path, states: dict[str, dict], known: dict) -> None:
    """Raise ValueError if there is a name that this version does not know."""
    unknown = {name for part in known for name in set(states[part]) - set(known[part])}
    if unknown:
        raise ValueError(
            f"{str(path)!r} holds {reprlib.repr(sorted(unknown))}, which panda_sklearn "
            f"{__version__} does not know. Use the version that saved it."
        )


class _Arrays:
    """The arrays of an open file; each can be taken once.

    Attributes
    ----------
    unread : set of str
        Names of the arrays not yet taken.
    """

    def __init__(self, file: Any) -> None:
        self.unread = set(file.keys())
        self._file = file

    def take(self, name: Any, place: str) -> np.ndarray:
        """Return the array of a place, after which it must be named."""
        if name != place or name not in self.unread:
            raise ValueError(f"{place} refers to the array {reprlib.repr(name)}")
        dtype = self._file.get_slice(name).get_dtype()
        if dtype not in DTYPES.values():
            raise ValueError(f"{place} is an array of type {dtype}")
        self.unread.remove(name)
        return self._file.get_tensor(name)


def _parse(text: str) -> dict[str, Any]:
    """Parse a JSON object whose numbers torch can take."""
    state = json.loads(
        text,
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=_parse_float,
    )
    if not isinstance(state, dict):
        raise TypeError("expected a JSON object")
    return state


def _parse_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INT:
        raise ValueError(f"the integer {reprlib.repr(text)} is beyond {MAX_INT}")
    return int(text)


def _parse_float(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {reprlib.repr(text)} is not finite")
    return float(text)


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return a plain value as JSON; numeric arrays go into ``arrays`` by name."""
    if isinstance(value, np.ndarray):
        if value.dtype.name in DTYPES:
            arrays[name] = value.copy(order="C")
            return {"$array": name}
        if value.dtype.kind in "OU" and all(isinstance(item, str) for item in value):
            return {"$names": list(value)}
    elif isinstance(value, np.random.RandomState):
        if value.get_state(legacy=False)["bit_generator"] == "MT19937":
            return {"$RandomState": _encode(list(value.get_state()), name, arrays)}
    elif isinstance(value, np.generic):
        return _encode(value.item(), name, arrays)
    elif isinstance(value, tuple):
        return {"$tuple": _encode(list(value), name, arrays)}
    elif isinstance(value, list):
        return [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        return {k: _encode(v, _place(name, k), arrays) for k, v in value.items()}
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is of type {type(value).__name__}, which cannot be stored in a file "
        "without code. Keep the estimator with joblib.dump instead."
    )


def _decode(value: Any, name: str, arrays: _Arrays, depth: int = 0) -> Any:
    """Return the plain value from which :func:`_encode` made the JSON."""
    if depth > MAX_NESTING:
        raise ValueError(f"{name} is nested too deeply")
    if isinstance(value, list):
        return [
            _decode(item, f"{name}.{i}", arrays, depth + 1)
            for i, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "$array":
            return arrays.take(content, name)
        if tag == "$names":
            return _names(content)
        if tag == "$RandomState":
            return _random_state(*_decode(content, name, arrays, depth + 1))
        if tag == "$tuple":
            return tuple(_decode(content, name, arrays, depth + 1))
    return {k: _decode(v, _place(name, k), arrays, depth + 1) for k, v in value.items()}


def _place(name: str, key: str) -> str:
    """The name of a dict's item; a tensor's array has the name of the tensor."""
    return name if key == "tensor" else f"{name}.{key}"


def _names(content: Any) -> np.ndarray:
    """Return names of columns, which must differ from each other."""
    if not all(isinstance(item, str) for item in content):
        raise TypeError("names of columns must be strings")
    if len(set(content)) < len(content):
        raise ValueError("two columns have the same name")
    return np.array(content, dtype=object)


def _random_state(
    algorithm: Any, keys: Any, position: Any, has_gauss: Any, gauss: Any
) -> np.random.RandomState:
    """Return a random state after checking its values: numpy crashes on wrong ones."""
    if not (
        algorithm == "MT19937"
        and isinstance(keys, np.ndarray)
        and keys.dtype == np.uint32
        and keys.shape == (624,)
        # A state of zeros would give zeros for ever; one bit of the first key counts.
        and bool(keys[0] >> 31 or keys[1:].any())
        and type(position) is int
        and 0 <= position <= 624
        and type(has_gauss) is int
        and has_gauss in (0, 1)
        and type(gauss) is float
    ):
        raise ValueError("this is not a state of numpy's MT19937")
    random_state = np.random.RandomState()
    random_state.set_state((algorithm, keys, position, has_gauss, gauss))
    return random_state
