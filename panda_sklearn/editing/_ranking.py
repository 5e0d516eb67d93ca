"""The table of edits that were tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from panda_sklearn.decomposition import PartsAppearanceDecomposition, varying_parts
from panda_sklearn.editing._changes import change_of
from panda_sklearn.editing._edit import UNITS, Edit
from panda_sklearn.editing._lookup import Sizes
from panda_sklearn.editing._terms import VectorTerm
from panda_sklearn.editing._trials import Trial, Trials, measure
from panda_sklearn.feature_extractor import GeneratorFeatureExtractor
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.similarity import check_similarity
from panda_sklearn.utils.validation import (
    check_choice,
    check_indices,
    check_numbers,
    check_single,
    check_value_range,
    check_verbose,
)

__all__ = ["rank_edits"]

# Columns to sort by, and whether the smallest value is the best.
COLUMNS = {
    "score": False,
    "roi_ratio": True,
    "effect": False,
    "consistency": False,
    "distance": True,
}


def rank_edits(
    extractor: GeneratorFeatureExtractor,
    decomposition: PartsAppearanceDecomposition,
    latents: Tensor,
    *,
    appearances: Any,
    parts: Any,
    variations: Any,
    strength: Any,
    unit: Any,
    sort_by: Any,
    image_spatial: tuple[int, ...],
    value_range: Any,
    verbose: Any,
) -> dict[str, np.ndarray]:
    """Return the table of ``LocalEditor.rank_edits``, of checked latents."""
    check_choice("sort_by", sort_by, sorted(COLUMNS))
    check_choice("unit", unit, UNITS)
    verbose = check_verbose(verbose)
    if value_range is not None:
        value_range = check_value_range(value_range)
        check_similarity(image_spatial)
    strengths = _both_signs(strength)
    n_appearances = len(decomposition.appearances_)
    parts = varying_parts(decomposition) if parts is None else parts
    parts = _distinct("parts", parts, len(decomposition.parts_))
    if variations is not None:
        variations = _distinct("variations", variations, n_appearances)
    if appearances is not None or variations is None:
        appearances = range(n_appearances) if appearances is None else appearances
        appearances = _distinct("appearances", appearances, n_appearances)
    # An appearance is one vector for all parts, a variation one for each.
    largest = max(strengths)
    edits = [(Edit(j, parts[0], largest, unit), parts) for j in appearances or ()]
    for n in variations or ():
        edits += [(Edit(None, k, largest, unit, variation=n), [k]) for k in parts]
    # Looked up at the largest strength: fails, if at all, before any work.
    sizes = Sizes.of(extractor, None)
    terms = change_of([edit for edit, _ in edits], decomposition, sizes).terms
    places = change_of([Edit(0, k) for k in parts], decomposition, sizes).terms
    like = as_tensor(decomposition.parts_).flatten(1).to(latents.device)
    masks = torch.zeros_like(like)
    for k, place in zip(parts, places, strict=True):
        masks[k] = place.mask.to(masks)
    vectors = [cast(VectorTerm, term).vector.to(like) * term.scale for term in terms]
    trials = Trials(
        extractor,
        decomposition,
        torch.stack(vectors),
        masks,
        image_spatial,
        value_range,
    )
    with tqdm(
        total=sum(len(at) for _, at in edits) * len(strengths),
        desc="LocalEditor, edits",
        disable=not verbose,
        mininterval=1,
    ) as bar:
        table = tabulate(trials, latents, edits, strengths, done=bar.update)
    return _sorted(table, sort_by)


def _both_signs(strength: Any) -> list[float]:
    """Strengths above 0, each followed by its negative."""
    if isinstance(strength, Real) or getattr(strength, "ndim", 1) == 0:
        strength = [strength]
    given = check_numbers("strength", strength)
    for value in given:
        check_single("strength", value, above=0)
    return [sign * value for value in dict.fromkeys(given) for sign in (1, -1)]


def _distinct(name: str, indices: Any, size: int) -> list[int]:
    """Indices from 0 to size - 1, without duplicates."""
    return list(dict.fromkeys(check_indices(name, indices, size)))


def tabulate(
    trials: Trials,
    latents: Tensor,
    edits: Sequence[tuple[Edit, Sequence[int]]],
    strengths: Sequence[float],
    *,
    done: Callable[[int], Any],
) -> dict[str, np.ndarray]:
    """Tabulate what each edit does at its parts, at each strength.

    Parameters
    ----------
    trials : Trials
        With the vectors of the edits, in their order.

    latents : Tensor of shape (N, ...)

    edits : sequence of (Edit, sequence of int)
        Edits, and the parts to try each at.

    strengths : sequence of float

    done : callable
        Told how many trials have been measured since it was last told.
    """
    tried = [
        Trial(row, k, strength)
        for row, (_, parts) in enumerate(edits)
        for k in parts
        for strength in strengths
    ]
    measured = measure(trials, latents, tried, done=done)
    measured["score"] = _score(measured, alone=len(latents) == 1)
    made = np.empty(len(tried), dtype=object)
    made[:] = [
        replace(edits[trial.row][0], part=trial.part, strength=trial.strength)
        for trial in tried
    ]
    table: dict[str, np.ndarray] = {"edit": made}
    for name in ("appearance", "variation", "part", "strength"):
        labels = [getattr(edit, name) for edit in made]
        table[name] = np.array([-1 if label is None else label for label in labels])
    table["sign"] = np.sign(table["strength"]).astype(int)
    return table | measured


def _score(table: dict[str, np.ndarray], *, alone: bool) -> np.ndarray:
    """Consistency, lowered where an edit leads away from what occurs.

    A single sample has no consistency, and is given 1.
    """
    distance = table["distance"]
    away = np.where(np.isnan(distance), 1.0, np.maximum(distance, 1.0))
    consistency = table["consistency"]
    if alone:
        consistency = np.where(table["effect"] > 0, 1.0, np.nan)
    return np.where(consistency < 0, consistency * away, consistency / away)


def _sorted(table: dict[str, np.ndarray], by: str) -> dict[str, np.ndarray]:
    """The table with the best rows first, and those without a value last."""
    order = np.argsort(table[by] if COLUMNS[by] else -table[by], kind="stable")
    return {name: column[order] for name, column in table.items()}
