"""Our own arithmetic, whatever the process's settings are.

Imports torch alone. Under ``torch.autocast`` matrix products are computed in half
precision, which suits networks but not factors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from panda_sklearn.utils.undo import Undo

__all__ = ["in_full_precision", "own_arithmetic"]

# Devices for which autocast may be on.
KINDS = ("cpu", "cuda", "mps", "xpu")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_full_precision(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Decorate a function that computes in the precision of its inputs."""

    @functools.wraps(function)
    def computed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with Undo() as undo, undo:
            _stop_autocast(undo)
            return function(*args, **kwargs)

    return computed


def own_arithmetic(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result]:
    """Decorate a function that computes in full precision and without gradients."""

    @functools.wraps(function)
    def computed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with Undo() as undo, undo:
            _stop_autocast(undo)
            gradients = torch.is_grad_enabled()
            undo.note(lambda: torch.set_grad_enabled(gradients))
            torch.set_grad_enabled(False)
            return function(*args, **kwargs)

    return computed


def _stop_autocast(undo: Undo) -> None:
    for kind in KINDS:
        if torch.is_autocast_enabled(kind):
            undo.note(functools.partial(torch.set_autocast_enabled, kind, True))
            torch.set_autocast_enabled(kind, False)
