"""Latents whose images match given ones.

Checks the input, chooses where to start, and reports the result; the search itself is
in :mod:`panda_sklearn.editing._search`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from panda_sklearn.editing._search import Match, Search, Space, clipped, variance_of
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    check_latents,
    length_of_batches,
    run_of,
    running_device,
    takes_floats,
)
from panda_sklearn.generators import sample_latents
from panda_sklearn.generators._calls import Run
from panda_sklearn.generators._latents import reads_classes
from panda_sklearn.utils.arrays import (
    ArrayLike,
    Origin,
    as_tensor,
    promoted,
    randomness,
)
from panda_sklearn.utils.batches import Batches, users_level
from panda_sklearn.utils.optional import needed
from panda_sklearn.utils.similarity import LEAST
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_count,
    check_fits,
    check_function,
    check_is_fitted,
    check_kind,
    check_parameters,
    check_random_state,
    check_single,
    check_value_range,
    check_values,
    check_verbose,
)

__all__ = ["Inversion", "invert"]

# Latents drawn to estimate their distribution, and those among which starts are chosen.
N_DRAWN, N_CANDIDATES = 10_000, 500
# Most elements of the latents drawn, unless that leaves too few candidates.
MOST_NUMBERS = 2**26
# The generator's own images that are inverted beside the others, as a yardstick.
N_OWN = 2
# An image is matched badly if its residual exceeds BAD and TIMES that of the
# generator's own images, or if it exceeds WORST.
BAD, TIMES, WORST = 0.15, 3.0, 0.5
# Images with values this many times the generator's are in other units.
FAR = 3.0
# Most pixels on a side of the images by which starts are chosen.
COARSE = 16


@dataclass(frozen=True, eq=False)
class Inversion:
    r"""Latents found for images, and how far their images are from the given ones.

    Can be unpacked as ``latents, residuals = inversion``.

    Parameters
    ----------
    latents : array of shape (n_images, \*latent_shape)
        Latents from the best start for each image.

    residuals : array of shape (n_images,)
        Squared error of the generated image, as a fraction of the given image's
        variance over its pixels, about each colour's mean. 0 is a match, 1 no better
        than one colour.

    images : array of shape (n_images, \*image_shape)
        The generator's images of the latents.

    differences : array of shape (n_images, \*image_shape)
        The given images minus ``images``.

    own_residuals : array of shape (2,)
        Residuals of two of the generator's own images, inverted in the same way: what
        to expect of this generator, these latents and this many steps.
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
    n_starts: int = 4,
    learning_rate: float = 0.1,
    value_range: tuple[float, float] | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> Inversion:
    r"""Find latents whose images match given ones.

    Uses Adam through the network, from several starts that are gradually dropped. It
    finds latents as the extractor takes them. With a ``forward`` that takes a code for
    each layer, such as ``StyleGAN2(latent_space="w+")``, these are codes, which match
    photographs far better than inputs of the mapping network do.

    Parameters
    ----------
    extractor : GeneratorFeatureExtractor
        A fitted extractor of the generator, at any layer.

    images : array of shape (n_images, \*image_shape)
        Images in the generator's units, such as -1 for black and 1 for white, with
        their content where the generator has it: see :func:`align_face`.

    samples : array of shape (n_samples, \*latent_shape), default=None
        At least three, and better some hundred, latents of the distribution that the
        generator was trained on. Starts are chosen among them, and the search is kept
        near them. ``None`` draws them with ``sample_latents``.

    loss : callable, default=None
        ``loss(images, targets)`` returns the losses (n,) of generated images, a tensor
        (n, \*image_shape) with gradients, with respect to the images to match.
        ``None`` is the squared error as a fraction of the target's variance and, for
        images of two or three spatial axes, half of 1 - SSIM; a mean over the images'
        size, half of it and so on down to 16 pixels. SSIM needs the extra "metrics".

    prior : float, default=0.005
        Weight of the squared distance of the latents from their mean, in units of their
        covariance, as a mean over their elements; it is about 1 for typical latents.
        More gives likelier latents, which are edited better, and images less like the
        given ones.

    n_steps : int, default=300
        Steps from the best start. In the first half of them the number of starts is
        halved several times.

    n_starts : int, default=4
        Number of starts for each image: half are the samples whose images are most like
        it, the others are random. Inputs of mapping networks need several; for codes, 1
        is enough.

    learning_rate : float, default=0.1
        Length of the steps, in standard deviations of the latents. The first ten steps
        are shorter, and the length falls to 0 in the second half.

    value_range : tuple of float, default=None
        Values of black and white that images are clipped to before they are compared;
        ``None`` compares values as they are.

    random_state : int, RandomState instance or None, default=None
        Pass an int for reproducible results.

    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    inversion : Inversion
        Latents, residuals, images, and their differences from the given ones. It
        unpacks as ``latents, residuals = invert(...)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is something else, images have another shape or far larger values
        than the generator's, latents are integers or contain classes, or the loss
        cannot be differentiated with respect to the latents.
    ImportError
        If no loss is given and torchmetrics is not installed.

    Warns
    -----
    UserWarning
        If an image is matched much worse than two of the generator's own, which are
        inverted beside it, or if half of its variance is not matched. The warning says
        what to try.

    See Also
    --------
    align_face : Crops a photograph like the face generator's images.

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
            "The latents are integers, such as classes or tokens, which cannot be "
            "found by small steps. Fit the extractor on floating-point latents."
        )
    given, origin = _check_images(images, extractor)
    check_function("loss", loss, "images, targets")
    prior = check_single("prior", prior, at_least=0)
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
    with torch.inference_mode(False):  # in which nothing can be differentiated
        drawn = _drawn(extractor, samples, random_state).clone()
        return _found(
            extractor,
            given.clone(),
            origin,
            drawn,
            loss,
            prior,
            n_steps,
            n_starts,
            learning_rate,
            value_range,
            randomness(random_state),
            verbose,
        )


def _found(
    extractor: GeneratorFeatureExtractor,
    given: Tensor,
    origin: Origin,
    drawn: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] | None,
    prior: float,
    n_steps: int,
    n_starts: int,
    learning_rate: float,
    value_range: tuple[float, float] | None,
    generator: torch.Generator,
    verbose: int,
) -> Inversion:
    """The inversion of checked images, from latents of the distribution."""
    picked = torch.randperm(len(drawn), generator=generator, device="cpu")
    picked = picked[: N_CANDIDATES + N_OWN].to(drawn.device)
    own, candidates = drawn[picked[:N_OWN]], drawn[picked[N_OWN:]]
    space = Space.of(drawn)
    with Undo() as undo, undo:
        run = run_of(extractor, undo)
        size = length_of_batches(extractor)
        made = _images(run, own, size, 1)
        targets = torch.cat([given.to(made), made])
        starts = _starts(run, candidates, targets, n_starts, size, generator)
        match = Match(targets, loss, value_range)
        search = Search(run, space, match, prior, size, len(given))
        with tqdm(
            total=n_steps, desc="Inversion", disable=not verbose, mininterval=1
        ) as bar:
            first = space.coordinates(candidates[starts.flatten()])
            first = first.unflatten(0, starts.shape)
            u, fine = search.best(first, n_steps, learning_rate, bar.update)
        latents = space.latents(u)
        made = _images(run, latents, size, len(given))
    residuals = _residuals(made, targets, value_range)
    n = len(given)
    _warn(residuals[:n], residuals[n:], ~fine[:n])
    return Inversion(
        origin.give(latents[:n]),
        origin.give(residuals[:n]),
        origin.give(made[:n]),
        origin.give(targets[:n] - made[:n]),
        origin.give(residuals[n:]),
    )


def _check_images(
    images: ArrayLike, extractor: GeneratorFeatureExtractor
) -> tuple[Tensor, Origin]:
    """Return images of the generator's shape as a tensor, and their origin."""
    shape = extractor.image_shape_
    if shape is None:
        raise ValueError(
            "The network does not return a tensor of images. Give the extractor a "
            "forward that does."
        )
    expected = ", ".join(["(n_images", *map(str, shape)]) + ")"
    values = check_values(images, "images", expected)
    if tuple(values.shape[1:]) != tuple(shape):
        advice = ""
        if tuple(values.shape[-1:]) == tuple(shape[:1]):
            advice = " Colours come before the pixels: numpy.moveaxis(images, -1, 1)."
        raise ValueError(
            f"images must be of shape {expected}, got {tuple(values.shape)}.{advice}"
        )
    check_fits(values, "images", torch.float32)
    return promoted(as_tensor(values)), Origin.of(images)


def _drawn(
    extractor: GeneratorFeatureExtractor, samples: Any, random_state: Any
) -> Tensor:
    """Return latents of the generator's distribution, on the network's device."""
    device = running_device(extractor)
    forward, generator = extractor.forward, extractor.generator
    if reads_classes(generator, forward):
        raise ValueError(
            "The latents contain classes, which cannot be found by small steps: give "
            "the extractor a forward with a label, the class of all images, such as "
            "BigGAN(label=207)."
        )
    if samples is not None:
        checked, _ = check_latents(extractor, samples, "samples")
        if len(checked) <= N_OWN:
            raise ValueError(
                f"samples must be at least {N_OWN + 1} latents, and some hundred for "
                f"good results, got {len(checked)}."
            )
        return as_tensor(checked).to(device)
    latents, n = extractor.latent_shape_, N_DRAWN
    n = max(N_CANDIDATES + N_OWN, min(n, MOST_NUMBERS // math.prod(latents)))
    failure = ""
    try:
        drawn = sample_latents(generator, n, random_state, forward=forward)
    except TypeError as error:
        failure = str(error)
    else:
        if tuple(drawn.shape[1:]) == tuple(latents):
            return drawn.to(device)
        failure = (
            f"sample_latents draws latents of shape {tuple(drawn.shape[1:])}, but the "
            f"extractor was fitted on {tuple(latents)}."
        )
    raise ValueError(
        f"It is not known how the latents are distributed: {failure} Give some hundred "
        "latents as samples."
    )


def _images(run: Run, latents: Tensor, batch_size: int, n_given: int) -> Tensor:
    """Images of latents, batch by batch; numbers stop at the last given target."""
    batches = Batches(len(latents), batch_size)
    rows = torch.arange(len(latents), device="cpu").clamp(max=n_given - 1)
    found = [
        made for _, made in batches.map(lambda where: run(latents[where], rows[where]))
    ]
    return promoted(torch.cat(found)).detach()


def _starts(
    run: Run,
    candidates: Tensor,
    targets: Tensor,
    n_starts: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Choose the candidates that each target starts from, (n_targets, n_starts).

    Half are those with the nearest images, at a small size, the others are random.

    Raises
    ------
    ValueError
        If the targets' values are far larger than the generator's.
    """
    n_starts = min(n_starts, len(candidates))
    goals, largest, found = _coarse(targets), 0.0, []
    rows = torch.zeros(len(candidates), device="cpu").long()
    for _, images in Batches(len(candidates), batch_size).map(
        lambda where: run(candidates[where], rows[where])
    ):
        images = promoted(images)
        largest = max(largest, float(images.abs().max()))
        found.append(torch.cdist(goals, _coarse(images)))
    most = float(targets.abs().max())
    if most > FAR * largest:
        raise ValueError(
            f"images have values up to {most:.3g}, but {len(candidates)} of the "
            f"generator's own only up to {largest:.3g}. Bring them to its units, such "
            "as -1 for black and 1 for white."
        )
    distances = torch.cat(found, dim=1)
    n_near = (n_starts + 1) // 2
    order = distances.argsort(dim=1)
    near, others = order[:, :n_near], order[:, n_near:]
    chance = torch.rand(others.shape, generator=generator, device="cpu")
    chance = chance.to(others.device)
    picked = chance.argsort(dim=1)[:, : n_starts - n_near]
    return torch.cat([near, others.gather(1, picked)], dim=1)


def _coarse(images: Tensor) -> Tensor:
    """Small images as rows."""
    n_axes = images.ndim - 2
    if 1 <= n_axes <= 3:
        pool = getattr(functional, f"adaptive_avg_pool{n_axes}d")
        size = [min(COARSE, n) for n in images.shape[2:]]
        images = pool(images, size[0] if n_axes == 1 else size)
    return images.flatten(1)


def _residuals(
    made: Tensor, targets: Tensor, value_range: tuple[float, float] | None
) -> Tensor:
    """Squared errors as fractions of the targets' variances."""
    made, targets = (clipped(x, value_range) for x in (made, targets))
    return (made - targets).square().flatten(1).mean(dim=1) / variance_of(targets)


def _warn(residuals: Tensor, own: Tensor, lost: Tensor) -> None:
    """Warn about images that are matched badly; ``lost`` ones always count."""
    usual = float(own.max().nan_to_num(torch.inf))
    bad = lost | ~(residuals <= min(max(BAD, TIMES * usual), WORST))  # NaN is
    if bool(bad.any()):
        warnings.warn(
            f"{int(bad.sum())} of {len(residuals)} images are matched badly: the "
            f"differences are up to {float(residuals[bad].max()):.2g} of their "
            f"variance, those of the generator's own {float(own.max()):.2g}. Check "
            "that everything is where the generator has it (align_face), and that it "
            "was trained on such images. A code for each layer as latents, "
            "StyleGAN2(latent_space='w+'), matches far more. More n_steps and n_starts "
            "help, and so does a smaller prior, whose latents are edited less well.",
            UserWarning,
            stacklevel=users_level(),
        )
