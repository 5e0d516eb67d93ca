"""Edits that change images by a given amount.

Floor 3: see :mod:`panda_sklearn.editing`. Joins the change of activations to the search
for a factor, :mod:`panda_sklearn.editing._strengths`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.editing._changes import Change
from panda_sklearn.editing._strengths import TOLERANCE, find_factors
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    extract,
    generate_changed,
)
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.regions import change_inside
from panda_sklearn.utils.resizing import resize

__all__ = ["TargetSearch"]


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
    """

    extractor: GeneratorFeatureExtractor
    change: Change
    target: float
    image_spatial: tuple[int, ...]
    region: Tensor | None

    def run(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Factors (N,), and the masks (S,) or (N, S) of each term; batch by batch."""
        n, size = len(latents), self.extractor.batch_size
        factors, reached = [], []
        masks: list[list[Tensor]] = []
        with tqdm(
            total=n,
            desc="Strengths",
            disable=not self.extractor.verbose,
            mininterval=1,
        ) as bar:
            for start in range(0, n, size):
                where = slice(start, min(start + size, n))
                found, changes, its_masks = self._solve(latents[where], where)
                factors.append(found)
                reached.append(changes)
                masks.append(its_masks)
                bar.update(where.stop - start)
        self._warn(torch.cat(reached))
        return torch.cat(factors), [_joined(each) for each in zip(*masks, strict=True)]

    def images(
        self, latents: Tensor, factors: Tensor, masks: Sequence[Tensor]
    ) -> Tensor:
        """Images with the strengths multiplied."""

        def add(features: Tensor, where: slice) -> Tensor:
            alphas = [
                alpha.to(factors) * factors[where]
                for alpha in self.change.alphas(where)
            ]
            return self.change.apply(features, _some(masks, where), alphas)

        return generate_changed(self.extractor, latents, add)

    def _solve(
        self, batch: Tensor, where: slice
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Factors of a batch, the changes that they make, and the terms' masks."""
        features = None
        if self.change.refine is not None:
            features = as_tensor(extract(self.extractor, batch))
        masks = self.change.masks(features, where)
        alphas = self.change.alphas(where)
        region = self._region(masks, where)
        plain = promoted(generate_changed(self.extractor, batch, None, verbose=0))

        def change_of(factors: Tensor, rows: Tensor) -> Tensor:
            some_masks = _some(masks, rows)
            some_alphas = [
                (alpha if alpha.ndim == 0 else alpha[rows]).to(factors) * factors
                for alpha in alphas
            ]

            def add(features: Tensor, part: slice) -> Tensor:
                its_alphas = [alpha[part] for alpha in some_alphas]
                return self.change.apply(features, _some(some_masks, part), its_alphas)

            edited = generate_changed(self.extractor, batch[rows], add, verbose=0)
            some_region = region if len(region) == 1 else region[rows]
            return change_inside(some_region, promoted(edited) - plain[rows]).cpu()

        factors, changes = find_factors(change_of, len(batch), self.target)
        return factors, changes, masks

    def _region(self, masks: Sequence[Tensor], where: slice) -> Tensor:
        """Where the change is measured, (1 or n, *image_spatial)."""
        if self.region is not None:
            return self.region if len(self.region) == 1 else self.region[where]
        layer, spatial = self.change.layout.spatial, self.image_spatial
        outlines = []
        for term, mask in zip(self.change.terms, masks, strict=True):
            if term.drawn is not None:
                each = term.drawn.ndim > len(spatial)
                outlines.append(term.drawn[where] if each else term.drawn[None])
            else:
                maps = mask.reshape(-1, 1, *layer)
                outlines.append(resize(maps, spatial)[:, 0])
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


def _some(masks: Sequence[Tensor], rows: slice | Tensor) -> list[Tensor]:
    """Masks of some samples: (S,) as they are, of (N, S) those rows."""
    return [mask if mask.ndim == 1 else mask[rows] for mask in masks]


def _joined(masks: Sequence[Tensor]) -> Tensor:
    """Masks of batches as one: (S,) if they are the same for all."""
    return masks[0] if masks[0].ndim == 1 else torch.cat(list(masks))
