"""How similar images remain outside a region.

Imports torch; torchmetrics, the extra "metrics", is imported only where it is used.
"""

from __future__ import annotations

from torch import Tensor

from panda_sklearn.utils.optional import needed

__all__ = ["LEAST", "check_similarity", "outside_psnr", "outside_ssim"]


# Pixels that SSIM needs on each axis: more than half of its windows' eleven.
LEAST = 6


def check_similarity(spatial: tuple[int, ...]) -> None:
    """Raise unless images of these sizes can be compared by SSIM.

    Raises
    ------
    ValueError
        If they do not have two or three axes, or one is too short.
    ImportError
        If torchmetrics is not installed.
    """
    if len(spatial) not in (2, 3) or min(spatial) < LEAST:
        raise ValueError(
            "SSIM needs images of two or three spatial axes, of at least "
            f"{LEAST} pixels each; these have the spatial shape {tuple(spatial)}."
        )
    needed("torchmetrics", "torchmetrics")


def outside_ssim(
    mask: Tensor, images: Tensor, edited: Tensor, value_range: tuple[float, float]
) -> Tensor:
    """Mean local similarity of each image, weighted by 1 - M, of shape (n,).

    Parameters
    ----------
    mask : Tensor of shape (n or 1, *spatial)
        M.

    images, edited : Tensor of shape (n, channels, *spatial)
        Clipped to the range.

    value_range : tuple of float
        Values of black and white.
    """
    check_similarity(tuple(images.shape[2:]))
    library = needed("torchmetrics.functional.image", "torchmetrics")
    before, after = (x.double().clamp(*value_range) for x in (images, edited))
    _, local = library.structural_similarity_index_measure(
        after,
        before,
        data_range=value_range[1] - value_range[0],
        reduction="none",
        return_full_image=True,
    )
    weights = (1 - mask).to(local).unsqueeze(1).expand_as(local)
    return (weights * local).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1)


def outside_psnr(
    mask: Tensor, images: Tensor, edited: Tensor, value_range: tuple[float, float]
) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels, of shape (n,).

    From the mean squared change weighted by 1 - M; infinite where nothing changes.
    Parameters are those of :func:`outside_ssim`.
    """
    library = needed("torchmetrics.functional.image", "torchmetrics")
    weights = (1 - mask).to(images).double().unsqueeze(1)
    weights = weights / weights.flatten(1).mean(dim=1).reshape(-1, *[1] * (mask.ndim))
    before, after = (
        x.double().clamp(*value_range) * weights.sqrt() for x in (images, edited)
    )
    return library.peak_signal_noise_ratio(
        after,
        before,
        data_range=value_range[1] - value_range[0],
        reduction="none",
        dim=tuple(range(1, images.ndim)),
    )
