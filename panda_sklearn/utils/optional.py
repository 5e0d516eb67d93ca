"""Packages that only some users need.

Imports nothing but Python.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["needed"]


def needed(module: str, package: str) -> Any:
    """Return an optional module.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}. Install it with: pip install {package}"
        ) from error
