"""From a layer's tensor to maps (n_samples, n_channels, *spatial) and back.

Imports torch alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CHANNELS_FIRST", "FeatureLayout"]


@dataclass(frozen=True)
class FeatureLayout:
    """How a layer lays out its activations.

    Attributes
    ----------
    channel_axis : {1, -1}
        Where the channels are.
    n_prefix_tokens : int
        How many of the first tokens, in activations of shape (n_samples, n_tokens,
        n_channels), have no place in the image.
    token_grid : tuple of int or None
        Spatial shape in which the other tokens are laid out, row by row.
    """

    channel_axis: int = 1
    n_prefix_tokens: int = 0
    token_grid: tuple[int, ...] | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether an option for tokens is set."""
        return self.n_prefix_tokens > 0 or self.token_grid is not None

    def check(self) -> None:
        """Raise ValueError if an option for tokens is set with channels first."""
        if self.has_tokens and self.channel_axis != -1:
            raise ValueError(
                "n_prefix_tokens and token_grid are for tokens, of shape (n_samples, "
                "n_tokens, n_channels): set channel_axis=-1 with them."
            )

    def take(self, tensor: Tensor) -> Tensor:
        """The maps in a layer's tensor, as a view of it if possible.

        Raises
        ------
        ValueError
            If the tensor has another layout.
        """
        if self.channel_axis == 1:
            return tensor
        shape, n_prefix = tuple(tensor.shape), self.n_prefix_tokens
        if tensor.ndim < 3 or (self.has_tokens and tensor.ndim != 3):
            expected = "n_tokens" if self.has_tokens else "*spatial"
            raise ValueError(
                f"The layer's activations are of shape {shape}, but channel_axis=-1"
                f"{' with tokens' if self.has_tokens else ''} expects (n_samples, "
                f"{expected}, n_channels)."
            )
        if self.has_tokens:
            tensor = tensor[:, n_prefix:]
            n_tokens = tensor.shape[1]
            if self.token_grid is not None:
                if math.prod(self.token_grid) != n_tokens:
                    raise ValueError(
                        f"token_grid={self.token_grid} has room for "
                        f"{math.prod(self.token_grid)} tokens, but there are {n_tokens}"
                        f" after the first n_prefix_tokens={n_prefix}, of {shape[1]}."
                    )
                tensor = tensor.unflatten(1, self.token_grid)
            elif n_tokens < 1:
                raise ValueError(
                    f"n_prefix_tokens={n_prefix} leaves none of {shape[1]} tokens."
                )
        return tensor.movedim(-1, 1)

    def put(self, tensor: Tensor, maps: Tensor) -> Tensor:
        """A tensor like ``tensor``, with these maps."""
        if self.channel_axis == 1:
            return maps
        maps = maps.movedim(1, -1)
        if not self.has_tokens:
            return maps
        tokens = maps.flatten(1, -2)
        return torch.cat([tensor[:, : self.n_prefix_tokens], tokens], dim=1)


#: (n_samples, n_channels, *spatial)
CHANNELS_FIRST = FeatureLayout()
