"""Files that appear whole or not at all, whoever else writes them.

Imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["as_path", "check_target", "whole_file"]


def as_path(path: Any, name: str = "path") -> Path:
    """The path of an argument; TypeError that names it if it is none."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(
            f"{name} must be a str or os.PathLike, got {path!r} of type "
            f"{type(path).__name__}."
        )
    return Path(text)


def check_target(path: Any) -> Path:
    """The path of a file to write; an error that names what is in the way."""
    target = as_path(path)
    if target.is_dir():
        raise IsADirectoryError(
            f"{os.fspath(path)!r} is a folder. Add the name of a file to path."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(target.parent)!r} to save {target.name!r} in. "
            "Make it first."
        )
    return target


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends.

    The file is of this call alone, so that threads, processes and machines may write to
    one path at a time. Any OSError names ``path``.
    """
    temporary = path.with_name(f"{path.name[:50]}.{uuid.uuid4().hex}.part")
    try:
        # Not by tempfile, whose files only their owner may read.
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # there is none left after replace
            temporary.unlink()
