"""What an edit does to activations, by its kind (sections 3.3 and 3.5 of the paper).

Notation: n samples of a batch, of N; C channels, S positions; Z (n, C, S) activations,
alpha () or (n,) strengths, m (S,) or (n, S) parts scaled to the range 0 to 1, or masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.resizing import resize

__all__ = [
    "BRANCHES",
    "CoefficientTerm",
    "DonorTerm",
    "FeatureTerm",
    "LatentTerm",
    "Maps",
    "Place",
    "Term",
    "TowardsTerm",
    "VectorTerm",
    "at_places",
]


# The factor of an edit in those parts of a guided batch that are not the samples' own.
BRANCHES = {"own": 0.0, "both": 1.0, "opposite": -1.0}

#: Runs the network up to the layer: latents of a batch -> activations (n, C, S).
Maps = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Place:
    """Where an edit changes the activations of some samples.

    Attributes
    ----------
    mask : Tensor of shape (S,) or (n, S)
        With values from 0 to 1.
    parts : Tensor of shape (K, S) or (n, K, S), or None
        The parts that make up the mask, as learnt or as refined; ``None`` for a drawn
        mask.
    """

    mask: Tensor
    parts: Tensor | None = None

    def some(self, rows: slice | Tensor) -> Place:
        """The places of some of the samples."""
        mask = self.mask if self.mask.ndim == 1 else self.mask[rows]
        if self.parts is None or self.parts.ndim == 2:
            return Place(mask, self.parts)
        return Place(mask, self.parts[rows])


@dataclass(frozen=True)
class Term:
    """One edit, looked up in the decomposition.

    Attributes
    ----------
    strength : Tensor of shape () or (N,)
        In the edit's unit.
    scale : float
        Alpha of a strength of 1.
    mask : Tensor of shape (S,) or (N, S)
    parts : tuple of int
        Indices of the parts that make up ``mask``; empty for a drawn mask.
    learnt : Tensor of shape (K, S)
        These parts as they were learnt.
    drawn : Tensor of shape ([N,] *image_spatial) or None
        A mask that was drawn at the images' size, at that size.
    calls : dict of int to float, or None
        The calls of the layer to edit, and the factor of the strength at each; ``None``
        means those that the extractor takes.
    branches : {"own", "both", "opposite"}
        Which parts of a guided batch to edit.
    """

    strength: Tensor
    scale: float
    mask: Tensor
    parts: tuple[int, ...]
    learnt: Tensor
    drawn: Tensor | None
    calls: dict[int, float] | None = field(default=None, kw_only=True)
    branches: str = field(default="own", kw_only=True)

    # Whether what is prepared are activations, with a row for each call that the
    # extractor takes as a sample.
    prepares_maps: ClassVar[bool] = False

    def factor(self, moment: Moment, taken: tuple[int, ...] | None) -> float:
        """The factor of the strength at a moment, 0 where the term does nothing."""
        sign = 1.0 if moment.own else BRANCHES[self.branches]
        if self.calls is not None:
            return sign * self.calls.get(moment.call, 0.0)
        return sign if taken is None or moment.call in taken else 0.0

    def has_effect(self) -> bool:
        """Whether any strength is not 0."""
        return bool(self.strength.any())

    def alpha(self, where: Any) -> Tensor:
        """Alpha of the samples ``where``, of shape () or (n,)."""
        strength = self.strength
        return self.scale * (strength if strength.ndim == 0 else strength[where])

    def place(self, where: Any) -> Place:
        """Where the samples ``where`` change, with parts as they were learnt."""
        mask = self.mask if self.mask.ndim == 1 else self.mask[where]
        return Place(mask, self.learnt if self.parts else None)

    def outline(
        self,
        where: Any,
        mask: Tensor,
        map_shape: tuple[int, ...],
        image_spatial: tuple[int, ...],
    ) -> Tensor:
        """Where images of the samples ``where`` change, (1 or n, *image_spatial).

        ``mask`` is where their activations change.
        """
        if self.drawn is None:
            return resize(mask.reshape(-1, 1, *map_shape[1:]), image_spatial)[:, 0]
        if self.drawn.ndim > len(image_spatial):
            return self.drawn[where]
        return self.drawn[None]

    def prepared(self, latents: Any, where: Any, alpha: Tensor, maps: Maps) -> Any:
        """What :meth:`added` needs of the samples ``where``, before the network runs.

        Parameters
        ----------
        latents : array of shape (n, ...)
            The latents of these samples alone.
        """
        return None

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Any) -> Tensor:
        """What is added to activations, of shape (n or 1, C, S)."""
        raise NotImplementedError


@dataclass(frozen=True)
class VectorTerm(Term):
    """A vector v added at the place: alpha v m'.

    Attributes
    ----------
    vector : Tensor of shape (C,) or (N, C)
        v, the same for all samples or one for each.
    """

    vector: Tensor

    def prepared(self, latents: Any, where: Any, alpha: Tensor, maps: Maps) -> Tensor:
        """The samples' vectors, (C,) or (n, C)."""
        return self.vector if self.vector.ndim == 1 else self.vector[where]

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As in :class:`Term`."""
        return at_places(alpha.to(Z)[..., None] * prepared.to(Z), place.mask.to(Z))


@dataclass(frozen=True)
class TowardsTerm(Term):
    """Something moved towards a target.

    Attributes
    ----------
    target : Tensor
        Where to: of two axes for all samples, or with a first axis of N.
    """

    target: Tensor

    def prepared(self, latents: Any, where: Any, alpha: Tensor, maps: Maps) -> Tensor:
        """The targets of the samples."""
        return self.target if self.target.ndim == 2 else self.target[where]


@dataclass(frozen=True)
class CoefficientTerm(TowardsTerm):
    """Coefficients L of parts moved towards others, L + alpha (L' - L).

    At parts, the smallest addition that does so: B' (L' - L) (Q Q')^+ Q with
    B = (A A')^+ A, for appearances A and parts Q in rows. At a mask,
    m * (A' (L' - L) P), with L' - L of all parts P. The target is L', ([N,] R_C, R_S).

    Attributes
    ----------
    appearances, least : Tensor of shape (R_C, C)
        A and B.
    every : Tensor of shape (R_S, S)
        P.
    """

    appearances: Tensor
    least: Tensor
    every: Tensor

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As in :class:`Term`."""
        A, target = self.appearances.to(Z), prepared.to(Z)
        if place.parts is None:
            P = self.every.to(Z)
            change = A.T @ (target - A @ Z @ P.T) @ P
            return _each(alpha, Z) * place.mask.to(Z).unsqueeze(-2) * change
        Q = place.parts.to(Z)
        change = target[..., list(self.parts)] - A @ Z @ Q.mT  # (n, R_C, K)
        onto = torch.linalg.pinv(Q @ Q.mT, hermitian=True) @ Q
        return _each(alpha, Z) * (self.least.to(Z).T @ change @ onto)


@dataclass(frozen=True)
class FeatureTerm(TowardsTerm):
    """Activations moved towards others at the place: alpha m * (Z' - Z).

    The target is Z', ([N,] C, S).
    """

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As in :class:`Term`."""
        mask = place.mask.to(Z).unsqueeze(-2)
        return _each(alpha, Z) * mask * (prepared.to(Z) - Z)


@dataclass(frozen=True)
class DonorTerm(FeatureTerm):
    """Activations moved towards those of other latents, one for each sample.

    The target is these latents, (N, ...).
    """

    prepares_maps = True

    def prepared(self, latents: Any, where: Any, alpha: Tensor, maps: Maps) -> Tensor:
        """The activations at the donors' latents."""
        return maps(self.target[where])


@dataclass(frozen=True)
class LatentTerm(Term):
    """Activations replaced at the place by those at moved latents.

    m * (Z(z + alpha d) - Z).

    Attributes
    ----------
    direction : Tensor of shape latent_shape or (N, *latent_shape)
        d.
    """

    direction: Tensor

    prepares_maps = True

    def prepared(self, latents: Any, where: Any, alpha: Tensor, maps: Maps) -> Tensor:
        """The activations at the moved latents."""
        direction = self.direction
        if direction.ndim == latents.ndim:
            direction = direction[where]
        alpha = alpha.reshape(-1, *[1] * (latents.ndim - 1))
        return maps(latents + alpha.to(latents) * direction.to(latents))

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As in :class:`Term`."""
        return place.mask.to(Z).unsqueeze(-2) * (prepared.to(Z) - Z)


def at_places(vectors: Tensor, masks: Tensor) -> Tensor:
    """Vectors (C,) or (n, C) times masks (S,) or (n, S), v m': (n or 1, C, S)."""
    added = vectors.unsqueeze(-1) * masks.unsqueeze(-2)
    return added if added.ndim == 3 else added[None]


def _each(alpha: Tensor, Z: Tensor) -> Tensor:
    """Strengths as factors of the samples of (n, C, S)."""
    return alpha.to(Z).reshape(-1, 1, 1)
