"""Measures of images: how local an edit is, and how far two sets of images are apart.

Imports numpy and torch; POT and torchmetrics, the extra "metrics", are imported only
when used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.generators._calls import device_of, dtype_of
from panda_sklearn.utils import similarity
from panda_sklearn.utils.arrays import ArrayLike, as_tensor
from panda_sklearn.utils.borrowing import borrow
from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.regions import masked_norms, ratios
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_count,
    check_finite,
    check_flag,
    check_function,
    check_mask,
    check_random_state,
    check_value_range,
    check_values,
)

__all__ = [
    "frechet_distance",
    "outside_psnr",
    "outside_ssim",
    "roi_ratio",
    "sliced_wasserstein_distance",
]

# Changes are measured for this many images at a time, and at most this many values.
BATCH_SIZE = 64
BATCH_VALUES = 2**22


def roi_ratio(
    mask: ArrayLike, images: ArrayLike, edited: ArrayLike, *, average: bool = True
) -> float | np.ndarray:
    r"""Measure how much an edit changes outside a region, relative to inside.

    Equation (7) of [1]_: the mean over samples of

    .. math::

        \frac{\lVert (1 - M) * (x_i - x'_i) \rVert}{\lVert M * (x_i - x'_i) \rVert},

    with unsquared norms over pixels and colours. Lower is more local. The ratio depends
    on the size of the region: compare edits on the same region.

    Parameters
    ----------
    mask : array of shape (\*spatial) or (n_samples, \*spatial)
        M, the region: values from 0 to 1, or booleans; the same for all colours.

    images : array of shape (n_samples, n_colors, \*spatial)
        Images before the edit.

    edited : array of shape (n_samples, n_colors, \*spatial)
        The same images after it.

    average : bool, default=True
        Whether to return the mean over samples.

    Returns
    -------
    ratio : float, or ndarray of shape (n_samples,)
        The mean; or, with ``average=False``, the ratio of each sample. It is infinite
        for a sample that changes only outside, and NaN for one that does not change.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, shapes do not fit, values are not finite, or
        the mask's are not from 0 to 1.

    Warns
    -----
    UserWarning
        If some samples do not change at all. The mean leaves them out, and is NaN if
        there are no others.

    See Also
    --------
    panda_sklearn.LocalEditor.rank_edits : Ranks appearances and parts by this ratio.

    References
    ----------
    .. [1] J. Oldfield, C. Tzelepis, Y. Panagakis, M. A. Nicolaou, I. Patras. "PandA:
       Unsupervised Learning of Parts and Appearances in the Feature Maps of GANs".
       International Conference on Learning Representations (ICLR), 2023.
       https://arxiv.org/abs/2206.00048

    Examples
    --------
    >>> import numpy as np
    >>> from panda_sklearn.metrics import roi_ratio
    >>> images, mask = np.zeros((2, 3, 4, 4)), np.zeros((4, 4))
    >>> mask[:2] = 1
    >>> edited = images + 2.0  # inside and outside alike
    >>> roi_ratio(mask, images, edited)
    1.0
    >>> edited[:, :, 2:] = 0.5  # a quarter of it outside
    >>> roi_ratio(mask, images, edited)
    0.25
    """
    check_flag("average", average)

    def measure(region: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return ratios(*masked_norms(region, after.double() - before.double()))

    each = _of_each(measure, mask, images, edited)
    if not average:
        return each
    unchanged = np.isnan(each)
    if unchanged.any():
        warnings.warn(
            f"{unchanged.sum()} of {len(each)} images do not change at all; they have "
            "no ratio and are left out of the mean.",
            UserWarning,
            stacklevel=2,
        )
    return float(each[~unchanged].mean()) if not unchanged.all() else float("nan")


def outside_ssim(
    mask: ArrayLike,
    images: ArrayLike,
    edited: ArrayLike,
    *,
    value_range: tuple[float, float] = (-1, 1),
    average: bool = True,
) -> float | np.ndarray:
    r"""Measure how similar images remain outside a region, by structural similarity.

    The mean of the structural similarity [1]_ around each pixel, weighted with
    :math:`1 - M`. Computed by torchmetrics, which the extra "metrics" brings.

    Parameters
    ----------
    mask : array of shape (\*spatial) or (n_samples, \*spatial)
        M, the region: values from 0 to 1, or booleans; the same for all colours.

    images : array of shape (n_samples, n_colors, \*spatial)
        Images before the edit, with two or three spatial axes.

    edited : array of shape (n_samples, n_colors, \*spatial)
        The same images after it.

    value_range : tuple of float, default=(-1, 1)
        Values of black and white, to which images are clipped first, as pictures are.

    average : bool, default=True
        Whether to return the mean over samples.

    Returns
    -------
    similarity : float, or ndarray of shape (n_samples,)
        The mean; or, with ``average=False``, that of each sample. 1 if nothing changes.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, shapes do not fit, values are not finite, the
        mask's are not from 0 to 1, nothing is outside of it, or images do not have two
        or three spatial axes of at least 6 pixels.
    ImportError
        If torchmetrics is not installed.

    See Also
    --------
    outside_psnr : Measures the size of the change.

    References
    ----------
    .. [1] Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli. "Image Quality
       Assessment: From Error Visibility to Structural Similarity". IEEE Transactions
       on Image Processing, 2004.
    """
    return _outside(similarity.outside_ssim, mask, images, edited, value_range, average)


def outside_psnr(
    mask: ArrayLike,
    images: ArrayLike,
    edited: ArrayLike,
    *,
    value_range: tuple[float, float] = (-1, 1),
    average: bool = True,
) -> float | np.ndarray:
    r"""Measure how little images change outside a region, in decibels.

    The peak signal-to-noise ratio :math:`10 \log_{10} (r^2 / e)`, with r the width of
    ``value_range`` and e the mean squared change, weighted with :math:`1 - M`. Computed
    by torchmetrics, which the extra "metrics" brings.

    Parameters
    ----------
    mask : array of shape (\*spatial) or (n_samples, \*spatial)
        M, the region: values from 0 to 1, or booleans; the same for all colours.

    images : array of shape (n_samples, n_colors, \*spatial)
        Images before the edit.

    edited : array of shape (n_samples, n_colors, \*spatial)
        The same images after it.

    value_range : tuple of float, default=(-1, 1)
        Values of black and white, to which images are clipped first, as pictures are.

    average : bool, default=True
        Whether to return the mean over samples.

    Returns
    -------
    ratio : float, or ndarray of shape (n_samples,)
        The mean; or, with ``average=False``, that of each sample. Infinite, as is the
        mean, if nothing changes outside in an image.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, shapes do not fit, values are not finite, the
        mask's are not from 0 to 1, or nothing is outside of it.
    ImportError
        If torchmetrics is not installed.

    See Also
    --------
    outside_ssim : Measures the change of structure.
    """
    return _outside(similarity.outside_psnr, mask, images, edited, value_range, average)


def sliced_wasserstein_distance(
    X: ArrayLike,
    Y: ArrayLike,
    *,
    n_projections: int = 500,
    random_state: int | np.random.RandomState | None = None,
) -> float:
    r"""Measure how far apart two sets of images, or of features, are.

    The sliced Wasserstein-2 distance [1]_ of the samples as points: the root of the
    mean, over random directions, of the squared Wasserstein distance of their
    projections. Computed by POT [2]_, which the extra "metrics" brings.

    Parameters
    ----------
    X : array of shape (n_samples, ...)
        Samples; axes after the first are flattened.

    Y : array of shape (n_others, ...)
        Other samples, with the same axes after the first.

    n_projections : int, default=500
        Number of random directions.

    random_state : int, RandomState instance or None, default=None
        Draws the directions. Pass an int for the same directions at every call, which
        makes distances comparable.

    Returns
    -------
    distance : float
        At least 0, in the units of the samples' values. Two draws from the same
        distribution are not at distance 0: compare with theirs.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, shapes do not fit or values are not finite.
    ImportError
        If POT is not installed.

    References
    ----------
    .. [1] J. Rabin, G. Peyre, J. Delon, M. Bernot. "Wasserstein Barycenter and Its
       Application to Texture Mixing". Scale Space and Variational Methods in Computer
       Vision (SSVM), 2011.
    .. [2] R. Flamary et al. "POT: Python Optimal Transport". Journal of Machine
       Learning Research 22(78), 2021. https://pythonot.github.io
    """
    ot = needed("ot", "POT")
    n_projections = check_count("n_projections", n_projections)
    random = check_random_state(random_state)
    one, two = _samples(X, Y)
    directions = random.normal(size=(one.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    with one.device:  # whatever the process's default is
        distance = ot.sliced_wasserstein_distance(
            one, two, projections=torch.from_numpy(directions).to(one)
        )
    return float(distance)


def frechet_distance(
    X: ArrayLike,
    Y: ArrayLike,
    *,
    network: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 32,
) -> float:
    r"""Measure how far apart two sets of images are in the features of a network.

    The Frechet distance [1]_ of two normal distributions with the features' means and
    covariances, :math:`\lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}(\Sigma_1 +
    \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})`. With features of an Inception network it
    is the FID. Computed by torchmetrics, which the extra "metrics" brings.

    Parameters
    ----------
    X : array of shape (n_samples, ...)
        Features, of shape (n_samples, n_features); or, with a network, its inputs.

    Y : array of shape (n_others, ...)
        Others of the same kind.

    network : callable, default=None
        Returns features, a tensor (n, n_features), of a batch of samples. A
        ``torch.nn.Module`` is run in evaluation mode, without gradients, on its own
        device. ``None`` takes the samples as features.

    batch_size : int, default=32
        Number of samples that the network is run on at a time.

    Returns
    -------
    distance : float
        At least 0. The estimate from few samples is too large: compare sets of the same
        size, preferably with more samples than features.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, shapes do not fit, values are not finite, or
        there are fewer than two samples.
    ImportError
        If torchmetrics is not installed.

    References
    ----------
    .. [1] M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter. "GANs
       Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium".
       Advances in Neural Information Processing Systems (NeurIPS), 2017.
    """
    fid = needed("torchmetrics.image.fid", "torchmetrics")
    batch_size = check_count("batch_size", batch_size)
    check_function("network", network, "samples")
    one, two = (check_values(samples, name) for samples, name in ((X, "X"), (Y, "Y")))
    if min(len(one), len(two)) < 2:
        raise ValueError(
            "X and Y must have at least two samples each, got "
            f"{len(one)} and {len(two)}."
        )
    one, two = (_features(samples, network, batch_size) for samples in (one, two))
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
        raise ValueError(
            "Features must be of shape (n_samples, n_features), with the same "
            f"n_features for X and Y; got {tuple(one.shape)} and {tuple(two.shape)}. "
            "Pass a network that returns such features."
        )
    given: Any = nn.Identity()
    given.num_features = one.shape[1]
    with one.device:  # whatever the process's default is
        metric = fid.FrechetInceptionDistance(feature=given).to(one.device)
        metric.update(one, real=True)
        metric.update(two, real=False)
        distance = float(metric.compute())
    return max(distance, 0.0)  # rounding may take a distance of 0 below it


def _features(samples: ArrayLike, network: Callable | None, batch_size: int) -> Tensor:
    """Features of all samples in double precision."""
    tensor = as_tensor(samples)
    if network is None:
        return tensor.double()
    found = []
    with Undo() as undo, undo:
        device, dtype = tensor.device, tensor.dtype
        if isinstance(network, nn.Module):
            device, dtype = device_of(network, device), dtype_of(network, dtype)
            borrow(undo, network)
        for batch in tensor.split(batch_size):
            # A copy: the network may write into its inputs.
            made = network(batch.to(device=device, dtype=dtype, copy=True))
            if not isinstance(made, Tensor):
                raise TypeError(
                    "network must return a tensor of features, got a "
                    f"{type(made).__name__}."
                )
            found.append(made.detach().to(torch.float64, copy=True))
    features = torch.cat(found)
    check_finite(features, "features")
    return features


def _outside(
    measure: Callable,
    mask: Any,
    images: Any,
    edited: Any,
    value_range: Any,
    average: Any,
) -> Any:
    """A measure outside the mask, of each image or averaged."""
    check_flag("average", average)
    value_range = check_value_range(value_range)

    def of_some(region: Tensor, before: Tensor, after: Tensor) -> Tensor:
        if bool((region == 1).flatten(1).all(dim=1).any()):
            raise ValueError("mask is 1 everywhere: nothing is outside of it.")
        return measure(region, before, after, value_range)

    each = _of_each(of_some, mask, images, edited)
    return float(each.mean()) if average else each


def _of_each(
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],
    mask: Any,
    images: Any,
    edited: Any,
) -> np.ndarray:
    """A measure of (region, images, edited) for each sample, computed in batches."""
    before, after = _pair(images, edited)
    region = check_mask(mask, "mask", "([n_samples,] *spatial)")
    spatial = tuple(before.shape[2:])
    if tuple(region.shape) not in (spatial, (len(before), *spatial)):
        raise ValueError(
            f"mask must be of shape {spatial}, or with {len(before)} samples before it,"
            f" got {tuple(region.shape)}."
        )
    region = region.reshape(-1, *spatial).to(before)
    found = []
    size = max(1, min(BATCH_SIZE, BATCH_VALUES // before[0].numel()))
    for start in range(0, len(before), size):
        where = slice(start, start + size)
        some = region if len(region) == 1 else region[where]
        found.append(measure(some, before[where], after[where]).cpu())
    return torch.cat(found).numpy()


def _pair(images: Any, edited: Any) -> tuple[Tensor, Tensor]:
    """Images before and after, as tensors of the same shape."""
    shape = "(n_samples, n_colors, *spatial)"
    before = check_values(images, "images", shape)
    after = check_values(edited, "edited", shape)
    if before.ndim < 3 or tuple(before.shape) != tuple(after.shape):
        raise ValueError(
            f"images and edited must be of the same shape {shape}, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}."
        )
    return as_tensor(before), as_tensor(after)


def _samples(X: Any, Y: Any) -> tuple[Tensor, Tensor]:
    """Samples of both, flattened and in double precision."""
    one, two = check_values(X, "X"), check_values(Y, "Y")
    if tuple(one.shape[1:]) != tuple(two.shape[1:]):
        raise ValueError(
            "Samples of X and Y must be of the same shape, got "
            f"{tuple(one.shape[1:])} and {tuple(two.shape[1:])}."
        )
    return as_tensor(one).flatten(1).double(), as_tensor(two).flatten(1).double()
