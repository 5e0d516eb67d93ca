"""Latents from the distribution that a generator was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from panda_sklearn.generators._calls import check_forward, check_network, device_of
from panda_sklearn.generators._conventions import (
    PLAIN_SIZES,
    matching_convention,
)
from panda_sklearn.generators._diffusion import Diffusion
from panda_sklearn.generators._families import (
    BigGAN,
    Family,
    ProGAN,
    convention_of,
)
from panda_sklearn.generators._styles import StyleFamily, StyleGAN2, codes_of
from panda_sklearn.utils.validation import (
    check_count,
    check_indices,
    check_number,
    check_random_state,
)

__all__ = ["reads_classes", "sample_latents"]

# Where BigGAN's latents are cut off (Brock et al., section 3.1).
CUT_OFF = 2.0


def sample_latents(
    generator: nn.Module,
    n_samples: int,
    random_state: int | np.random.RandomState | None = None,
    *,
    forward: Callable[..., Any] | None = None,
    classes: int | Sequence[int] | Mapping[int, float] | None = None,
) -> Tensor:
    """Draw latents from the distribution that a generator was trained on.

    Parameters
    ----------
    generator : torch.nn.Module
        A generator of one of the families of this module; or any other that is called
        with latents alone and has the length of a latent as an int attribute,
        ``latent_size`` (or ``latent_dim``, ``z_dim``, ``nz``).

    n_samples : int
        Number of samples.

    random_state : int, RandomState instance or None, default=None
        Pass an int for the same latents at every call, on every device. Codes are
        computed by the generator and agree only up to rounding.

    forward : callable, default=None
        How the generator will be called: ``StyleGAN2(...)``, ``BigGAN(...)`` and so
        on. Needed if that is not the default: for codes instead of latents, a
        convention that is not recognised, or one class for all images.

    classes : int, sequence of int or dict, default=None
        For generators with classes, those from which to draw one for each image: a
        class, several with equal probabilities, or a dict of classes and their
        weights. ``None`` is all with equal probabilities, unless ``forward`` has a
        label.

    Returns
    -------
    latents : Tensor of shape (n_samples, ...)
        Float32, on the generator's device. Rows, even for generators that take them
        with more axes; for ``Diffusion``, noise of the images' shape. Standard normal
        numbers; for BigGAN those between -2 and 2, not multiplied by the truncation.
        For generators with classes the last column is the index of the class. With
        ``latent_space`` "w" or "w+", what the mapping network makes of such numbers.

    Raises
    ------
    TypeError
        If the length of a latent is unknown, the generator is not of the family that
        ``forward`` is for, or an argument is of another type.
    ValueError
        If ``classes`` does not fit the generator or ``forward``, or codes of "w" are
        asked for and the mapping network returns a different code for each layer.

    Examples
    --------
    >>> from panda_sklearn.datasets import load_face_generator
    >>> from panda_sklearn.generators import sample_latents
    >>> sample_latents(load_face_generator(), 5, random_state=0).shape
    torch.Size([5, 64])
    """
    check_network("generator", generator)
    check_forward(forward)
    n_samples = check_count("n_samples", n_samples)
    if isinstance(generator, Diffusion) and forward is None:
        if classes is not None:
            raise ValueError(
                "classes is for generators with classes: leave it at None."
            )
        shape = (n_samples, *generator.latent_shape)
        noise = check_random_state(random_state).standard_normal(shape)
        return torch.from_numpy(noise).to(device_of(generator), torch.float32)
    family = forward if isinstance(forward, Family) else _family_of(generator)
    convention = convention_of(family, generator)
    size = convention.latent_size(generator)
    if size is None:
        raise TypeError(
            "sample_latents needs a generator of a known family, or one with the "
            f"length of a latent in an attribute: {', '.join(PLAIN_SIZES)}. "
            f"{type(generator).__name__} has none of these. Draw latents as the "
            "generator's authors do."
        )
    random_state = check_random_state(random_state)
    if isinstance(family, BigGAN):
        edge = ndtr(CUT_OFF)
        z = ndtri(random_state.uniform(1 - edge, edge, (n_samples, size)))
    else:
        z = random_state.standard_normal((n_samples, size))
    n_classes = convention.n_classes(generator)
    drawn = _draw_classes(family, n_classes, classes, n_samples, random_state)
    if drawn is not None:
        z = np.concatenate([z, drawn], axis=1)
    latents = torch.from_numpy(z).to(device_of(generator), torch.float32)
    if isinstance(family, StyleFamily) and family.latent_space != "z":
        return codes_of(family, convention, generator, latents)
    return latents


def reads_classes(generator: nn.Module, forward: Any) -> bool:
    """Whether ``sample_latents`` draws classes beside the latents."""
    if forward is not None and not isinstance(forward, Family):
        return False  # what it reads is unknown
    family = _family_of(generator) if forward is None else forward
    convention = matching_convention(family.conventions, generator)
    if convention is None or family.label is not None:
        return False
    codes = isinstance(family, StyleFamily) and family.latent_space != "z"
    return convention.n_classes(generator) > 0 and not codes


def _family_of(generator: nn.Module) -> Family:
    """A family that a generator's latents are drawn for."""
    for family in (BigGAN(), StyleGAN2()):
        if matching_convention(family.conventions, generator) is not None:
            return family
    return ProGAN()


def _draw_classes(
    family: Family,
    n_classes: int,
    classes: Any,
    n_samples: int,
    random_state: np.random.RandomState,
) -> np.ndarray | None:
    """A column of classes, if there is to be one."""
    if classes is None and (n_classes == 0 or family.label is not None):
        return None
    if n_classes == 0:
        raise ValueError("The generator has no classes: leave classes at None.")
    if family.label is not None:
        raise ValueError(
            f"The class is given twice: by classes and by forward's label, "
            f"{family.label!r}. Give one."
        )
    weights: Any = None
    if classes is None:
        classes = range(n_classes)
    elif isinstance(classes, Mapping):
        weights = [
            check_number("each weight of classes", weight, at_least=0)
            for weight in classes.values()
        ]
        if not sum(weights) > 0:
            raise ValueError("The weights of classes must have a positive sum.")
        weights = np.asarray(weights) / sum(weights)
        classes = list(classes)
    elif isinstance(classes, Integral):
        classes = [classes]
    chosen = check_indices("classes", classes, n_classes)
    return random_state.choice(chosen, size=(n_samples, 1), p=weights)
