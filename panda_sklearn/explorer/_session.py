"""What one visitor has chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from panda_sklearn.editing import Edit, LocalEditor

__all__ = ["KINDS", "Kept", "Session"]

# Kinds of change at a part.
KINDS = ("variation", "appearance", "direction", "transfer")


@dataclass(frozen=True, eq=False)
class Kept:
    """An edit on the stack.

    Attributes
    ----------
    edit : Edit
        The edit, with a name.
    on : bool
        Whether it is applied.
    """

    edit: Edit
    on: bool = True


@dataclass(frozen=True, eq=False)
class Session:
    """What one visitor has chosen; nothing in it is ever changed.

    Attributes
    ----------
    editor : LocalEditor
        An editor at the visitor's truncation, with the visitor's factors.
    latents : Tensor of shape (n, ...)
        Latents of the images to choose from.
    source : str
        The Python lines that make ``editor`` and ``latents``.
    factors : str
        The lines that give the editor the factors of a file; "" for its own.
    truncation : float or None
        Truncation of the images.
    picked : tuple of int
        Indices of the images that are edited, at least one.
    part : int, tuple of int or Tensor
        Where the next edit is: a part, several, or a painted region (height, width).
    kind : {"variation", "appearance", "direction", "transfer"}
        What the next edit changes.
    index : int
        Which of that kind; with "transfer", which of the images.
    directions : Tensor of shape (n, n_channels) or None
        Directions that were found for ``part``.
    refine : bool
        Whether parts are refined to each image.
    stack : tuple of Kept
        The edits that are kept, in order.
    past : tuple of tuple of Kept
        Earlier stacks, the latest at the end.
    """

    editor: LocalEditor
    latents: Tensor
    source: str
    factors: str = ""
    truncation: float | None = None
    picked: tuple[int, ...] = (0,)
    part: Any = 0
    kind: str = "variation"
    index: int = 0
    directions: Tensor | None = None
    refine: bool = False
    stack: tuple[Kept, ...] = ()
    past: tuple[tuple[Kept, ...], ...] = ()

    def but(self, **changes: Any) -> Session:
        """The session with some attributes changed."""
        return replace(self, **changes)

    def with_images(
        self,
        editor: LocalEditor,
        latents: Tensor,
        source: str,
        truncation: float | None,
    ) -> Session:
        """The session with other images, the first of them picked."""
        return self.but(
            editor=editor,
            latents=latents,
            source=source,
            truncation=truncation,
            picked=(0,),
            index=0 if self.kind == "transfer" else self.index,
        )

    def with_stack(self, stack: tuple[Kept, ...]) -> Session:
        """The session with another stack; the change can be undone."""
        return self.but(stack=stack, past=(*self.past, self.stack)[-100:])

    @property
    def chosen(self) -> Tensor:
        """Latents of the images that are edited."""
        return self.latents[list(self.picked)]

    @property
    def parts(self) -> tuple[int, ...]:
        """The learnt parts that the next edit is at; empty for a painted region."""
        if isinstance(self.part, Tensor):
            return ()
        return self.part if isinstance(self.part, tuple) else (self.part,)
