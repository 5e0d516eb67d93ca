"""Where in images an appearance is, and removing what is there (section 4.1)."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import PartsAppearanceDecomposition
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor, extract
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor
from panda_sklearn.utils.validation import (
    as_numeric,
    check_index,
    check_single,
    is_bool,
    shown,
)

__all__ = ["check_colors", "check_learnt", "fill_pixels", "localize"]


def check_learnt(
    decomposition: PartsAppearanceDecomposition, appearance: Any, what: str
) -> None:
    """Raise unless an appearance is an index; ``what`` says what needs one."""
    if isinstance(appearance, list) or getattr(appearance, "ndim", 0) > 0:
        raise ValueError(
            f"{what} needs a learnt appearance, whose mean over the training data is "
            "known: give its index."
        )
    check_index("appearance", appearance, len(decomposition.appearances_))


def localize(
    extractor: GeneratorFeatureExtractor,
    decomposition: PartsAppearanceDecomposition,
    latents: ArrayLike,
    appearance: Any,
    threshold: Any,
    **options: Any,
) -> ArrayLike:
    """Run ``localize`` on the activations of checked latents, batch by batch."""
    if Sizes.of(extractor, None).n_rows > 1:
        raise ValueError(
            "The extractor takes several calls as samples, and an appearance is "
            "elsewhere at each: take one call, or calls_as='mean'."
        )
    size = extractor.batch_size
    masks = []
    for start in range(0, len(latents), size):
        features = extract(extractor, latents[start : start + size], first=start)
        masks.append(decomposition.localize(features, appearance, threshold, **options))
    if isinstance(masks[0], Tensor):
        return torch.cat(masks)
    return np.concatenate(masks)


def check_colors(fill: Any, n_colors: int) -> list[float]:
    """Return the value of each colour that the argument ``fill`` stands for."""
    if isinstance(fill, Real) and not is_bool(fill):
        return [check_single("fill", fill)] * n_colors
    expected = f"a finite number, or {n_colors} of them, one for each colour"
    colors = as_numeric(fill, "fill", expected)
    if tuple(colors.shape) != (n_colors,):
        raise ValueError(f"fill must be {expected}, got {shown(fill)}.")
    return [check_single("each of fill", value) for value in colors.tolist()]


def fill_pixels(images: ArrayLike, mask: ArrayLike, colors: list[float]) -> ArrayLike:
    """Images (n, n_colors, *spatial) with a colour where a mask (n, *spatial) is."""
    values = as_tensor(images, keep_type=True)
    where = as_tensor(mask, keep_type=True)[:, None]
    color = torch.tensor(colors, dtype=torch.float64, device="cpu").to(values)
    color = color.reshape(-1, *[1] * (values.ndim - 2))
    return Origin.of(images).give(torch.where(where, color, values))
