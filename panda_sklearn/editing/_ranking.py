"""The table of edits that were tried.

Floor 3: see :mod:`panda_sklearn.editing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    generate_changed,
)
from panda_sklearn.utils.arrays import MapLayout, promoted
from panda_sklearn.utils.regions import change_inside, masked_norms, ratios
from panda_sklearn.utils.resizing import resize

__all__ = ["COLUMNS", "PairTries", "rank", "sort_table"]

# Columns to sort by, and whether the smallest value is the best.
COLUMNS = {"roi_ratio": True, "effect": False, "consistency": False}


@dataclass(frozen=True)
class PairTries:
    """Images edited with one vector at one part each.

    Attributes
    ----------
    extractor : GeneratorFeatureExtractor
    layout : MapLayout
        Of its activations.
    vectors : Tensor of shape (n_vectors, C)
        Appearances or variations, times the strengths to try them at.
    masks : Tensor of shape (R_S, S)
        Parts, from 0 to 1.
    image_spatial : tuple of int
    """

    extractor: GeneratorFeatureExtractor
    layout: MapLayout
    vectors: Tensor
    masks: Tensor
    image_spatial: tuple[int, ...]

    def plain(self, latents: Tensor) -> Tensor:
        """Images without an edit."""
        return generate_changed(self.extractor, latents, None, verbose=0)

    def edited(self, latents: Tensor, rows: Tensor, parts: Tensor) -> Tensor:
        """Images of latents (n, ...) with the vectors of rows (n,) at parts (n,)."""

        def change(where: slice, take: Any) -> Callable[[Tensor], Tensor]:
            def add(features: Tensor) -> Tensor:
                maps = promoted(self.layout.to_maps(features))
                vectors = self.vectors[rows[where]].to(maps)
                masks = self.masks[parts[where]].to(maps)
                added = vectors[:, :, None] * masks[:, None]
                return self.layout.from_maps(maps + added)

            return add

        return generate_changed(self.extractor, latents, change, verbose=0)

    def outlines(self, parts: Tensor) -> Tensor:
        """Parts (n,) at the images' size, from 0 to 1."""
        maps = self.masks[parts].reshape(-1, 1, *self.layout.spatial)
        return resize(maps, self.image_spatial)[:, 0]


def rank(
    tries: PairTries,
    latents: Tensor,
    pairs: Sequence[tuple[int, int]],
    *,
    done: Callable[[int], Any],
) -> dict[str, np.ndarray]:
    """Measure the change that each pair makes.

    Not more images are made at a time, nor kept, than the extractor's batch size.

    Parameters
    ----------
    tries : PairTries

    latents : Tensor of shape (N, ...)

    pairs : sequence of (int, int)
        Rows of vectors, and parts.

    done : callable
        Told how many pairs have been measured since it was last told.

    Returns
    -------
    table : dict of ndarray of shape (n_pairs,)
    """
    batch_size = tries.extractor.batch_size
    chunks = latents.split(batch_size)
    originals = tries.plain(chunks[0]) if len(chunks) == 1 else None
    at_once = max(1, batch_size // len(chunks[0]))
    measured = []
    for some in _groups(pairs, at_once):
        rows, parts = torch.tensor(some, device="cpu").T  # (m,)
        outlines = tries.outlines(parts)
        effect = torch.zeros(len(some), dtype=torch.float64, device="cpu")
        ratio, directions = torch.zeros_like(effect), None
        count = torch.zeros_like(effect)
        for chunk in chunks:
            plain = tries.plain(chunk) if originals is None else originals
            n = len(chunk)
            # Row by row: all samples of the first pair, then of the second.
            edited = tries.edited(
                chunk.repeat(len(some), *[1] * (chunk.ndim - 1)),
                rows.repeat_interleave(n),
                parts.repeat_interleave(n),
            )
            before = promoted(plain).repeat(len(some), *[1] * (plain.ndim - 1))
            change = promoted(edited) - before
            mask = outlines.repeat_interleave(n, dim=0)
            inside, outside = masked_norms(mask, change)
            effect += _sums(change_inside(mask, change), len(some))
            ratio += _sums(ratios(inside, outside), len(some))
            # Unit vectors of the changes inside, whose sum tells how alike they are.
            unit = mask.to(change).unsqueeze(1) * change
            size = inside.to(unit).reshape(-1, *[1] * (unit.ndim - 1))
            unit = torch.where(size > 0, unit / size, 0)
            total = unit.reshape(len(some), n, -1).double().sum(dim=1)
            directions = total if directions is None else directions + total
            count += _sums((inside > 0).double(), len(some))
        assert directions is not None
        measured.append(
            torch.stack(
                [
                    effect / len(latents),
                    ratio / len(latents),
                    _mean_cosine(directions, count),
                ]
            )
        )
        done(len(some))
    effect, ratio, consistency = torch.cat(measured, dim=1).numpy()
    return {"effect": effect, "roi_ratio": ratio, "consistency": consistency}


def sort_table(table: dict[str, np.ndarray], by: str) -> dict[str, np.ndarray]:
    """The table's rows, the best first; those without a value last."""
    order = np.argsort(table[by] if COLUMNS[by] else -table[by], kind="stable")
    return {name: column[order] for name, column in table.items()}


def _mean_cosine(directions: Tensor, count: Tensor) -> Tensor:
    """Mean cosine of two different samples' changes, from sums (m, .) of unit ones."""
    squares = directions.square().sum(dim=1).cpu()
    cosines = (squares - count) / (count * (count - 1))
    return torch.where(count > 1, cosines, torch.nan)


def _sums(values: Tensor, n_pairs: int) -> Tensor:
    """Sums over the samples of each pair, on the host."""
    return values.reshape(n_pairs, -1).sum(dim=1).double().cpu()


def _groups(pairs: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
