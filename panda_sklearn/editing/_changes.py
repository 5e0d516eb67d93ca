"""Edits as changes of activations (sections 3.3 and 3.5 of the paper).

Floor 3: see :mod:`panda_sklearn.editing`.

Notation as in :mod:`panda_sklearn.editing._terms`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.decomposition import (
    PartsAppearanceDecomposition,
    factors_of,
    layout_of,
)
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._lookup import Sizes, term_of
from panda_sklearn.editing._terms import Place, Term
from panda_sklearn.feature_extractor import Take
from panda_sklearn.solvers import refine_parts
from panda_sklearn.utils.arithmetic import in_full_precision, own_arithmetic
from panda_sklearn.utils.arrays import MapLayout, promoted
from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.validation import check_flag, check_kind, shown

__all__ = ["Change", "change_of", "check_edits"]

# Projected gradient steps of a refinement: those of section 4.3.2.
REFINEMENT_STEPS = 100


def check_edits(edits: Any) -> list[Edit]:
    """One edit, or several, as a list.

    Raises
    ------
    TypeError
        If there is something else.
    ValueError
        If there are none.
    """
    if isinstance(edits, Edit):
        return [edits]
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise TypeError(
            f"edits must be an Edit or a sequence of them, got {shown(edits)}."
        )
    for edit in edits:
        check_kind("each of edits", edit, Edit)
    if not edits:
        raise ValueError("edits is empty: give one Edit at least.")
    return list(edits)


class Change:
    """What some edits do, to batches of activations.

    Parameters
    ----------
    terms : sequence of Term

    layout : MapLayout
        Layout of the activations.

    refine : callable, default=None
        Parts (n, R_S, S) refined to maps (n, C, S); terms that are made of parts then
        use those.

    sizes : Sizes, default=None
        What is known of the layer's calls; ``None`` if it runs once.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        layout: MapLayout,
        refine: Callable[[Tensor], Tensor] | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.terms = list(terms)
        self.layout = layout
        self.refine = refine
        self.sizes = Sizes() if sizes is None else sizes
        self.of_call = layout.sliced(self.sizes.n_slices)

    def moments(self) -> dict[str, Any]:
        """At which calls and in what parts of batches, as ``generate_changed`` asks."""
        said = [term.calls for term in self.terms if term.calls is not None]
        calls = self.sizes.calls
        if said:
            every = set().union(*said)
            if any(term.calls is None for term in self.terms):
                every |= set(calls or (0,))
            calls = tuple(sorted(every))
        others = any(term.branches != "own" for term in self.terms)
        return {"calls": calls, "others": others}

    def has_effect(self) -> bool:
        """Whether a strength is not 0."""
        return any(term.has_effect() for term in self.terms)

    def alphas(self, where: Any) -> list[Tensor]:
        """Strengths of each term for the samples ``where``, of shape () or (n,)."""
        return [term.alpha(where) for term in self.terms]

    def places(self, features: Tensor | None, where: Any) -> list[Place]:
        """Where each term changes the samples ``where``.

        ``features`` are their activations; only needed if parts are refined.
        """
        places = [term.place(where) for term in self.terms]
        if self.refine is None or features is None:
            return places
        refined = self.refine(promoted(self.of_call.to_maps(features))).detach()
        return [
            _refined_place(refined[:, list(term.parts)]) if term.parts else place
            for term, place in zip(self.terms, places, strict=True)
        ]

    def applied(
        self,
        latents: Any,
        where: Any,
        take: Take,
        alphas: Sequence[Tensor] | None = None,
        places: Sequence[Place] | None = None,
    ) -> Callable[[Tensor, Moment], Tensor]:
        """What changes the activations of the samples ``where``.

        Parameters
        ----------
        latents : array of shape (n, ...)
            Those of these samples alone.

        where : slice or Tensor of shape (n,)

        take : callable
            Runs the network; see ``Take`` of :mod:`panda_sklearn.feature_extractor`.

        alphas, places : sequence, default=None
            In the place of those that :meth:`alphas` and :meth:`places` say.

        Returns
        -------
        apply : callable
            Activations -> activations with the change added. Where it is 0 they are
            the very same values, unless gradients are on, which would be lost there.
        """
        alphas = self.alphas(where) if alphas is None else alphas
        prepared = [
            term.prepared(latents, where, alpha, take)
            for term, alpha in zip(self.terms, alphas, strict=True)
        ]

        sizes = self.sizes
        taken = sizes.calls or (0,)

        @in_full_precision
        def apply(features: Tensor, moment: Moment = Moment()) -> Tensor:  # noqa: B008
            maps = promoted(self.of_call.to_maps(features))
            its = self.places(features, where) if places is None else places
            total = maps.new_zeros(1, *maps.shape[1:])
            for term, place, alpha, given in zip(
                self.terms, its, alphas, prepared, strict=True
            ):
                factor = term.factor(moment, sizes.calls)
                if factor == 0:
                    continue
                if moment.call in taken:
                    position = taken.index(moment.call)
                    if sizes.n_slices > 1:
                        term = term.sliced(position, len(taken))
                    if sizes.n_rows > 1 and term.is_of_rows():
                        given = given[position :: len(taken)]
                total = total + term.added(maps, place, factor * alpha, given)
            changed = maps + total
            if not torch.is_grad_enabled():  # adding zeros would turn -0.0 into 0.0
                changed = torch.where(total != 0, changed, maps)
            return self.of_call.from_maps(changed)

        return apply


def change_of(
    edits: Sequence[Edit],
    decomposition: PartsAppearanceDecomposition,
    sizes: Sizes,
    *,
    refine: bool = False,
    known: dict | None = None,
) -> Change:
    """Edits as a change of activations.

    Parameters
    ----------
    edits : sequence of Edit

    decomposition : PartsAppearanceDecomposition
        Fitted; the edits are looked up in it.

    sizes : Sizes
        What their arrays must fit.

    refine : bool, default=False
        Whether parts are refined to each sample.

    known : dict, default=None
        Where variations that were found are kept, for edits of the same decomposition.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range or no int, a part is constant, an array is of
        another shape, ``refine`` is no flag, or there is nothing to refine.
    """
    check_flag("refine", refine)
    known = {} if known is None else known
    terms = [term_of(edit, decomposition, sizes, known) for edit in edits]
    layout = layout_of(decomposition)
    if not refine:
        return Change(terms, layout, sizes=sizes)
    if sizes.n_slices > 1:
        raise ValueError(
            "refine=True refines parts to a sample's activations, of which with "
            "calls_as='channels' only one call's are known at a time. Leave it False."
        )
    if not any(term.parts for term in terms):
        raise ValueError(
            "refine=True refines learnt parts, but no edit is at one: masks are "
            "used as they are. Leave refine at False, or give indices of parts."
        )
    return Change(terms, layout, partial(_refined, decomposition), sizes)


@own_arithmetic
def _refined(decomposition: PartsAppearanceDecomposition, maps: Tensor) -> Tensor:
    """Parts (n, R_S, S) refined to maps (n, C, S)."""
    factors = factors_of(decomposition, maps)
    return refine_parts(maps, factors, max_iter=REFINEMENT_STEPS)


def _refined_place(parts: Tensor) -> Place:
    """The place of parts (n, K, S) that were refined to their samples."""
    return Place(_scaled_each(parts.sum(dim=1)), parts)


def _scaled_each(parts: Tensor) -> Tensor:
    """Parts (n, S), each scaled to reach from 0 to 1; constant ones become zero."""
    low, high = parts.amin(dim=1, keepdim=True), parts.amax(dim=1, keepdim=True)
    constant = high <= low
    if n_constant := int(constant.sum()):
        warnings.warn(
            f"Refined to its sample, a part is constant in {n_constant} of "
            f"{len(parts)} samples, which are left as they are there.",
            UserWarning,
            stacklevel=2,
        )
    return torch.where(
        constant, 0.0, (parts - low) / torch.where(constant, 1, high - low)
    )
