"""How much images change inside a region and outside (equation (7) of the paper).

Imports torch alone.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["change_inside", "masked_norms", "ratios"]


def masked_norms(mask: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """||M * D|| and ||(1 - M) * D|| of each sample, of shape (n,), in float64.

    Parameters
    ----------
    mask : Tensor of shape (n or 1, *spatial)
        M, repeated along the channels.

    change : Tensor of shape (n, channels, *spatial)
        D.
    """
    change = change.double() if change.device.type != "mps" else change
    mask = mask.to(change).unsqueeze(1)
    return (
        (mask * change).flatten(1).norm(dim=1),
        ((1 - mask) * change).flatten(1).norm(dim=1),
    )


def ratios(inside: Tensor, outside: Tensor) -> Tensor:
    """Outside / inside; infinite if only the outside changes, NaN if nothing does."""
    return outside / inside


def change_inside(mask: Tensor, change: Tensor) -> Tensor:
    """||M * D|| / ||M||: root mean square change of the region, of shape (n,)."""
    inside, _ = masked_norms(mask, change)
    size = mask.to(inside).flatten(1).norm(dim=1) * change.shape[1] ** 0.5
    return inside / size
