"""Edits that change images by a given amount.

Floor 3: see :mod:`panda_sklearn.editing`. Joins the change of activations to the search
for a factor, :mod:`panda_sklearn.editing._strengths`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.editing._changes import Change
from panda_sklearn.editing._strengths import TOLERANCE, find_factors
from panda_sklearn.editing._terms import Place
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    Take,
    extract,
    generate_changed,
)
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.regions import change_inside

__all__ = ["TargetSearch"]

# A difference of two images of the same latents that is more than rounding, as a share
# of the largest value.
NOISE = 1e-2


@dataclass(frozen=True)
class TargetSearch:
    """The search for what to multiply the strengths of a change with.

    Attributes
    ----------
    extractor : GeneratorFeatureExtractor
    change : Change
    target : float
        Root mean square change of the region.
    image_spatial : tuple of int
    region : Tensor of shape (1 or N, *image_spatial), or None
        Where the change is measured; ``None`` is where the edits are.
    value_range : tuple of float, or None
        To what images are clipped before it is measured.
    """

    extractor: GeneratorFeatureExtractor
    change: Change
    target: float
    image_spatial: tuple[int, ...]
    region: Tensor | None
    value_range: tuple[float, float] | None

    def run(self, latents: Tensor) -> tuple[Tensor, list[Place]]:
        """Factors (N,), and the places of each term; batch by batch."""
        n, size = len(latents), self.extractor.batch_size
        factors, reached = [], []
        places: list[list[Place]] = []
        with tqdm(
            total=n,
            desc="Strengths",
            disable=not self.extractor.verbose,
            mininterval=1,
        ) as bar:
            for start in range(0, n, size):
                where = slice(start, min(start + size, n))
                found, changes, its_places = self._solve(latents[where], where)
                factors.append(found)
                reached.append(changes)
                places.append(its_places)
                bar.update(where.stop - start)
        self._warn(torch.cat(reached))
        return torch.cat(factors), [_joined(each) for each in zip(*places, strict=True)]

    def images(
        self, latents: Tensor, factors: Tensor, places: Sequence[Place]
    ) -> Tensor:
        """Images with the strengths multiplied."""

        def change(where: slice, take: Take) -> Callable[[Tensor, Moment], Tensor]:
            alphas = [alpha.to(factors) for alpha in self.change.alphas(where)]
            return self.change.applied(
                latents[where],
                where,
                take,
                [alpha * factors[where] for alpha in alphas],
                [place.some(where) for place in places],
            )

        return generate_changed(
            self.extractor, latents, change, **self.change.moments()
        )

    def _solve(self, batch: Tensor, where: slice) -> tuple[Tensor, Tensor, list[Place]]:
        """Factors of a batch, the changes that they make, and the terms' places."""
        features = None
        if self.change.refine is not None:
            features = as_tensor(extract(self.extractor, batch, first=where.start))
        places = self.change.places(features, where)
        alphas = self.change.alphas(where)
        region = self._region(places, where)
        numbers = torch.arange(where.start, where.stop, device="cpu")
        plain = self._measured(
            generate_changed(self.extractor, batch, None, rows=numbers, verbose=0)
        )
        keeps_places = self._draws_noise(batch, numbers, plain)

        def change_of(factors: Tensor, rows: Tensor) -> Tensor:
            if keeps_places and len(rows) < len(batch):
                every = torch.zeros(len(batch), dtype=factors.dtype, device="cpu")
                every[rows] = factors
                return change_of(every, torch.arange(len(batch), device="cpu"))[rows]
            latents = batch[rows]
            some_alphas = [
                (alpha if alpha.ndim == 0 else alpha[rows]).to(factors) * factors
                for alpha in alphas
            ]

            def change(part: slice, take: Take) -> Callable[[Tensor, Moment], Tensor]:
                of = rows[part]
                return self.change.applied(
                    latents[part],
                    where.start + of,
                    take,
                    [alpha[part] for alpha in some_alphas],
                    [place.some(of) for place in places],
                )

            edited = generate_changed(
                self.extractor,
                latents,
                change,
                **self.change.moments(),
                rows=numbers[rows],
                verbose=0,
            )
            some_region = region if len(region) == 1 else region[rows]
            difference = self._measured(edited) - plain[rows]
            return change_inside(some_region, difference).cpu()

        factors, changes = find_factors(change_of, len(batch), self.target)
        return factors, changes, places

    def _draws_noise(self, batch: Tensor, numbers: Tensor, plain: Tensor) -> bool:
        """Whether an image depends on where in its batch it is, by noise.

        By that of the last sample of the batch, alone.
        """
        if len(batch) == 1:
            return False
        alone = generate_changed(
            self.extractor, batch[-1:], None, rows=numbers[-1:], verbose=0
        )
        scale = float(plain[-1].abs().max())
        difference = float((self._measured(alone)[0] - plain[-1]).abs().max())
        return difference > NOISE * scale

    def _measured(self, images: Tensor) -> Tensor:
        """Images as the change is measured between them."""
        if self.value_range is None:
            return promoted(images)
        return promoted(images).clamp(*self.value_range)

    def _region(self, places: Sequence[Place], where: slice) -> Tensor:
        """Where the change is measured, (1 or n, *image_spatial)."""
        if self.region is not None:
            return self.region if len(self.region) == 1 else self.region[where]
        shape, spatial = self.change.layout.map_shape, self.image_spatial
        outlines = [
            term.outline(where, place.mask, shape, spatial)
            for term, place in zip(self.change.terms, places, strict=True)
        ]
        total = outlines[0]
        for outline in outlines[1:]:
            total = torch.maximum(total, outline.to(total))
        return total

    def _warn(self, reached: Tensor) -> None:
        """Warn if images do not come near the target."""
        missed = (reached - self.target).abs() > TOLERANCE * self.target
        if bool(missed.any()):
            nearest = reached[missed]
            warnings.warn(
                f"{int(missed.sum())} of {len(reached)} images do not reach "
                f"target_change={self.target:g}, but from {float(nearest.min()):.3g} "
                f"to {float(nearest.max()):.3g}. Choose another target.",
                ConvergenceWarning,
                stacklevel=4,  # past run and edit
            )


def _joined(places: Sequence[Place]) -> Place:
    """Places in batches as one; those that are the same for all are one already."""
    first = places[0]
    mask, parts = first.mask, first.parts
    if mask.ndim > 1:
        mask = torch.cat([place.mask for place in places])
    if parts is not None and parts.ndim > 2:
        parts = torch.cat([cast(Tensor, place.parts) for place in places])
    return Place(mask, parts)
