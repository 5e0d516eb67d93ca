"""Edits that change images by a given amount.

Joins changes of activations and the search for factors of
:mod:`panda_sklearn.editing._strengths`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
from panda_sklearn.utils.batches import users_level
from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.regions import change_inside
from panda_sklearn.utils.validation import (
    check_mask,
    check_single,
    check_value_range,
)

__all__ = ["TargetSearch"]

# Two images of the same latents that differ by more than this fraction of the largest
# value differ by more than rounding.
NOISE = 1e-2


@dataclass(frozen=True)
class TargetSearch:
    """The search for the factors of a change's strengths.

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
        The range that images are clipped to before the change is measured.
    """

    extractor: GeneratorFeatureExtractor
    change: Change
    target: float
    image_spatial: tuple[int, ...]
    region: Tensor | None
    value_range: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        extractor: GeneratorFeatureExtractor,
        change: Change,
        target: Any,
        image_spatial: tuple[int, ...],
        region: Any,
        value_range: Any,
    ) -> TargetSearch:
        """Check arguments of ``LocalEditor.edit``, and return the search.

        Raises
        ------
        TypeError, ValueError
            If an argument is something else, or the change cannot be scaled.
        """
        if value_range is not None:
            value_range = check_value_range(value_range)
        target = check_single("target_change", target, above=0)
        if change.refine is not None and change.sizes.n_rows > 1:
            raise ValueError(
                "target_change with refine=True needs one part for each sample, but "
                "the extractor takes several calls as samples."
            )
        if not all(bool(term.strength.all()) for term in change.terms):
            raise ValueError(
                "target_change multiplies the strengths: none of them may be 0."
            )
        if region is not None:
            n_samples = change.sizes.n_samples
            region = check_mask(region, "region", f"([{n_samples},] *{image_spatial})")
            if tuple(region.shape) not in (image_spatial, (n_samples, *image_spatial)):
                raise ValueError(
                    f"region must be of the images' shape {image_spatial}, or with a "
                    f"first axis of {n_samples} samples, got {tuple(region.shape)}."
                )
            region = region.reshape(-1, *image_spatial)
        return cls(extractor, change, target, image_spatial, region, value_range)

    def run(self, latents: Tensor) -> tuple[Tensor, list[Place]]:
        """Find factors (N,), and the places of each term, batch by batch."""
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
        """Images with the strengths multiplied by factors (N,)."""

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
        """Factors for a batch, the changes that they make, and the terms' places."""
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
        whole_batches = self._draws_noise(batch, numbers, plain)

        def change_of(factors: Tensor, rows: Tensor) -> Tensor:
            if whole_batches and len(rows) < len(batch):
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
        """Whether noise makes an image depend on its place in the batch.

        The last sample of the batch is compared with its image in a batch of one.
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
        """Images as they are compared."""
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
        """Warn if images do not reach the target."""
        missed = (reached - self.target).abs() > TOLERANCE * self.target
        if bool(missed.any()):
            lowest, highest = (float(edge) for edge in reached[missed].aminmax())
            warnings.warn(
                f"{int(missed.sum())} of {len(reached)} images do not reach "
                f"target_change={self.target:g}: they change by {lowest:.3g} to "
                f"{highest:.3g}. Choose another target.",
                ConvergenceWarning,
                stacklevel=users_level(),
            )


def _joined(places: Sequence[Place]) -> Place:
    """Join the places of batches; those shared by all samples need no joining."""
    first = places[0]
    mask, parts = first.mask, first.parts
    if mask.ndim > 1:
        mask = torch.cat([place.mask for place in places])
    if parts is not None and parts.ndim > 2:
        parts = torch.cat([cast(Tensor, place.parts) for place in places])
    return Place(mask, parts)
