"""Latents whose images match given ones.

Floor 3: see :mod:`panda_sklearn.editing`.

Latents are sought in coordinates u in which those of the generator's distribution have
mean 0 and covariance 1, row by row of their last axis: steps are then alike in all
directions, and ||u||^2 says how unusual a latent is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    check_latents,
    run_of,
    running_device,
    takes_floats,
)
from panda_sklearn.generators import sample_latents
from panda_sklearn.generators._calls import Run
from panda_sklearn.utils.arrays import ArrayLike, Origin, as_tensor, promoted, randomness
from panda_sklearn.utils.batches import Batches, users_level
from panda_sklearn.utils.similarity import LEAST, needed
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_count,
    check_fits,
    check_function,
    check_is_fitted,
    check_kind,
    check_number,
    check_parameters,
    check_random_state,
    check_value_range,
    check_values,
    check_verbose,
)

__all__ = ["Inversion", "invert"]

# Latents drawn to know their distribution, and images among which starts are chosen.
N_DRAWN, N_CANDIDATES = 10_000, 500
# The generator's own images that are inverted beside the others, as a yardstick.
N_OWN = 2
# An image is matched badly if its residual is above this, and above so many times that
# of the generator's own.
BAD, TIMES = 0.05, 3.0

# Standard deviations of latents below this share of the largest are taken for it.
LEAST_SPREAD = 1e-2
# Images are compared at their size, halved, and so on while they have so many pixels.
SMALLEST = 16
# Pixels on the longest side of the images by which starts are chosen.
COARSE = 16
# Weight of 1 - SSIM beside the squared error, as a share of the variance.
SIMILARITY = 0.5


@dataclass(frozen=True)
class Inversion:
    r"""Latents that were found for images, and how far off their images are.

    Can be unpacked as ``latents, residuals = inversion``.

    Attributes
    ----------
    latents : array of shape (n_images, \*latent_shape)
        Of the best start each.

    residuals : array of shape (n_images,)
        Squared error of the generated image as a share of the given one's variance over
        its pixels (about each colour's mean): 0 is a match, 1 no better than one colour.

    images : array of shape (n_images, \*image_shape)
        What the generator makes of the latents.

    differences : array of shape (n_images, \*image_shape)
        The given images less these.

    own_residuals : array of shape (2,)
        Residuals of two of the generator's own images, found in the same way: what can
        be expected of this generator, these latents and this many steps.
    """

    latents: ArrayLike
    residuals: ArrayLike
    images: ArrayLike
    differences: ArrayLike
    own_residuals: ArrayLike

    def __iter__(self) -> Iterator[ArrayLike]:
        yield self.latents
        yield self.residuals


def invert(
    extractor: GeneratorFeatureExtractor,
    images: ArrayLike,
    *,
    samples: ArrayLike | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    prior: float = 0.005,
    n_steps: int = 300,
    n_starts: int = 8,
    learning_rate: float = 0.1,
    value_range: tuple[float, float] | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> Inversion:
    r"""Find latents whose images match given ones.

    By Adam through the network, from several starts, of which fewer and fewer go on.
    What is found are latents as the extractor takes them: with a ``forward`` that takes
    a code for each layer, such as ``StyleGAN2(latent_space="w+")``, those, which match
    photographs far better than inputs of the mapping network do.

    Parameters
    ----------
    extractor : GeneratorFeatureExtractor
        Fitted, of the generator; which layer does not matter.

    images : array of shape (n_images, \*image_shape)
        In the generator's units, such as -1 for black and 1 for white, and with what is
        in them where the generator has it: see :func:`align_face`.

    samples : array of shape (n_samples, \*latent_shape), default=None
        Latents of the distribution that the generator was trained on, some hundred at
        least: starts are taken from them, and what is found is kept near them.
        ``None`` draws them with ``sample_latents``.

    loss : callable, default=None
        ``loss(images, targets)`` gives the losses, (n,), of generated images, a tensor
        (n, \*image_shape) that can be differentiated, against those that they are to
        match. ``None`` is the squared error as a share of the target's variance and, of
        images of two or three axes, half of 1 - SSIM; means over the images' size, half
        of it and so on down to 16 pixels. That needs the extra "metrics".

    prior : float, default=0.005
        How much the loss grows with the squared distance of the latents from their mean
        in units of their covariance, a mean over their numbers, which is 1 for what is
        usual. More gives likelier latents, which are edited better, and images less
        like the given ones.

    n_steps : int, default=300
        Steps of the best start. In the first half of them the number of starts is
        halved several times.

    n_starts : int, default=8
        Half of them the samples whose images are most like the given one, the others
        at random. Inputs of mapping networks need several; with codes 1 is enough.

    learning_rate : float, default=0.1
        Length of the first steps, in standard deviations of the latents; it falls to 0
        in the second half.

    value_range : tuple of float, default=None
        Values of black and white that images are clipped to, as pictures are, before
        they are compared; ``None`` compares values as they are.

    random_state : int, RandomState instance or None, default=None
        Pass an int for reproducible results.

    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    inversion : Inversion
        Latents, how far off each image is, the images and their differences from the
        given ones. It unpacks as ``latents, residuals = invert(...)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, images are of another shape than the
        generator's or of values of another order, latents are integers or have classes
        in them, or the network cannot be differentiated.
    ImportError
        If the loss is not given and torchmetrics is not installed.

    Warns
    -----
    UserWarning
        If an image is matched much worse than two of the generator's own, which are
        inverted beside it; it says what to try.

    See Also
    --------
    align_face : Crops a photograph as the face generator's images are.

    References
    ----------
    R. Abdal, Y. Qin, P. Wonka. "Image2StyleGAN: How to Embed Images Into the StyleGAN
    Latent Space?" ICCV, 2019, for codes of each layer; P. Zhu, R. Abdal, Y. Qin, J.
    Femiani, P. Wonka. "Improved StyleGAN Embedding: Where are the Good Latents?" 2020,
    for coordinates in which the codes' covariance is 1.

    Examples
    --------
    >>> from panda_sklearn import GeneratorFeatureExtractor
    >>> from panda_sklearn.datasets import load_face_generator
    >>> from panda_sklearn.editing import invert
    >>> from panda_sklearn.generators import StyleGAN2, sample_latents
    >>> generator, codes = load_face_generator(), StyleGAN2(latent_space="w+")
    >>> latents = sample_latents(generator, 2, random_state=0, forward=codes)
    >>> extractor = GeneratorFeatureExtractor(generator, "block8", forward=codes)
    >>> images = extractor.fit(latents).generate(latents)
    >>> found, residuals = invert(
    ...     extractor, images, n_steps=60, n_starts=1, random_state=0
    ... )
    >>> found.shape
    torch.Size([2, 5, 128])
    """
    check_kind("extractor", extractor, GeneratorFeatureExtractor)
    check_is_fitted(extractor)
    check_parameters(extractor)
    if not takes_floats(extractor):
        raise ValueError(
            "The latents are integers, such as classes or numbers of tokens, among "
            "which there is no way from one to the next: they cannot be found so."
        )
    given, origin = _check_images(images, extractor)
    check_function("loss", loss, "images, targets")
    prior = check_number("prior", prior, at_least=0)
    n_steps, n_starts = (
        check_count(name, value)
        for name, value in (("n_steps", n_steps), ("n_starts", n_starts))
    )
    learning_rate = check_single("learning_rate", learning_rate, above=0)
    if value_range is not None:
        value_range = check_value_range(value_range)
    verbose = check_verbose(verbose)
    similar = given.ndim in (4, 5) and min(given.shape[2:]) >= LEAST
    if loss is None and similar:
        needed("torchmetrics", "torchmetrics")
    random_state = check_random_state(random_state)
    drawn = _drawn(extractor, samples, random_state)
    generator = randomness(random_state)
    picked = torch.randperm(len(drawn), generator=generator)[: N_CANDIDATES + N_OWN]
    own, candidates = drawn[picked[:N_OWN]], drawn[picked[N_OWN:]]
    space = Space.of(drawn)
    device = running_device(extractor)
    with Undo() as undo, undo:
        run = run_of(extractor, undo)
        size = extractor.batch_size
        targets = torch.cat([given.to(device), _images(run, own, size)])
        starts = _starts(run, candidates, targets, n_starts, size, generator)
        search = Search(run, space, Match(targets, loss, value_range), prior, size)
        with tqdm(
            total=n_steps, desc="Inversion", disable=not verbose, mininterval=1
        ) as bar:
            u = search.run(
                space.coordinates(candidates[starts]), n_steps, learning_rate, bar.update
            )
        latents = space.latents(u)
        made = _images(run, latents, size)
    residuals = _residuals(made, targets, value_range)
    n = len(given)
    _warn(residuals[:n], residuals[n:])
    return Inversion(
        origin.give(latents[:n]),
        origin.give(residuals[:n]),
        origin.give(made[:n]),
        origin.give(targets[:n] - made[:n]),
        origin.give(residuals[n:]),
    )


@dataclass(frozen=True)
class Space:
    """Latents as coordinates of mean 0 and covariance 1, by rows of their last axis.

    Attributes
    ----------
    mean : Tensor of shape (n_rows, d)
    spread, back : Tensor of shape (n_rows, d, d)
        Coordinates to latents, about the mean, and back.
    shape : tuple of int
        Of one sample's latents.
    """

    mean: Tensor
    spread: Tensor
    back: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, drawn: Tensor) -> Space:
        """By samples (N, *latent_shape)."""
        rows = drawn.reshape(len(drawn), -1, drawn.shape[-1]).transpose(0, 1).cpu()
        wide = rows.double()  # (n_rows, N, d)
        mean = wide.mean(dim=1, keepdim=True)
        about = wide - mean
        covariance = about.mT @ about / len(drawn)
        # Of few samples covariances are not known: towards those of single numbers.
        d = wide.shape[-1]
        single = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        covariance = torch.lerp(covariance, single, d / (len(drawn) + d))
        values, vectors = torch.linalg.eigh(covariance)
        stds = values.clamp(min=0).sqrt()
        least = LEAST_SPREAD * stds.amax(dim=1, keepdim=True)
        stds = torch.where(stds > 0, torch.maximum(stds, least), least)
        stds = torch.where(stds > 0, stds, 1.0)  # the latents are all alike
        spread = stds[:, :, None] * vectors.mT
        back = vectors / stds[:, None]
        found = (x.to(drawn.device, torch.float32) for x in (mean[:, 0], spread, back))
        return cls(*found, tuple(drawn.shape[1:]))

    def latents(self, u: Tensor) -> Tensor:
        """Latents (n, *latent_shape) at coordinates (n, n_rows, d)."""
        moved = torch.einsum("nrd,rdk->nrk", u, self.spread)
        return (self.mean + moved).reshape(len(u), *self.shape)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Coordinates (n, n_rows, d) of latents (n, *latent_shape)."""
        rows = latents.reshape(len(latents), *self.mean.shape).to(self.mean)
        return torch.einsum("nrk,rkd->nrd", rows - self.mean, self.back)


class Match:
    """How unlike images are to their targets.

    Parameters
    ----------
    targets : Tensor of shape (n_targets, *image_shape)

    loss : callable or None

    value_range : tuple of float or None
    """

    def __init__(
        self,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        value_range: tuple[float, float] | None,
    ) -> None:
        self.value_range = value_range
        self.targets = _clipped(targets, value_range)
        self.variance = _variance(self.targets)
        self.loss = loss
        low, high = value_range or torch.aminmax(targets)
        self.width = float(high - low)
        spatial = targets.shape[2:]
        self.similar = len(spatial) in (2, 3) and min(spatial) >= LEAST

    def losses(self, images: Tensor, of: Tensor) -> Tensor:
        """Of images (n, ...) for the targets numbered ``of`` (n,)."""
        images, targets = _clipped(images, self.value_range), self.targets[of]
        if self.loss is None:
            return self._default(images, targets, self.variance[of])
        found = self.loss(images, targets)
        if not isinstance(found, Tensor) or tuple(found.shape) != (len(images),):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else None
            raise ValueError(
                f"loss must give a tensor of shape ({len(images)},), one loss for each "
                f"image, got {what or type(found).__name__}."
            )
        return found

    def _default(self, images: Tensor, targets: Tensor, variance: Tensor) -> Tensor:
        spatial = images.shape[2:]
        total = (images - targets).square().flatten(1).mean(dim=1) / variance
        if self.similar:
            library = needed("torchmetrics.functional.image", "torchmetrics")
            total = total + SIMILARITY * (
                1
                - library.structural_similarity_index_measure(
                    images, targets, data_range=self.width, reduction="none"
                )
            )
        if not 1 <= len(spatial) <= 3 or min(spatial) < 2 * SMALLEST:
            return total
        halve = getattr(functional, f"avg_pool{len(spatial)}d")
        n = 1 + _n_halvings(min(spatial))
        smaller = self._default(halve(images, 2), halve(targets, 2), variance)
        return (total + (n - 1) * smaller) / n


def _n_halvings(size: int) -> int:
    """How often images of so many pixels are halved."""
    return 0 if size < 2 * SMALLEST else 1 + _n_halvings(size // 2)


@dataclass
class Search:
    """The search for coordinates.

    Attributes
    ----------
    run : callable
        Latents -> images, of a network that is borrowed.
    space : Space
    match : Match
    prior : float
    batch_size : int
    """

    run: Run
    space: Space
    match: Match
    prior: float
    batch_size: int

    def run_stages(self) -> None: ...
