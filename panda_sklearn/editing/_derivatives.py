"""Derivatives of images with respect to a vector that is added to activations.

Notation as in :mod:`panda_sklearn.editing._directions`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from panda_sklearn.editing._terms import at_places
from panda_sklearn.generators._calls import Run
from panda_sklearn.utils.arrays import MapLayout, promoted
from panda_sklearn.utils.batches import Batches
from panda_sklearn.utils.hooks import Moment, replace
from panda_sklearn.utils.taps import Tap

__all__ = ["Numbered", "Responses"]

#: The number of a latent among all, and the latent (1, ...).
Numbered = tuple[int, Tensor]


class Responses:
    """Products with J of one latent at a time, of a borrowed network.

    Parameters
    ----------
    tap : Tap

    run : callable
        Latents and their numbers -> images.

    layout : MapLayout
        Layout of the activations.

    mask : Tensor of shape (S,)
        m.

    batch_size : int

    step : float, default=None
        Step of central differences along vectors of length 1; ``None`` uses exact
        derivatives.
    """

    def __init__(
        self,
        tap: Tap,
        run: Run,
        layout: MapLayout,
        mask: Tensor,
        batch_size: int,
        step: float | None = None,
    ) -> None:
        self.tap, self.run, self.mask = tap, run, mask
        self.batch_size, self.step = batch_size, step
        self.n_channels = layout.n_channels
        self.n_slices = tap.n_slices
        self.layout = layout.sliced(tap.n_slices)  # of one call

    def forward(self, latent: Numbered, vectors: Tensor) -> Tensor:
        """J v of a latent for vectors v (n, C): (n, colours, *image_spatial)."""
        make = self._exact if self.step is None else self._differences
        return self._in_batches(lambda rows: make(latent, vectors[rows]), len(vectors))

    def back(self, latent: Numbered, weights: Tensor) -> Tensor:
        """J'w of a latent for images w (n, colours, *image_spatial): (n, C)."""

        def make(rows: slice) -> Tensor:
            some = weights[rows]
            with torch.enable_grad():
                v = some.new_zeros(len(some), self.n_channels).requires_grad_()
                (found,) = torch.autograd.grad(self._images(latent, v), v, some)
            return found

        return self._in_batches(make, len(weights))

    def _in_batches(self, make: Callable[[slice], Tensor], n: int) -> Tensor:
        batches = Batches(n, self.batch_size)
        found = torch.cat([made for _, made in batches.map(make)])
        if batches.shrank:
            batches.warn()
            self.batch_size = batches.size
        return found

    def _images(self, latent: Numbered, vectors: Tensor) -> Tensor:
        """Images of one latent, each with a vector added."""

        def add(features: Tensor, moment: Moment) -> Tensor:
            maps = promoted(self.layout.to_maps(features))
            slices = vectors.to(maps).unflatten(1, (self.n_slices, -1))
            which = calls.index(moment.call) if self.n_slices > 1 else 0
            added = at_places(slices[:, which], self.mask.to(maps))
            return self.layout.from_maps(maps + added)

        calls, n = self.tap.calls or (0,), len(vectors)
        number, one = latent
        batch = one.expand(n, *one.shape[1:])
        rows = torch.full((n,), number, device="cpu")
        made = replace(self.tap, add, lambda: self.run(batch, rows), n_samples=n)
        return promoted(made)

    def _exact(self, latent: Numbered, vectors: Tensor) -> Tensor:
        _load_forward_mode()
        with forward_mode.dual_level():
            moving = forward_mode.make_dual(torch.zeros_like(vectors), vectors)
            found = forward_mode.unpack_dual(self._images(latent, moving)).tangent
        if found is None:
            raise RuntimeError("the images have no derivative")
        return found

    def _differences(self, latent: Numbered, vectors: Tensor) -> Tensor:
        assert self.step is not None
        tiny = torch.finfo(vectors.dtype).tiny
        steps = self.step / vectors.norm(dim=1, keepdim=True).clamp(min=tiny)
        ahead, back = (self._images(latent, s * steps * vectors) for s in (1, -1))
        return (ahead - back) / (2 * steps.reshape(-1, *[1] * (ahead.ndim - 1)))


@functools.cache
def _load_forward_mode() -> None:
    """Use forward mode once: torch then compiles something, and warns about it."""
    with warnings.catch_warnings(), forward_mode.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        one = torch.ones(1, device="cpu")
        forward_mode.make_dual(one, one)
