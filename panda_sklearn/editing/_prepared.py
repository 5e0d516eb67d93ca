"""The same images edited many times.

Floor 3: see :mod:`panda_sklearn.editing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from panda_sklearn.editing._edit import Edit
from panda_sklearn.utils.arrays import ArrayLike

__all__ = ["PreparedImages"]


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images that are edited many times, as ``LocalEditor.prepare`` makes them.

    Attributes
    ----------
    latents : array of shape (n_samples, ...)
        Their latents.

    images : array of shape (n_samples, ...)
        The images without edits.
    """

    latents: ArrayLike
    images: ArrayLike
    _edit: Callable[..., Any] = field(repr=False)

    def edit(self, edits: Edit | Sequence[Edit], *, refine: bool = False) -> ArrayLike:
        """Generate edited images.

        Parameters
        ----------
        edits : Edit or sequence of Edit
            What to change; several edits add up.

        refine : bool, default=False
            Whether to refine the parts to each sample first.

        Returns
        -------
        images : array of shape (n_samples, ...)
            What ``edit`` of the editor gives of these latents.

        Raises
        ------
        TypeError, ValueError
            As ``LocalEditor.edit``.
        """
        return self._edit(edits, refine)
