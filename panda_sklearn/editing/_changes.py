"""Edits as changes of activations (sections 3.3 and 3.5 of the paper).

Notation as in :mod:`panda_sklearn.editing._terms`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    Replays,
    Take,
    generate_changed,
)
from panda_sklearn.solvers import refine_parts
from panda_sklearn.utils.arithmetic import in_full_precision, own_arithmetic
from panda_sklearn.utils.arrays import MapLayout, promoted
from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.validation import check_flag, check_kind, shown

__all__ = ["Change", "change_of", "check_edits", "generate_edited"]

# Projected gradient steps of a refinement, as in section 4.3.2.
REFINEMENT_STEPS = 100


def check_edits(edits: Any) -> list[Edit]:
    """Return one edit, or several, as a list.

    Raises
    ------
    TypeError
        If something is not an edit.
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
        raise ValueError("edits is empty: give at least one Edit.")
    return list(edits)


@dataclass(frozen=True)
class Change:
    """What some edits together do to batches of activations.

    Attributes
    ----------
    terms : sequence of Term
    layout : MapLayout
        Layout of the activations.
    sizes : Sizes
        What is known of the layer's calls.
    refine : callable, default=None
        Refines the parts to maps (n, C, S) -> (n, R_S, S). Terms that are made of parts
        use those.
    """

    terms: Sequence[Term]
    layout: MapLayout
    sizes: Sizes
    refine: Callable[[Tensor], Tensor] | None = None

    @property
    def layout_of_call(self) -> MapLayout:
        """Layout of the activations of one call."""
        return self.layout.sliced(self.sizes.n_slices)

    def moments(self) -> dict[str, Any]:
        """``calls`` and ``others`` as :func:`generate_changed` takes them."""
        calls = self.sizes.calls
        named = [term.calls for term in self.terms if term.calls is not None]
        if named:
            every = set().union(*named)
            if len(named) < len(self.terms):
                every |= set(calls or (0,))
            calls = tuple(sorted(every))
        others = any(term.branches != "own" for term in self.terms)
        return {"calls": calls, "others": others}

    def has_effect(self) -> bool:
        """Whether any strength is not 0."""
        return any(term.has_effect() for term in self.terms)

    def alphas(self, where: Any) -> list[Tensor]:
        """Alpha of each term for the samples ``where``, of shape () or (n,)."""
        return [term.alpha(where) for term in self.terms]

    def places(self, features: Tensor | None, where: Any) -> list[Place]:
        """Where each term changes the samples ``where``.

        ``features`` are their activations, which are needed to refine parts.
        """
        places = [term.place(where) for term in self.terms]
        if self.refine is None or features is None:
            return places
        refined = self.refine(promoted(self.layout_of_call.to_maps(features))).detach()
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
        """Return a function that changes the activations of the samples ``where``.

        Parameters
        ----------
        latents : array of shape (n, ...)
            The latents of these samples alone.

        where : slice or Tensor of shape (n,)

        take : callable
            Runs the network; see ``Take`` of :mod:`panda_sklearn.feature_extractor`.

        alphas, places : sequence, default=None
            Used instead of :meth:`alphas` and :meth:`places`.

        Returns
        -------
        apply : callable
            Activations -> activations with the change added. Where nothing is added
            they are the same bit for bit, unless gradients are on, which choosing
            between the two would cut off.
        """
        layout = self.layout_of_call
        alphas = self.alphas(where) if alphas is None else alphas
        prepared = [
            term.prepared(latents, where, alpha, lambda z: layout.to_maps(take(z)))
            for term, alpha in zip(self.terms, alphas, strict=True)
        ]

        @in_full_precision
        def apply(features: Tensor, moment: Moment = Moment()) -> Tensor:  # noqa: B008
            maps = promoted(layout.to_maps(features))
            at = self.places(features, where) if places is None else places
            total: Tensor | None = None
            for term, place, alpha, of_calls in zip(
                self.terms, at, alphas, prepared, strict=True
            ):
                factor = term.factor(moment, self.sizes.calls)
                if factor == 0:
                    continue
                given = self._of_call(term, of_calls, moment.call)
                added = term.added(maps, place, factor * alpha, given)
                total = added if total is None else total + added
            if total is None:
                return features
            changed = maps + total
            if not torch.is_grad_enabled():  # adding zeros would turn -0.0 into 0.0
                changed = torch.where(total != 0, changed, maps)
            return layout.from_maps(changed)

        return apply

    def _of_call(self, term: Term, prepared: Any, call: int) -> Any:
        """What was prepared for a term, of one of the calls that the extractor takes.

        Another call is given what was prepared as it is.
        """
        sizes, taken = self.sizes, self.sizes.calls or (0,)
        if call not in taken:
            return prepared
        position = taken.index(call)
        if sizes.n_slices > 1:  # vectors, with the calls along the channels
            return prepared.unflatten(-1, (len(taken), -1))[..., position, :]
        if sizes.n_rows > 1 and term.prepares_maps:
            return prepared[position :: len(taken)]
        return prepared


def generate_edited(
    extractor: GeneratorFeatureExtractor,
    latents: Tensor,
    change: Change,
    *,
    rows: Tensor | None = None,
    verbose: int | None = None,
    replays: Replays | None = None,
) -> Tensor:
    """Images of checked latents with a change, on the latents' device.

    Options are as of :func:`generate_changed`. A change without effect leaves the
    generator's own images, bit for bit.
    """

    def apply(where: slice, take: Take) -> Callable[[Tensor, Moment], Tensor]:
        return change.applied(latents[where], where, take)

    return generate_changed(
        extractor,
        latents,
        apply if change.has_effect() else None,
        **change.moments(),
        rows=rows,
        verbose=verbose,
        replays=replays,
    )


def change_of(
    edits: Sequence[Edit],
    decomposition: PartsAppearanceDecomposition,
    sizes: Sizes,
    *,
    refine: bool = False,
    known: dict | None = None,
) -> Change:
    """Look up edits, and return them as a change of activations.

    Parameters
    ----------
    edits : sequence of Edit

    decomposition : PartsAppearanceDecomposition
        Fitted; the edits are looked up in it.

    sizes : Sizes
        What the arrays of the edits must fit.

    refine : bool, default=False
        Whether parts are refined to each sample.

    known : dict, default=None
        A cache of variations, for edits of the same decomposition.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range or not an int, a part is constant, an array has
        another shape, ``refine`` is not a flag, or there is nothing to refine.
    """
    check_flag("refine", refine)
    known = {} if known is None else known
    terms = [term_of(edit, decomposition, sizes, known) for edit in edits]
    layout = layout_of(decomposition)
    if not refine:
        return Change(terms, layout, sizes)
    if sizes.n_slices > 1:
        raise ValueError(
            "refine=True needs all activations of a sample, but with "
            "calls_as='channels' those of one call are known at a time. Leave it False."
        )
    if not any(term.parts for term in terms):
        raise ValueError(
            "refine=True refines learnt parts, but no edit is at one: masks are "
            "used as they are. Leave refine at False, or give indices of parts."
        )
    return Change(terms, layout, sizes, partial(_refined, decomposition))


@own_arithmetic
def _refined(decomposition: PartsAppearanceDecomposition, maps: Tensor) -> Tensor:
    """Parts (n, R_S, S) refined to maps (n, C, S)."""
    factors = factors_of(decomposition, maps)
    return refine_parts(maps, factors, max_iter=REFINEMENT_STEPS)


def _refined_place(parts: Tensor) -> Place:
    """The place of parts (n, K, S), refined to their samples."""
    return Place(_scaled_each(parts.sum(dim=1)), parts)


def _scaled_each(parts: Tensor) -> Tensor:
    """Parts (n, S), each scaled to the range 0 to 1; constant ones become zero."""
    low, high = parts.amin(dim=1, keepdim=True), parts.amax(dim=1, keepdim=True)
    constant = high <= low
    if n_constant := int(constant.sum()):
        warnings.warn(
            f"A part is constant in {n_constant} of {len(parts)} samples once it is "
            "refined to them. These samples are left as they are there.",
            UserWarning,
            stacklevel=2,
        )
    return torch.where(
        constant, 0.0, (parts - low) / torch.where(constant, 1, high - low)
    )
