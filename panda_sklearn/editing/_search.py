"""The search for latents whose images match given ones.

The search uses coordinates u in which the generator's latents have mean 0 and
covariance 1, for each row of their last axis. Steps are then alike in all directions,
and ||u||^2 says how unusual a latent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from panda_sklearn.generators._calls import Run
from panda_sklearn.utils.arithmetic import in_full_precision
from panda_sklearn.utils.arrays import promoted
from panda_sklearn.utils.batches import Batches
from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.similarity import LEAST

__all__ = ["Match", "Search", "Space", "clipped", "variance_of"]

# Standard deviations of latents are raised to this fraction of the largest.
LEAST_SPREAD = 1e-2
# Images are compared at their size, at half of it and so on, down to this many pixels.
SMALLEST = 16
# Weight of 1 - SSIM beside the squared error over the variance.
SIMILARITY = 0.5
# Adam's averaging of slopes and of their squares, its guard against division by 0, and
# the steps over which the step size grows.
BETAS, EPS, WARM_UP = (0.9, 0.99), 1e-12, 10


@dataclass(frozen=True)
class Space:
    """Coordinates in which latents have mean 0 and covariance 1, row by row.

    Attributes
    ----------
    mean : Tensor of shape (n_rows, d)
    spread, back : Tensor of shape (n_rows, d, d)
        Maps from coordinates to latents less the mean, and back.
    shape : tuple of int
        Shape of one sample's latents.
    """

    mean: Tensor
    spread: Tensor
    back: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, drawn: Tensor) -> Space:
        """The coordinates for the distribution of samples (N, *latent_shape)."""
        rows = drawn.reshape(len(drawn), -1, drawn.shape[-1]).transpose(0, 1).cpu()
        wide = rows.double()  # (n_rows, N, d)
        mean = wide.mean(dim=1, keepdim=True)
        about = wide - mean
        covariance = about.mT @ about / len(drawn)
        # Few samples do not determine covariances: shrink these towards variances.
        d = wide.shape[-1]
        single = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        covariance = torch.lerp(covariance, single, d / (len(drawn) + d))
        values, vectors = torch.linalg.eigh(covariance)
        stds = values.clamp(min=0).sqrt()
        least = LEAST_SPREAD * stds.amax(dim=1, keepdim=True)
        stds = torch.where(stds > 0, torch.maximum(stds, least), least)
        stds = torch.where(stds > 0, stds, 1.0)  # of latents that are all the same
        spread = stds[:, :, None] * vectors.mT
        back = vectors / stds[:, None]
        mean, spread, back = (
            x.to(drawn.device, torch.float32) for x in (mean[:, 0], spread, back)
        )
        return cls(mean, spread, back, tuple(drawn.shape[1:]))

    @in_full_precision
    def latents(self, u: Tensor) -> Tensor:
        """Latents (n, *latent_shape) at coordinates (n, n_rows, d)."""
        moved = torch.einsum("nrd,rdk->nrk", u, self.spread)
        return (self.mean + moved).reshape(len(u), *self.shape)

    @in_full_precision
    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates (n, n_rows, d) of latents (n, *latent_shape)."""
        rows = latents.reshape(len(latents), *self.mean.shape).to(self.mean)
        return torch.einsum("nrk,rkd->nrd", rows - self.mean, self.back)


class Match:
    """How far images are from their targets.

    Parameters
    ----------
    targets : Tensor of shape (n_targets, *image_shape)

    loss : callable or None

    value_range : tuple of float or None
    """

    def __init__(
        self,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        value_range: tuple[float, float] | None,
    ) -> None:
        self.value_range = value_range
        self.targets = clipped(targets, value_range)
        self.variance = variance_of(self.targets)
        self.loss = loss
        low, high = value_range or torch.aminmax(targets)
        self.width = float(high - low) or 1.0
        spatial = targets.shape[2:]
        self.similar = len(spatial) in (2, 3) and min(spatial) >= LEAST

    def losses(self, images: Tensor, of: Tensor) -> Tensor:
        """Losses of images (n, ...) for the targets with numbers ``of`` (n,)."""
        images, targets = clipped(images, self.value_range), self.targets[of]
        if self.loss is None:
            return self._default(images, targets, self.variance[of])
        found = self.loss(images, targets)
        if not isinstance(found, Tensor) or tuple(found.shape) != (len(images),):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else None
            raise ValueError(
                f"loss must return a tensor of shape ({len(images)},), one loss for "
                f"each image, got {what or type(found).__name__}."
            )
        return found

    @in_full_precision
    def _default(self, images: Tensor, targets: Tensor, variance: Tensor) -> Tensor:
        spatial = images.shape[2:]
        total = (images - targets).square().flatten(1).mean(dim=1) / variance
        if self.similar:
            library = needed("torchmetrics.functional.image", "torchmetrics")
            total = total + SIMILARITY * (
                1
                - library.structural_similarity_index_measure(
                    images, targets, data_range=self.width, reduction="none"
                )
            )
        if not 1 <= len(spatial) <= 3 or min(spatial) < 2 * SMALLEST:
            return total
        halve = getattr(functional, f"avg_pool{len(spatial)}d")
        n = 1 + _n_halvings(min(spatial))
        smaller = self._default(halve(images, 2), halve(targets, 2), variance)
        return (total + (n - 1) * smaller) / n


def _n_halvings(size: int) -> int:
    """How often images with this many pixels on their shortest side are halved."""
    return 0 if size < 2 * SMALLEST else 1 + _n_halvings(size // 2)


@dataclass
class Search:
    """The search for coordinates.

    Attributes
    ----------
    run : callable
        Latents -> images, of a borrowed network.
    space : Space
    match : Match
    prior : float
    batch_size : int
    n_given : int
        Number of given images. A ``forward`` that takes the numbers of samples gets
        the last of these for the targets beyond.
    """

    run: Run
    space: Space
    match: Match
    prior: float
    batch_size: int
    n_given: int

    def best(
        self, u: Tensor, n_steps: int, rate: float, done: Callable[[int], Any]
    ) -> tuple[Tensor, Tensor]:
        """Find the best coordinates (n_targets, n_rows, d) from k starts for each.

        Uses Adam from starts (n_targets, k, n_rows, d). At even distances in the first
        half of the steps, the half of the starts with the higher losses is dropped.
        Also returns whether the losses are finite, (n_targets,).
        """
        n_targets, k = u.shape[:2]
        of = torch.arange(n_targets, device=u.device).repeat_interleave(k)
        u = u.flatten(0, 1)
        mean, square = torch.zeros_like(u), torch.zeros_like(u)
        ends = _ends(k, n_steps)
        for step in range(1, n_steps + 1):
            losses, slope = self._slopes(u, of)
            while step in ends and len(losses) > n_targets:
                rows = _better_half(losses.reshape(n_targets, -1))
                u, mean, square, of = u[rows], mean[rows], square[rows], of[rows]
                losses, slope = losses[rows], slope[rows]
                ends = ends[1:]
            mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
            square = BETAS[1] * square + (1 - BETAS[1]) * slope.square()
            m, s = mean / (1 - BETAS[0] ** step), square / (1 - BETAS[1] ** step)
            way = min(1.0, 2 * (1 - (step - 1) / n_steps), step / WARM_UP)
            u = u - rate * way * m / (s.sqrt() + EPS)
            done(1)
        return u, losses.isfinite()

    def _slopes(self, u: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) of coordinates (n, n_rows, d), and their derivatives."""
        losses = u.new_full((len(u),), torch.inf)
        slopes = torch.zeros_like(u)

        def make(where: slice) -> Tensor:
            with torch.enable_grad():
                some = u[where].detach().requires_grad_()
                rows = of[where].clamp(max=self.n_given - 1)
                images = promoted(self.run(self.space.latents(some), rows))
                each = self.match.losses(images, of[where])
                # Times the size: half precision cannot hold a pixel's derivative.
                size = images[0].numel()
                slope = None
                if each.requires_grad:
                    (slope,) = torch.autograd.grad(
                        size * each.sum(), some, allow_unused=True
                    )
            if slope is None:
                raise ValueError(
                    "The loss does not depend on the latents in a way that can be "
                    "differentiated, so the search cannot work. Remove any "
                    "torch.no_grad() or detach() from the network, forward and loss."
                )
            unlikely = some.detach()
            prior = self.prior * unlikely.square().flatten(1).mean(dim=1)
            losses[where] = each.detach() + prior
            return slope / size + 2 * self.prior / unlikely[0].numel() * unlikely

        batches = Batches(len(u), self.batch_size)
        for where, slope in batches.map(make):
            slopes[where] = slope
        if batches.shrank:
            batches.warn()
            self.batch_size = batches.size
        fine = losses.isfinite() & slopes.flatten(1).isfinite().all(dim=1)
        losses[~fine], slopes[~fine] = torch.inf, 0
        return losses, slopes


def _ends(n_starts: int, n_steps: int) -> list[int]:
    """The steps at which half of the starts are dropped; several may coincide."""
    n_halvings = math.ceil(math.log2(n_starts))
    each = n_steps / 2 / max(1, n_halvings)
    return [max(1, round(each * n)) for n in range(1, n_halvings + 1)]


def _better_half(losses: Tensor) -> Tensor:
    """The rows of the starts with the lower losses (n_targets, k)."""
    n_targets, k = losses.shape
    best = losses.argsort(dim=1)[:, : (k + 1) // 2]
    return (best + k * torch.arange(n_targets, device=best.device)[:, None]).flatten()


def clipped(images: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Images clipped, with the derivatives of unclipped ones."""
    if value_range is None:
        return images
    return images + (images.clamp(*value_range) - images).detach()


def variance_of(images: Tensor) -> Tensor:
    """Variance of each image over its pixels, about the colours' means, (n,)."""
    pixels = images.flatten(2) if images.ndim > 2 else images[:, None]
    variance = pixels.var(dim=2, unbiased=False).mean(dim=1)
    # An image of one colour has none: it gets what is left by rounding.
    return variance.clamp(min=float(images.abs().max()) ** 2 * 1e-6 + 1e-30)
