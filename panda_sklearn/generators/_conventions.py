"""What implementations of generators want to be called with.

Floor 2: see :mod:`panda_sklearn.generators`. A convention knows one way of writing a
generator: by what it is recognised, how large its inputs are, how it is run. What the
user wants of a call is :mod:`panda_sklearn.generators._families`' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from panda_sklearn.generators._calls import ConventionError
from panda_sklearn.generators._labels import Labels

__all__ = [
    "CLASS_CONDITIONAL",
    "PLAIN_SIZES",
    "PROGRESSIVE",
    "STYLED",
    "Convention",
    "Progressive",
    "Styled",
    "find_convention",
    "get",
    "matching_convention",
]


class Convention:
    """One way of writing a generator.

    Attributes
    ----------
    marks : tuple of str
        Attributes of the generator, dotted, by which it is recognised.
    takes_anything : bool
        Whether latents of any shape and type are handed over as they are.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = False

    def recognises(self, generator: nn.Module) -> bool:
        """Whether the generator is written so."""
        return all(get(generator, mark) is not None for mark in self.marks)

    def latent_size(self, generator: nn.Module) -> int | None:
        """Numbers in a latent z; ``None`` if that is not known."""
        raise NotImplementedError

    def n_classes(self, generator: nn.Module) -> int:
        """Classes that the generator tells apart; 0 if none."""
        raise NotImplementedError


def get(thing: Any, dotted: str) -> Any:
    """An attribute of a dotted name; ``None`` if there is none."""
    for name in dotted.split("."):
        thing = getattr(thing, name, None)
    return thing


def matching_convention(
    conventions: Mapping[str, Convention], generator: nn.Module
) -> Convention | None:
    """The first convention that recognises the generator."""
    for convention in conventions.values():
        if convention.recognises(generator):
            return convention
    return None


def find_convention(
    conventions: Mapping[str, Convention], name: str, generator: nn.Module, family: str
) -> Any:
    """The convention of a name, or for "auto" the one that is recognised.

    Raises
    ------
    ConventionError
        If none is recognised, or the generator lacks what the named one needs.
    """
    if name == "auto":
        found = matching_convention(conventions, generator)
    else:
        found = conventions[name]
        if not found.recognises(generator):
            found = None
    if found is None:
        tried = conventions if name == "auto" else {name: conventions[name]}
        looked_for = "; ".join(
            f"{each!r} needs {', '.join(convention.marks)}"
            for each, convention in tried.items()
        )
        raise ConventionError(
            f"{type(generator).__name__} is not written as a {family} in a convention "
            f"known here: {looked_for}. Pass a function forward(generator, latents) of "
            "your own instead."
        )
    return found


# ProGAN: latents in, images out.


class Progressive(Convention):
    """A generator that turns latents, and labels if any, into images at once."""

    def generate(self, generator: nn.Module, z: Tensor, labels: Labels | None) -> Any:
        """Images."""
        raise NotImplementedError


class GenforceProgressive(Progressive):
    """genforce's ``PGGANGenerator``: ``G(z, label=...)["image"]``."""

    marks = ("z_space_dim", "lod")

    def latent_size(self, generator):
        return int(generator.z_space_dim)

    def n_classes(self, generator):
        return int(getattr(generator, "label_size", 0))

    def generate(self, generator, z, labels):
        label = None if labels is None else labels.weights.to(z)
        return generator(z, label=label)["image"]


# Where generators that are called with latents alone say how long those are.
PLAIN_SIZES = ("latent_size", "latent_dim", "z_dim", "z_space_dim", "dim_z", "nz")


class Plain(Progressive):
    """``G(z)`` gives the images."""

    takes_anything = True

    def latent_size(self, generator):
        sizes = (getattr(generator, name, None) for name in PLAIN_SIZES)
        return next((size for size in sizes if isinstance(size, int)), None)

    def n_classes(self, generator):
        return 0

    def generate(self, generator, z, labels):
        return generator(z)


# StyleGAN, StyleGAN2, StyleGAN3: latents z -> codes w, one for each layer -> images.


class Styled(Convention):
    """A generator in two pieces: a mapping network and a synthesis network."""

    def code_size(self, generator: nn.Module) -> int:
        """Numbers in a code w."""
        raise NotImplementedError

    def n_codes(self, generator: nn.Module) -> int:
        """Codes that the synthesis network takes."""
        raise NotImplementedError

    def map(self, generator: nn.Module, z: Tensor, labels: Labels | None) -> Tensor:
        """Codes (n, n_codes, code_size) of latents, not truncated."""
        raise NotImplementedError

    def mean_code(self, generator: nn.Module) -> Tensor | None:
        """The mean of w that the generator remembers from its training, if it does."""
        raise NotImplementedError

    def synthesize(self, generator: nn.Module, codes: Tensor, noise_mode: str) -> Any:
        """Images of codes (n, n_codes, code_size)."""
        raise NotImplementedError

    def spread(self, generator: nn.Module, codes: Tensor) -> Tensor:
        """One code for each layer, where there is one for all."""
        if codes.ndim == 3:
            return codes
        return codes[:, None].expand(-1, self.n_codes(generator), -1)


class Nvidia(Styled):
    """stylegan2-ada-pytorch and stylegan3: ``G.mapping(z, c)``, ``G.synthesis(ws)``."""

    marks = ("mapping", "synthesis", "z_dim", "w_dim")

    def latent_size(self, generator):
        return int(generator.z_dim)

    def n_classes(self, generator):
        return int(getattr(generator, "c_dim", 0))

    def code_size(self, generator):
        return int(generator.w_dim)

    def n_codes(self, generator):
        return int(generator.synthesis.num_ws)

    def map(self, generator, z, labels):
        c = z.new_zeros(len(z), 0) if labels is None else labels.weights.to(z)
        return self.spread(generator, generator.mapping(z, c))

    def mean_code(self, generator):
        return get(generator, "mapping.w_avg")

    def synthesize(self, generator, codes, noise_mode):
        # Half precision, in which some layers run, is for CUDA devices alone.
        return generator.synthesis(
            codes, noise_mode=noise_mode, force_fp32=codes.device.type != "cuda"
        )


def randomizes(noise_mode: str, name: str) -> bool:
    """Whether noise is drawn; ValueError for a mode other than "const" and "random"."""
    if noise_mode == "none":
        raise ValueError(
            f"noise_mode='none' is not offered by generators of the {name} convention. "
            "Use 'const', noise that is the same for all images, or 'random'."
        )
    return noise_mode == "random"


class GenforceStyled(Styled):
    """genforce: ``G.mapping(z)["w"]``, ``G.truncation(w)``, ``G.synthesis(wp)``."""

    marks = ("mapping", "truncation", "synthesis", "z_space_dim", "w_space_dim")

    def latent_size(self, generator):
        return int(generator.z_space_dim)

    def n_classes(self, generator):
        return int(getattr(generator, "label_size", 0))

    def code_size(self, generator):
        return int(generator.w_space_dim)

    def n_codes(self, generator):
        return int(generator.num_layers)

    def map(self, generator, z, labels):
        label = None if labels is None else labels.weights.to(z)
        codes = generator.mapping(z, label)["w"]
        if codes.shape[1] != self.code_size(generator):  # a code for each layer at once
            codes = codes.unflatten(1, (-1, self.code_size(generator)))
        return self.spread(generator, codes)

    def mean_code(self, generator):
        return generator.truncation.w_avg.reshape(-1, self.code_size(generator))

    def synthesize(self, generator, codes, noise_mode):
        randomize = randomizes(noise_mode, "genforce")
        return generator.synthesis(codes, randomize_noise=randomize)["image"]


class Rosinality(Styled):
    """rosinality's stylegan2-pytorch: ``G([z])``, a list in, images and codes out."""

    marks = ("style", "n_latent", "style_dim")

    def latent_size(self, generator):
        return int(generator.style_dim)

    def n_classes(self, generator):
        return 0

    def code_size(self, generator):
        return int(generator.style_dim)

    def n_codes(self, generator):
        return int(generator.n_latent)

    def map(self, generator, z, labels):
        return self.spread(generator, generator.style(z))

    def mean_code(self, generator):
        return None

    def synthesize(self, generator, codes, noise_mode):
        randomize = randomizes(noise_mode, "rosinality")
        images, *_ = generator([codes], input_is_latent=True, randomize_noise=randomize)
        return images


class Shipped(Styled):
    """``load_face_generator``: ``G.styles(z)``, ``G.synthesize(list of codes)``."""

    marks = ("styles", "synthesize", "style_mean", "n_styles", "truncation")

    def latent_size(self, generator):
        return int(generator.latent_size)

    def n_classes(self, generator):
        return 0

    def code_size(self, generator):
        return len(generator.style_mean)

    def n_codes(self, generator):
        return int(generator.n_styles)

    def map(self, generator, z, labels):
        codes = generator.styles(z)
        mean = generator.style_mean.to(codes)
        return self.spread(generator, mean.lerp(codes, generator.truncation))

    def mean_code(self, generator):
        return generator.style_mean

    def synthesize(self, generator, codes, noise_mode):
        return generator.synthesize(list(codes.unbind(dim=1)))


# BigGAN: latents, classes and the truncation.


class HuggingFace(Convention):
    """pytorch-pretrained-biggan: ``G(z, weights of the classes, truncation)``."""

    marks = ("config.z_dim", "config.num_classes", "embeddings", "generator")

    def latent_size(self, generator):
        return int(generator.config.z_dim)

    def n_classes(self, generator):
        return int(generator.config.num_classes)

    def generate(self, generator, z, labels, truncation):
        return generator(z, labels.weights.to(z), truncation)


class Brock(Convention):
    """BigGAN-PyTorch, by BigGAN's author: ``G(z, G.shared(classes))``."""

    marks = ("dim_z", "n_classes", "shared")

    def latent_size(self, generator):
        return int(generator.dim_z)

    def n_classes(self, generator):
        return int(generator.n_classes)

    def generate(self, generator, z, labels, truncation):
        if labels.indices is not None:
            return generator(z, generator.shared(labels.indices))
        every = torch.arange(self.n_classes(generator), device=z.device)
        embeddings = generator.shared(every)
        if not embeddings.is_floating_point():
            raise ValueError(
                "This generator embeds classes in each layer (G_shared=False) and "
                "cannot mix them: give indices of classes, not weights."
            )
        return generator(z, labels.weights.to(embeddings) @ embeddings)


PROGRESSIVE = {"genforce": GenforceProgressive(), "plain": Plain()}
STYLED = {
    "genforce": GenforceStyled(),
    "nvidia": Nvidia(),
    "rosinality": Rosinality(),
    "shipped": Shipped(),
}
CLASS_CONDITIONAL = {"huggingface": HuggingFace(), "brock": Brock()}
