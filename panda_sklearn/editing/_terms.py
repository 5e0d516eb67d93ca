"""What an edit does to activations, by its kind (sections 3.3 and 3.5 of the paper).

Floor 3: see :mod:`panda_sklearn.editing`.

Notation: n samples of a batch, of N; C channels, S positions; Z (n, C, S) activations,
alpha () or (n,) strengths, m (S,) or (n, S) parts scaled to reach from 0 to 1, or
masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from panda_sklearn.feature_extractor import Take
from panda_sklearn.utils.hooks import Moment
from panda_sklearn.utils.resizing import resize

__all__ = [
    "BRANCHES",
    "CoefficientTerm",
    "DonorTerm",
    "FeatureTerm",
    "LatentTerm",
    "Place",
    "Term",
    "TowardsTerm",
    "VectorTerm",
]


# What an edit does in parts of a batch that are not the samples' own, as a multiple of
# what it does in those.
BRANCHES = {"own": 0.0, "both": 1.0, "opposite": -1.0}


@dataclass(frozen=True)
class Place:
    """Where an edit changes the activations of some samples.

    Attributes
    ----------
    mask : Tensor of shape (S,) or (n, S)
        With values from 0 to 1.
    parts : Tensor of shape (K, S) or (n, K, S), or None
        The parts that it is made of, as they were learnt or refined; ``None`` for a
        drawn mask.
    """

    mask: Tensor
    parts: Tensor | None = None

    def some(self, rows: slice | Tensor) -> Place:
        """Of some of the samples."""
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
        The parts that ``mask`` is made of, to be refined; empty for a drawn mask.
    learnt : Tensor of shape (K, S)
        These parts.
    drawn : Tensor of shape ([N,] *image_spatial) or None
        A drawn mask of the images' size, as it was given.
    calls : dict of int to float, or None
        At which calls of the layer, and what the strength is multiplied with at each;
        ``None`` is those that the extractor takes.
    branches : {"own", "both", "opposite"}
        In which parts of a batch that guidance multiplies.
    """

    strength: Tensor
    scale: float
    mask: Tensor
    parts: tuple[int, ...]
    learnt: Tensor
    drawn: Tensor | None
    calls: dict[int, float] | None = field(default=None, kw_only=True)
    branches: str = field(default="own", kw_only=True)

    def factor(self, moment: Moment, taken: tuple[int, ...] | None) -> float:
        """What the strength is multiplied with, 0 where the term does nothing."""
        sign = 1.0 if moment.own else BRANCHES[self.branches]
        if self.calls is not None:
            return sign * self.calls.get(moment.call, 0.0)
        return sign if taken is None or moment.call in taken else 0.0

    def is_of_rows(self) -> bool:
        """Whether what is prepared has a row for each call of each sample."""
        return False

    def sliced(self, position: int, n_calls: int) -> Term:
        """The term at one of so many calls that are stacked along the channels."""
        raise NotImplementedError

    def has_effect(self) -> bool:
        """Whether a strength is not 0."""
        return bool(self.strength.any())

    def alpha(self, where: Any) -> Tensor:
        """Of the samples ``where``, of shape () or (n,)."""
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

        ``mask`` is where their activations do.
        """
        if self.drawn is None:
            return resize(mask.reshape(-1, 1, *map_shape[1:]), image_spatial)[:, 0]
        if self.drawn.ndim > len(image_spatial):
            return self.drawn[where]
        return self.drawn[None]

    def prepared(self, latents: Any, where: Any, alpha: Tensor, take: Take) -> Any:
        """What :meth:`added` needs of the samples ``where``, before the network runs.

        Parameters
        ----------
        latents : array of shape (n, ...)
            Those of these samples alone.
        """
        return None

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Any) -> Tensor:
        """What is added to activations, of shape (n or 1, C, S)."""
        raise NotImplementedError


@dataclass(frozen=True)
class VectorTerm(Term):
    """alpha v m', with a vector v of shape (C,)."""

    vector: Tensor

    def sliced(self, position: int, n_calls: int) -> VectorTerm:
        """As of :class:`Term`."""
        vector = self.vector.unflatten(0, (n_calls, -1))[position]
        return replace(self, vector=vector)

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Any) -> Tensor:
        """As of :class:`Term`."""
        scaled = _each(alpha, Z) * self.vector.to(Z)[:, None]
        return scaled * place.mask.to(Z).unsqueeze(-2)


@dataclass(frozen=True)
class TowardsTerm(Term):
    """Something moved towards what is given.

    Attributes
    ----------
    target : Tensor
        Where to: the same for all samples, or with a first axis of N for each.
    """

    target: Tensor

    def prepared(self, latents: Any, where: Any, alpha: Tensor, take: Take) -> Tensor:
        """The targets of the samples."""
        return self.target if self.target.ndim == 2 else self.target[where]


@dataclass(frozen=True)
class CoefficientTerm(TowardsTerm):
    """Coefficients L of parts moved towards others, L + alpha (L' - L).

    What is added is the least that does so, B' (L' - L) (Q Q')^+ Q with B = (A A')^+ A,
    for appearances A and parts Q in rows; with a mask m * (A' (L' - L) P), whose L' - L
    are of all parts P. L' is the target, ([N,] R_C, R_S).

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
        """As of :class:`Term`."""
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
    """Activations at a part moved towards others, alpha m * (Z' - Z).

    Z' is the target, ([N,] C, S).
    """

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As of :class:`Term`."""
        mask = place.mask.to(Z).unsqueeze(-2)
        return _each(alpha, Z) * mask * (prepared.to(Z) - Z)


@dataclass(frozen=True)
class DonorTerm(FeatureTerm):
    """The same, with those of other latents of the network for each sample.

    Attributes
    ----------
    target : Tensor of shape (N, ...)
        The latents.
    maps : callable
        Activations in the network's layout -> (n, C, S).
    """

    maps: Callable[[Tensor], Tensor]

    def is_of_rows(self) -> bool:
        """As of :class:`Term`."""
        return True

    def prepared(self, latents: Any, where: Any, alpha: Tensor, take: Take) -> Tensor:
        """The activations at the donors' latents."""
        return self.maps(take(self.target[where]))


@dataclass(frozen=True)
class LatentTerm(Term):
    """Activations at moved latents in the place of those at a part.

    m * (Z(z + alpha d) - Z).

    Attributes
    ----------
    direction : Tensor of shape latent_shape or (N, *latent_shape)
        d.
    each : bool
        Whether there is one for each sample.
    maps : callable
        Activations in the network's layout -> (n, C, S).
    """

    direction: Tensor
    each: bool
    maps: Callable[[Tensor], Tensor]

    def is_of_rows(self) -> bool:
        """As of :class:`Term`."""
        return True

    def prepared(self, latents: Any, where: Any, alpha: Tensor, take: Take) -> Tensor:
        """The activations at the moved latents."""
        direction = self.direction[where] if self.each else self.direction
        alpha = alpha.reshape(-1, *[1] * (latents.ndim - 1))
        moved = latents + alpha.to(latents) * direction.to(latents)
        return self.maps(take(moved))

    def added(self, Z: Tensor, place: Place, alpha: Tensor, prepared: Tensor) -> Tensor:
        """As of :class:`Term`."""
        return place.mask.to(Z).unsqueeze(-2) * (prepared.to(Z) - Z)


def _each(alpha: Tensor, Z: Tensor) -> Tensor:
    """Strengths as factors of the samples of (n, C, S)."""
    return alpha.to(Z).reshape(-1, 1, 1)
