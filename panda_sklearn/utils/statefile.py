"""One safetensors file of plain values: arrays by name, everything else as JSON.

Reading a file runs no code of it, and trusts nothing that it says. Its header is read
first and is of bounded size; an array bears the name of its place among the values, so
that each is read once, and those of no known place never.

Floor 2: numpy and safetensors, and torch for its version.
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
from panda_sklearn.utils.files import as_path, check_target, write_whole

__all__ = ["read_parts", "reading", "write_parts"]

#: Bytes of a header, at most: enough for the names of 100,000 columns, and as Python
#: objects, which take some twenty times as much, still little.
MAX_HEADER = 2**21

#: Containers within containers, at most; a fitted decomposition has six.
MAX_NESTING = 16

#: Integers are smaller, so that torch takes them and floats hold them exactly.
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
        If a value has no place in such a file, or ``path`` is none.
    ValueError
        If the values would not be read again: too many, too deep or too large.
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
    write_whole(target, [content])


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
        What the file must say that it holds.

    version : int
        Of its contents, at most.

    known : dict of collections of str
        The names of the dicts to read, and of what may be in each.

    Returns
    -------
    parts : dict of dicts
        Of plain values.

    version : int
        Of the file.

    unread : set of str
        The arrays in the file that none of them refers to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no whole file of that kind and of a known version.
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
    """Turn what a stranger's values make our code raise into ValueError."""
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
    """Raise unless there is a file whose header is small enough to be read."""
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
    if size < found.st_size:  # else it is not whole, as safetensors will say
        _check_size(size)


def _check_size(header: int) -> None:
    if header > MAX_HEADER:
        raise ValueError(
            f"Parameters and names would take {header} bytes of the file, of which at "
            f"most {MAX_HEADER} are read. Give lists of numbers as arrays, or keep the "
            "estimator with joblib.dump instead."
        )


def _check_kind(path: Path, metadata: dict[str, str], kind: str, version: int) -> int:
    """The version of a file; ValueError unless it and the kind are known."""
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
    """Raise ValueError if there is something that this version does not know."""
    unknown = {name for part in known for name in set(states[part]) - set(known[part])}
    if unknown:
        raise ValueError(
            f"{str(path)!r} holds {reprlib.repr(sorted(unknown))}, which panda_sklearn "
            f"{__version__} does not know. Use the version that saved it."
        )


class _Arrays:
    """The arrays of an open file, of which each can be taken once.

    Attributes
    ----------
    unread : set of str
        Names of those not taken yet.
    """

    def __init__(self, file: Any) -> None:
        self.unread = set(file.keys())
        self._file = file

    def take(self, name: Any, place: str) -> np.ndarray:
        """The array of a place, which must bear its name."""
        if name != place or name not in self.unread:
            raise ValueError(f"{place} refers to the array {reprlib.repr(name)}")
        dtype = self._file.get_slice(name).get_dtype()
        if dtype not in DTYPES.values():
            raise ValueError(f"{place} is an array of type {dtype}")
        self.unread.remove(name)
        return self._file.get_tensor(name)


def _parse(text: str) -> dict[str, Any]:
    """A JSON object with numbers that torch can take."""
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
    """A plain value as JSON, with numeric arrays put aside under their names."""
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
        f"{name} is of type {type(value).__name__}, which has no place in a file "
        "without code. Keep the estimator with joblib.dump instead."
    )


def _decode(value: Any, name: str, arrays: _Arrays, depth: int = 0) -> Any:
    """The plain value of which :func:`_encode` made the JSON."""
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
    """The name of what a dict of that name holds; a tensor's array bears its own."""
    return name if key == "tensor" else f"{name}.{key}"


def _names(content: Any) -> np.ndarray:
    """Names of columns, each of them another."""
    if not all(isinstance(item, str) for item in content):
        raise TypeError("names of columns must be strings")
    if len(set(content)) < len(content):
        raise ValueError("two columns have the same name")
    return np.array(content, dtype=object)


def _random_state(
    algorithm: Any, keys: Any, position: Any, has_gauss: Any, gauss: Any
) -> np.random.RandomState:
    """A random state, of checked values: numpy crashes on others."""
    if not (
        algorithm == "MT19937"
        and isinstance(keys, np.ndarray)
        and keys.dtype == np.uint32
        and keys.shape == (624,)
        # A state of zeros has only zeros to follow; of the first key one bit counts.
        and bool(keys[0] >> 31 or keys[1:].any())
        and type(position) is int
        and 0 <= position <= 624
        and type(has_gauss) is int
        and has_gauss in (0, 1)
        and type(gauss) is float
    ):
        raise ValueError("this is no state of numpy's MT19937")
    random_state = np.random.RandomState()
    random_state.set_state((algorithm, keys, position, has_gauss, gauss))
    return random_state
