"""Edits that are tried, and what they do to images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panda_sklearn._variations import part_distances
from panda_sklearn.decomposition import (
    PartsAppearanceDecomposition,
    factors_of,
    layout_of,
)
from panda_sklearn.editing._changes import Change, generate_edited
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.editing._terms import VectorTerm
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    extract,
    generate_changed,
)
from panda_sklearn.utils.arithmetic import in_full_precision
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.regions import change_inside, masked_norms, ratios
from panda_sklearn.utils.resizing import resize
from panda_sklearn.utils.similarity import outside_psnr, outside_ssim

__all__ = ["Trial", "Trials", "measure"]


class Trial(NamedTuple):
    """One edit to try: the row of its vector, the part and the strength."""

    row: int
    part: int
    strength: float


@dataclass(frozen=True)
class Trials:
    """Images edited with one vector at one part each.

    Attributes
    ----------
    extractor : GeneratorFeatureExtractor
    decomposition : PartsAppearanceDecomposition
    vectors : Tensor of shape (n_vectors, C)
        Appearances or variations, times alpha of a strength of 1.
    masks : Tensor of shape (R_S, S)
        Parts scaled to the range 0 to 1; zeros for those that are not tried.
    image_spatial : tuple of int
    value_range : tuple of float, or None
        The range that images are clipped to before they are compared. With it, their
        similarity outside the part is measured too.
    """

    extractor: GeneratorFeatureExtractor
    decomposition: PartsAppearanceDecomposition
    vectors: Tensor
    masks: Tensor
    image_spatial: tuple[int, ...]
    value_range: tuple[float, float] | None

    def plain(self, latents: Tensor, numbers: Tensor) -> Tensor:
        """Unedited images of latents with numbers (n,) among all."""
        images = generate_changed(
            self.extractor, latents, None, rows=numbers, verbose=0
        )
        return self._seen(images)

    def edited(
        self, latents: Tensor, trials: Sequence[Trial], numbers: Tensor
    ) -> Tensor:
        """Images of latents (n, ...), with one trial each."""
        rows, parts, strengths = (
            torch.tensor(column, device="cpu") for column in zip(*trials, strict=True)
        )
        term = VectorTerm(
            strength=strengths,
            scale=1.0,
            mask=self.masks[parts],
            parts=(),
            learnt=self.masks[:0],
            drawn=None,
            vector=self.vectors[rows],
        )
        sizes = Sizes.of(self.extractor, len(latents))
        change = Change([term], layout_of(self.decomposition), sizes)
        images = generate_edited(
            self.extractor, latents, change, rows=numbers, verbose=0
        )
        return self._seen(images)

    def outlines(self, parts: Tensor) -> Tensor:
        """Parts (n,) at the images' size, from 0 to 1."""
        spatial = layout_of(self.decomposition).spatial
        maps = self.masks[parts].reshape(-1, 1, *spatial)
        return resize(maps, self.image_spatial)[:, 0]

    def _seen(self, images: Tensor) -> Tensor:
        """Images as they are compared."""
        images = promoted(images)
        return images if self.value_range is None else images.clamp(*self.value_range)

    def distances(self, latents: Tensor, trials: Sequence[Trial]) -> np.ndarray:
        """Mean distance of the edited coefficients at the part, (n_trials,).

        Adding v m' to activations adds A v m'p_k to the coefficients.
        """
        panda, size = self.decomposition, self.extractor.batch_size
        if not hasattr(panda, "coefficient_covariance_"):
            return np.full(len(trials), np.nan)
        A = as_tensor(panda.appearances_).cpu().double()
        P = as_tensor(panda.parts_).flatten(1).cpu().double()
        steps = self.vectors.cpu().double() @ A.T  # (n_vectors, R_C)
        widths = (self.masks.cpu().double() * P).sum(dim=1)
        total, n_rows = np.zeros(len(trials)), 0
        of_parts = {k: part_distances(panda, k) for k in {t.part for t in trials}}
        for start in range(0, len(latents), size):
            some = latents[start : start + size]
            features = extract(self.extractor, some, first=start, verbose=0)
            L = self._encoded(as_tensor(features))
            n_rows += len(L)
            for k, distances in of_parts.items():
                its = [n for n, trial in enumerate(trials) if trial.part == k]
                for group in _groups(its, size):
                    of = [trials[n] for n in group]
                    strengths = torch.tensor([t.strength for t in of], device="cpu")
                    moved = strengths[:, None] * steps[[t.row for t in of]] * widths[k]
                    each = distances(L[:, :, k] + moved[:, None])
                    total[group] += each.sum(dim=1).numpy()
        return total / n_rows

    @in_full_precision
    def _encoded(self, features: Tensor) -> Tensor:
        """Coefficients (n, R_C, R_S), in double precision on the CPU."""
        maps = promoted(layout_of(self.decomposition).to_maps(features))
        return factors_of(self.decomposition, maps).encode(maps).cpu().double()


def measure(
    trials: Trials,
    latents: Tensor,
    tried: Sequence[Trial],
    *,
    done: Callable[[int], Any],
) -> dict[str, np.ndarray]:
    """Measure the change that each trial makes.

    At most the extractor's batch size of images is made, and kept, at a time.

    Parameters
    ----------
    trials : Trials

    latents : Tensor of shape (N, ...)

    tried : sequence of Trial

    done : callable
        Told how many have been measured since it was last told.

    Returns
    -------
    table : dict of ndarray of shape (n_trials,)
    """
    distance = trials.distances(latents, tried)
    batch_size = trials.extractor.batch_size
    chunks = latents.split(batch_size)
    at_once = max(1, batch_size // len(chunks[0]))
    # Unedited images of the last batch. They are made in batches like the edited ones,
    # since the noise that a network draws depends on a sample's place in its batch.
    plain, plain_of = None, None
    found: list[dict[str, Tensor]] = []
    for some in _groups(tried, at_once):
        outlines = trials.outlines(torch.tensor([t.part for t in some], device="cpu"))
        sums: dict[str, Any] = {}
        for number, chunk in enumerate(chunks):
            n = len(chunk)
            # Row by row: all samples of the first trial, then of the second.
            repeated = chunk.repeat(len(some), *[1] * (chunk.ndim - 1))
            numbers = number * batch_size + torch.arange(n, device="cpu")
            numbers = numbers.repeat(len(some))
            if plain is None or plain_of != (number, len(some)):
                plain, plain_of = trials.plain(repeated, numbers), (number, len(some))
            each = [trial for trial in some for _ in range(n)]
            edited = trials.edited(repeated, each, numbers)
            mask = outlines.repeat_interleave(n, dim=0)
            for name, values in _compared(mask, plain, edited, trials.value_range):
                total = values.unflatten(0, (len(some), n)).double().sum(dim=1).cpu()
                sums[name] = sums.get(name, 0) + total
        consistency = _mean_cosine(sums.pop("unit"), sums.pop("count"))
        means = {name: total / len(latents) for name, total in sums.items()}
        found.append({**means, "consistency": consistency})
        done(len(some))
    table = {name: torch.cat([f[name] for f in found]).numpy() for name in found[0]}
    return {**table, "distance": distance}


def _compared(
    mask: Tensor,
    before: Tensor,
    edited: Tensor,
    value_range: tuple[float, float] | None,
) -> Iterator[tuple[str, Tensor]]:
    """Names and values (n, ...) of the measures that are summed over samples."""
    change = edited - before
    inside, outside = masked_norms(mask, change)
    yield "effect", change_inside(mask, change)
    yield "roi_ratio", ratios(inside, outside)
    # The sum of the unit vectors of the changes inside tells how alike they are.
    unit = mask.to(change).unsqueeze(1) * change
    size = inside.to(unit).reshape(-1, *[1] * (unit.ndim - 1))
    yield "unit", torch.where(size > 0, unit / size, 0).flatten(1)
    yield "count", inside > 0
    if value_range is not None:
        yield "ssim", outside_ssim(mask, before, edited, value_range)
        yield "psnr", outside_psnr(mask, before, edited, value_range)


def _mean_cosine(directions: Tensor, count: Tensor) -> Tensor:
    """Mean cosine of the changes of two samples, from sums (m, .) of unit changes."""
    squares = directions.square().sum(dim=1)
    cosines = (squares - count) / (count * (count - 1))
    return torch.where(count > 1, cosines, torch.nan)


def _groups(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
