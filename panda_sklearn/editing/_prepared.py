"""The same images edited many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from panda_sklearn.editing._edit import Edit
from panda_sklearn.utils.arrays import ArrayLike

__all__ = ["PreparedImages"]


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images prepared for many edits, returned by ``LocalEditor.prepare``.

    Parameters
    ----------
    latents : array of shape (n_samples, ...)
        Latents of the images.

    images : array of shape (n_samples, ...)
        The unedited images.

    generate : callable
        Takes edits, and whether to refine, and returns images: what ``edit`` calls.
    """

    latents: ArrayLike
    images: ArrayLike
    generate: Callable[[Any, Any], ArrayLike] = field(repr=False)

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
            The images that ``LocalEditor.edit`` returns for these latents.

        Raises
        ------
        TypeError, ValueError
            As for ``LocalEditor.edit``.
        """
        return self.generate(edits, refine)
