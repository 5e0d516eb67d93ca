"""Parts of images transferred to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panda_sklearn.decomposition import (
    PartsAppearanceDecomposition,
    factors_of,
    layout_of,
)
from panda_sklearn.editing._changes import Change, change_of
from panda_sklearn.editing._edit import Edit, check_strength
from panda_sklearn.editing._lookup import Sizes, not_for_samples
from panda_sklearn.editing._terms import DonorTerm
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor, extract
from panda_sklearn.utils.arithmetic import own_arithmetic
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.validation import LARGEST

__all__ = ["transfer_change"]


def transfer_change(
    extractor: GeneratorFeatureExtractor,
    decomposition: PartsAppearanceDecomposition,
    n_samples: int,
    donors: Tensor,
    part: Any,
    amount: Any,
    *,
    mix: bool,
    mean: bool,
    refine: bool,
) -> Change:
    """Return the change that moves samples towards donors, given as checked latents.

    Arguments are as for ``LocalEditor.transfer``; they are checked before the network
    runs.
    """
    if not mean and len(donors) not in (1, n_samples):
        raise ValueError(
            f"donors must be one, or one for each of the {n_samples} latents, got "
            f"{len(donors)}. For the mean of several, set mean=True."
        )
    check_strength(amount, "amount")
    if np.ndim(amount) and len(amount) != n_samples:
        raise ValueError(not_for_samples("amount", amount, n_samples))
    kind = "features" if mix else "coefficients"
    shape = (
        layout_of(decomposition).sample_shape
        if mix
        else (len(decomposition.appearances_), len(decomposition.parts_))
    )
    edit = _moving(kind, torch.zeros(shape, device="cpu"), part, amount)
    sizes = Sizes.of(extractor, n_samples)
    change = change_of([edit], decomposition, sizes, refine=refine)
    several_calls = sizes.n_rows > 1
    if several_calls and (mean or not mix):
        raise ValueError(
            "The extractor takes several calls as samples, each of which has "
            "coefficients and a mean of its own: use mix=True with mean=False, which "
            "moves the activations of each call."
        )
    if several_calls:
        donors = donors.expand(n_samples, *donors.shape[1:])
    if mix and not mean and (len(donors) > 1 or several_calls):
        # Their activations are taken along with each batch.
        (term,) = change.terms
        return replace(change, terms=[DonorTerm(**{**vars(term), "target": donors})])
    found = (
        target if mix else _coefficients(decomposition, change, target)
        for target in _features(extractor, donors)
    )
    target = _mean(found, len(donors)) if mean else torch.cat(list(found))
    if len(target) == 1:
        target = target[0]
    amounts = as_tensor(amount if np.ndim(amount) else np.array(float(amount)))
    most, largest = (float(x.abs().max()) for x in (amounts, target))
    if most * largest > LARGEST:
        raise ValueError(
            f"amount={most:g} is too large: times {kind} up to {largest:.3g} it does "
            "not fit in float32."
        )
    edit = _moving(kind, target, part, amount)
    return change_of([edit], decomposition, sizes, refine=refine)


def _moving(kind: str, target: Tensor, part: Any, amount: Any) -> Edit:
    """An edit towards coefficients or features."""
    what: dict[str, Any] = {kind: target}
    return Edit(part=part, strength=amount, **what)


def _features(extractor: GeneratorFeatureExtractor, donors: Tensor) -> Iterator[Tensor]:
    """Activations of batches of donors."""
    size = extractor.batch_size
    for start in range(0, len(donors), size):
        some = donors[start : start + size]
        yield as_tensor(extract(extractor, some, first=start, verbose=0))


@own_arithmetic
def _coefficients(
    decomposition: PartsAppearanceDecomposition, change: Change, features: Tensor
) -> Tensor:
    """Coefficients (n, R_C, R_S), at refined parts if the change refines."""
    maps = promoted(change.layout.to_maps(features))
    factors = factors_of(decomposition, maps)
    if change.refine is None:
        return factors.encode(maps)
    return factors.A.T @ maps @ change.refine(maps).mT


def _mean(batches: Iterator[Tensor], n: int) -> Tensor:
    """Mean over the samples of all batches, (1, ...)."""
    total: Any = 0
    for batch in batches:
        total = total + batch.sum(dim=0, keepdim=True)
    return total / n
