"""The factors of a fit, and what they compute from samples.

Notation as in :mod:`panda_sklearn.core.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from panda_sklearn.core.constraint import Constraint
from panda_sklearn.core.objective import sample_objectives, total_objective

__all__ = ["Factors"]


@dataclass(frozen=True)
class Factors:
    """Appearances and parts.

    Attributes
    ----------
    A : Tensor of shape (C, R_C)

    P : Tensor of shape (S, R_S)

    constraint : Constraint
        What P may be.
    """

    A: Tensor
    P: Tensor
    constraint: Constraint

    def to(self, device: torch.device, dtype: torch.dtype) -> Factors:
        """Return the same on a device and of a type."""
        return replace(self, A=self.A.to(device, dtype), P=self.P.to(device, dtype))

    def encode(self, Z: Tensor) -> Tensor:
        """Return coefficients (N, R_C, R_S) of samples (N, C, S), equation (2)."""
        return self.A.T @ (Z @ self.P)

    def decode(self, L: Tensor) -> Tensor:
        """Return samples (N, C, S) made of coefficients (N, R_C, R_S)."""
        return torch.einsum("cr,nrk->nck", self.A, L) @ self.P.T

    def saliency(self, Z: Tensor) -> Tensor:
        """Return how much of each appearance is where, (N, R_C, S), section 4.1."""
        return self.A.T @ Z

    def objective(self, Z: Tensor) -> Tensor:
        """Return the objective (3), a scalar."""
        return total_objective(Z, self.A, self.P)

    def sample_objectives(self, Z: Tensor, parts: Tensor | None = None) -> Tensor:
        """Return the objective (6) of each sample, (N,), at its own parts or at P.

        ``parts`` are of shape (N, R_S, S).
        """
        P = self.P.expand(len(Z), *self.P.shape) if parts is None else parts.mT
        return sample_objectives(Z, self.A, P)
