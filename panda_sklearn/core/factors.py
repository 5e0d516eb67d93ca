"""The factors of a fit, and what they make of samples.

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
        """The same, on a device and of a type."""
        return replace(self, A=self.A.to(device, dtype), P=self.P.to(device, dtype))

    def encode(self, Z: Tensor) -> Tensor:
        """Coefficients (N, R_C, R_S) of samples (N, C, S), equation (2)."""
        return self.A.T @ (Z @ self.P)

    def decode(self, L: Tensor) -> Tensor:
        """Samples (N, C, S) from coefficients (N, R_C, R_S)."""
        return torch.einsum("cr,nrk->nck", self.A, L) @ self.P.T

    def saliency(self, Z: Tensor) -> Tensor:
        """How much of each appearance there is where, (N, R_C, S), section 4.1."""
        return self.A.T @ Z

    def objective(self, Z: Tensor) -> Tensor:
        """The objective (3), a scalar."""
        return total_objective(Z, self.A, self.P)

    def sample_objectives(self, Z: Tensor, parts: Tensor | None = None) -> Tensor:
        """The objective (6) of each sample, (N,), with parts (N, R_S, S) of its own."""
        P = self.P.expand(len(Z), *self.P.shape) if parts is None else parts.mT
        return sample_objectives(Z, self.A, P)
