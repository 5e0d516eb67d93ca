"""ProGAN and BigGAN: how a generator is called, as a picklable object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from panda_sklearn.generators._calls import dtype_of
from panda_sklearn.generators._conventions import (
    CLASS_CONDITIONAL,
    PROGRESSIVE,
    Convention,
    find_convention,
)
from panda_sklearn.generators._labels import Label, check_label, split_labels
from panda_sklearn.utils.validation import (
    check_array_like,
    check_choice,
    check_kind,
    check_number,
)

__all__ = ["BigGAN", "Family", "ProGAN", "check_batch", "convention_of"]


def check_batch(latents: Any) -> None:
    """Raise TypeError unless latents are a dense tensor of samples."""
    check_array_like(latents, "latents", "a tensor of shape (n_samples, ...)")
    check_kind("latents", latents, Tensor)


class Family:
    """How a family of generators is called.

    Attributes
    ----------
    conventions : dict
        The conventions in which its generators are written, by name.
    casts_latents : bool
        Tells the extractor to pass latents on as they are, since classes among them
        would not survive half precision.
    """

    conventions: ClassVar[Any] = {}
    casts_latents: ClassVar[bool] = True
    convention = "auto"
    label: Label | None = None

    def _check(self) -> None:
        """Check the settings that all families share."""
        check_choice("convention", self.convention, ("auto", *self.conventions))
        object.__setattr__(self, "label", check_label(self.label))

    def _split(
        self, convention: Convention, generator: nn.Module, latents: Tensor
    ) -> tuple[Tensor, Any]:
        """Latents in the network's dtype, and the classes."""
        size = None if convention.takes_anything else convention.latent_size(generator)
        z, labels = split_labels(
            latents,
            size,
            convention.n_classes(generator),
            self.label,
            type(self).__name__,
        )
        if z.is_floating_point() or not convention.takes_anything:
            z = z.to(dtype_of(generator, z.dtype))
        return z, labels

    def __call__(self, generator: nn.Module, latents: Tensor) -> Any:
        """Images of latents."""
        raise NotImplementedError


def convention_of(family: Family, generator: nn.Module) -> Any:
    """The convention of a family that a generator follows."""
    check_kind("generator", generator, nn.Module)
    name = type(family).__name__
    return find_convention(family.conventions, family.convention, generator, name)


@dataclass(frozen=True, kw_only=True)
class ProGAN(Family):
    """How to call a ProGAN generator.

    Also serves other generators that are called as ``generator(latents)``.

    Parameters
    ----------
    label : int or array-like of shape (n_classes,), default=None
        For generators with classes: the class of all images, or weights that mix
        classes, used as they are. ``None`` reads them from the latents: one more column
        with the index of each image's class, or one column of weights for each class.

    convention : {"auto", "genforce", "plain"}, default="auto"
        How the generator is written. "genforce" is called as ``G(z, label=...)`` and
        returns a dict with "image"; "plain" is called as ``G(z)``. "auto" finds out.

    Raises
    ------
    TypeError, ValueError
        If a setting is of another type or out of range.

    See Also
    --------
    sample_latents : Draws latents.
    panda_sklearn.GeneratorFeatureExtractor : Takes this as ``forward``.

    Notes
    -----
    T. Karras, T. Aila, S. Laine, J. Lehtinen. "Progressive Growing of GANs for Improved
    Quality, Stability, and Variation". ICLR, 2018.

    Examples
    --------
    >>> from panda_sklearn import GeneratorFeatureExtractor
    >>> from panda_sklearn.datasets import load_face_generator
    >>> from panda_sklearn.generators import ProGAN, sample_latents
    >>> generator = load_face_generator()
    >>> latents = sample_latents(generator, 4, random_state=0)
    >>> extractor = GeneratorFeatureExtractor(generator, "block8", forward=ProGAN())
    >>> extractor.fit_transform(latents).shape
    torch.Size([4, 192, 8, 8])
    """

    label: Label | None = None
    convention: str = "auto"
    conventions: ClassVar[Any] = PROGRESSIVE

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, generator: nn.Module, latents: Tensor) -> Any:
        """Images of latents."""
        convention = convention_of(self, generator)
        check_batch(latents)
        z, labels = self._split(convention, generator, latents)
        return convention.generate(generator, z, labels)


@dataclass(frozen=True, kw_only=True)
class BigGAN(Family):
    """How to call a BigGAN generator.

    Parameters
    ----------
    truncation : float, default=1.0
        Above 0 and at most 1. Latents are multiplied by it. The generators of
        pytorch-pretrained-biggan are passed it as well, for their batch norm.

    label : int or array-like of shape (n_classes,), default=None
        The class of all images, or weights that mix classes, used as they are.
        ``None`` reads them from the latents: one more column with the index of each
        image's class, or one column of weights for each class.

    convention : {"auto", "huggingface", "brock"}, default="auto"
        How the generator is written. "huggingface" is pytorch-pretrained-biggan,
        called as ``G(z, weights, truncation)``; "brock" is BigGAN-PyTorch, called as
        ``G(z, G.shared(y))``. "auto" finds out.

    Raises
    ------
    TypeError, ValueError
        If a setting is of another type or out of range.

    See Also
    --------
    sample_latents : Draws latents and classes.
    panda_sklearn.GeneratorFeatureExtractor : Takes this as ``forward``.

    Notes
    -----
    Latents follow the normal distribution cut off at -2 and 2, as ``sample_latents``
    draws them. They must *not* be multiplied by the truncation beforehand, as
    ``truncated_noise_sample`` of pytorch-pretrained-biggan does.

    A. Brock, J. Donahue, K. Simonyan. "Large Scale GAN Training for High Fidelity
    Natural Image Synthesis". ICLR, 2019. See section 3.1 for the truncation.
    """

    truncation: float = 1.0
    label: Label | None = None
    convention: str = "auto"
    conventions: ClassVar[Any] = CLASS_CONDITIONAL

    def __post_init__(self) -> None:
        check_number("truncation", self.truncation, above=0, at_most=1)
        self._check()

    def __call__(self, generator: nn.Module, latents: Tensor) -> Any:
        """Images of latents."""
        convention = convention_of(self, generator)
        check_batch(latents)
        z, labels = self._split(convention, generator, latents)
        truncation = float(self.truncation)
        return convention.generate(generator, truncation * z, labels, truncation)
