"""Latents from the distribution that a generator was trained on.

Floor 2: see :mod:`panda_sklearn.generators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import nn

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
    generator, n_samples, random_state=None, *, forward=None, classes=None
):
    """Draw latents from the distribution that a generator was trained on.

    Parameters
    ----------
    generator : torch.nn.Module
        A generator of one of the families that this module knows; or another, called
        with latents alone, that has the length of a latent as an int attribute
        ``latent_size`` (or ``latent_dim``, ``z_dim``, ``nz``).

    n_samples : int
        Number of samples.

    random_state : int, RandomState instance or None, default=None
        Pass an int for the same latents at every call, on every device; codes, which
        the generator computes, but for rounding.

    forward : callable, default=None
        How the generator will be called: ``StyleGAN2(...)``, ``BigGAN(...)`` and so
        on. Needed where that is not the default: codes instead of latents, a
        convention that is not recognised, a class that is the same for all.

    classes : int, sequence of int or dict, default=None
        For generators with classes, which to draw, each image one: a class, several at
        equal shares, or a dict of classes and their shares. ``None`` is all at equal
        shares, unless ``forward`` has a label.

    Returns
    -------
    latents : Tensor of shape (n_samples, ...)
        Float32, on the generator's device; rows, also for generators that take them
        with more axes, but noise of the images' shape for ``Diffusion``. Standard
        normal numbers; for BigGAN those between -2 and 2, not multiplied by the
        truncation. For generators with classes the last column is the index of the
        class. With ``latent_space="w"`` or "w+" what the generator's mapping network
        makes of such numbers.

    Raises
    ------
    TypeError
        If the length of a latent is not known, the generator is not of the family
        that ``forward`` is for, or an argument is of another type.
    ValueError
        If ``classes`` does not fit the generator or ``forward``, or codes of "w" are
        asked for and the mapping network gives each layer its own.

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
            "sample_latents needs a generator of a known family, or with the length of "
            f"a latent as one of its attributes {', '.join(PLAIN_SIZES)}; "
            f"{type(generator).__name__} has none. Draw latents as the generator's "
            "authors do."
        )
    random_state = check_random_state(random_state)
    if isinstance(family, BigGAN):
        edge = ndtr(CUT_OFF)
        z = ndtri(random_state.uniform(1 - edge, edge, (n_samples, size)))
    else:
        z = random_state.standard_normal((n_samples, size))
    columns = [z]
    if drawn := _draw_classes(
        family, convention.n_classes(generator), classes, n_samples, random_state
    ):
        columns += drawn
    latents = torch.from_numpy(np.concatenate(columns, axis=1)).to(
        device=device_of(generator), dtype=torch.float32
    )
    if isinstance(family, StyleFamily) and family.latent_space != "z":
        return codes_of(family, convention, generator, latents)
    return latents


def reads_classes(generator: nn.Module, forward: Any) -> bool:
    """Whether latents that ``sample_latents`` draws have classes among them."""
    if forward is not None and not isinstance(forward, Family):
        return False  # it is not known what that reads
    family = _family_of(generator) if forward is None else forward
    convention = matching_convention(family.conventions, generator)
    if convention is None or family.label is not None:
        return False
    codes = isinstance(family, StyleFamily) and family.latent_space != "z"
    return convention.n_classes(generator) > 0 and not codes


def _family_of(generator: nn.Module) -> Family:
    """The family of a generator, as far as that matters for its latents."""
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
) -> list[np.ndarray]:
    """A column of classes, if there is to be one."""
    if classes is None and (n_classes == 0 or family.label is not None):
        return []
    if n_classes == 0:
        raise ValueError("The generator has no classes: leave classes at None.")
    if family.label is not None:
        raise ValueError(
            f"The class is given twice: by classes and by forward's label, "
            f"{family.label!r}. Give one."
        )
    shares: Any = None
    if classes is None:
        classes = range(n_classes)
    elif isinstance(classes, Mapping):
        shares = [
            check_number("each share of classes", share, at_least=0)
            for share in classes.values()
        ]
        if not sum(shares) > 0:
            raise ValueError("The shares of classes must have a positive sum.")
        shares = np.asarray(shares) / sum(shares)
        classes = list(classes)
    elif isinstance(classes, Integral):
        classes = [classes]
    chosen = check_indices("classes", classes, n_classes)
    return [random_state.choice(chosen, size=(n_samples, 1), p=shares)]
