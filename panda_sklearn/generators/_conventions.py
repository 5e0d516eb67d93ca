"""How implementations of generators are recognised and called.

A convention stands for one way of writing a generator: it knows how to recognise it,
how large its inputs are and how to run it. The user's settings of a call are in
:mod:`panda_sklearn.generators._families`.
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
        Dotted names of attributes by which a generator is recognised.
    takes_anything : bool
        Whether latents of any shape and type are passed on as they are.
    """

    marks: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = False

    def recognises(self, generator: nn.Module) -> bool:
        """Whether the generator follows this convention."""
        return all(get(generator, mark) is not None for mark in self.marks)

    def latent_size(self, generator: nn.Module) -> int | None:
        """Length of a latent z; ``None`` if unknown."""
        raise NotImplementedError

    def n_classes(self, generator: nn.Module) -> int:
        """Number of classes of the generator; 0 if it has none."""
        raise NotImplementedError


def get(thing: Any, dotted: str) -> Any:
    """The attribute of a dotted name; ``None`` if there is none."""
    for name in dotted.split("."):
        thing = getattr(thing, name, None)
    return thing


def matching_convention(
    conventions: Mapping[str, Convention], generator: nn.Module
) -> Convention | None:
    """The first convention that recognises the generator, if any does."""
    for convention in conventions.values():
        if convention.recognises(generator):
            return convention
    return None


def find_convention(
    conventions: Mapping[str, Convention], name: str, generator: nn.Module, family: str
) -> Any:
    """The convention of a name; for "auto", the first that recognises the generator.

    Raises
    ------
    ConventionError
        If none does, or the generator lacks what the named one needs.
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
    """A generator that turns latents, and labels if any, into images in one call."""

    def generate(self, generator: nn.Module, z: Tensor, labels: Labels | None) -> Any:
        """Images."""
        raise NotImplementedError


class GenforceProgressive(Progressive):
    """genforce's ``PGGANGenerator``: ``G(z, label=...)["image"]``."""

    marks = ("z_space_dim", "lod")

    def latent_size(self, generator: Any) -> int:
        return int(generator.z_space_dim)

    def n_classes(self, generator: Any) -> int:
        return int(getattr(generator, "label_size", 0))

    def generate(self, generator: Any, z: Tensor, labels: Labels | None) -> Any:
        label = None if labels is None else labels.weights.to(z)
        return generator(z, label=label)["image"]


# Attributes by which generators called with latents alone say how long those are.
PLAIN_SIZES = ("latent_size", "latent_dim", "z_dim", "z_space_dim", "dim_z", "nz")


class Plain(Progressive):
    """``G(z)`` returns the images."""

    takes_anything = True

    def latent_size(self, generator: Any) -> int | None:
        sizes = (getattr(generator, name, None) for name in PLAIN_SIZES)
        return next((size for size in sizes if isinstance(size, int)), None)

    def n_classes(self, generator: Any) -> int:
        return 0

    def generate(self, generator: Any, z: Tensor, labels: Labels | None) -> Any:
        return generator(z)


# StyleGAN, StyleGAN2, StyleGAN3: latents z -> codes w, one for each layer -> images.


class Styled(Convention):
    """A generator in two pieces: a mapping network and a synthesis network."""

    def code_size(self, generator: nn.Module) -> int:
        """Length of a code w."""
        raise NotImplementedError

    def n_codes(self, generator: nn.Module) -> int:
        """Number of codes that the synthesis network takes."""
        raise NotImplementedError

    def map(self, generator: nn.Module, z: Tensor, labels: Labels | None) -> Tensor:
        """Codes (n, n_codes, code_size) of latents, not truncated."""
        raise NotImplementedError

    def mean_code(self, generator: nn.Module) -> Tensor | None:
        """The mean of w that the generator stored during training, if it did."""
        raise NotImplementedError

    def synthesize(self, generator: nn.Module, codes: Tensor, noise_mode: str) -> Any:
        """Images of codes (n, n_codes, code_size)."""
        raise NotImplementedError

    def spread(self, generator: nn.Module, codes: Tensor) -> Tensor:
        """Codes (n, n_codes, code_size): these, or one repeated for each layer."""
        if codes.ndim == 3:
            return codes
        return codes[:, None].expand(-1, self.n_codes(generator), -1)


class Nvidia(Styled):
    """stylegan2-ada-pytorch and stylegan3: ``G.mapping(z, c)``, ``G.synthesis(ws)``."""

    marks = ("mapping", "synthesis", "z_dim", "w_dim")

    def latent_size(self, generator: Any) -> int:
        return int(generator.z_dim)

    def n_classes(self, generator: Any) -> int:
        return int(getattr(generator, "c_dim", 0))

    def code_size(self, generator: Any) -> int:
        return int(generator.w_dim)

    def n_codes(self, generator: Any) -> int:
        return int(generator.synthesis.num_ws)

    def map(self, generator: Any, z: Tensor, labels: Labels | None) -> Tensor:
        c = z.new_zeros(len(z), 0) if labels is None else labels.weights.to(z)
        return self.spread(generator, generator.mapping(z, c))

    def mean_code(self, generator: Any) -> Tensor | None:
        return get(generator, "mapping.w_avg")

    def synthesize(self, generator: Any, codes: Tensor, noise_mode: str) -> Any:
        # Some layers run in half precision, which only CUDA devices can.
        return generator.synthesis(
            codes, noise_mode=noise_mode, force_fp32=codes.device.type != "cuda"
        )


def randomizes(noise_mode: str, name: str) -> bool:
    """Whether noise is drawn; ValueError for "none", which is not offered."""
    if noise_mode == "none":
        raise ValueError(
            f"noise_mode='none' is not offered by generators of the {name} convention. "
            "Use 'const', the same noise for all images, or 'random'."
        )
    return noise_mode == "random"


class GenforceStyled(Styled):
    """genforce: ``G.mapping(z)["w"]``, ``G.truncation(w)``, ``G.synthesis(wp)``."""

    marks = ("mapping", "truncation", "synthesis", "z_space_dim", "w_space_dim")

    def latent_size(self, generator: Any) -> int:
        return int(generator.z_space_dim)

    def n_classes(self, generator: Any) -> int:
        return int(getattr(generator, "label_size", 0))

    def code_size(self, generator: Any) -> int:
        return int(generator.w_space_dim)

    def n_codes(self, generator: Any) -> int:
        return int(generator.num_layers)

    def map(self, generator: Any, z: Tensor, labels: Labels | None) -> Tensor:
        label = None if labels is None else labels.weights.to(z)
        codes = generator.mapping(z, label)["w"]
        if codes.shape[1] != self.code_size(generator):  # codes of all layers in a row
            codes = codes.unflatten(1, (-1, self.code_size(generator)))
        return self.spread(generator, codes)

    def mean_code(self, generator: Any) -> Tensor | None:
        return generator.truncation.w_avg.reshape(-1, self.code_size(generator))

    def synthesize(self, generator: Any, codes: Tensor, noise_mode: str) -> Any:
        randomize = randomizes(noise_mode, "genforce")
        return generator.synthesis(codes, randomize_noise=randomize)["image"]


class Rosinality(Styled):
    """rosinality's stylegan2-pytorch: ``G([z])`` returns images and codes."""

    marks = ("style", "n_latent", "style_dim")

    def latent_size(self, generator: Any) -> int:
        return int(generator.style_dim)

    def n_classes(self, generator: Any) -> int:
        return 0

    def code_size(self, generator: Any) -> int:
        return int(generator.style_dim)

    def n_codes(self, generator: Any) -> int:
        return int(generator.n_latent)

    def map(self, generator: Any, z: Tensor, labels: Labels | None) -> Tensor:
        return self.spread(generator, generator.style(z))

    def mean_code(self, generator: Any) -> Tensor | None:
        return None

    def synthesize(self, generator: Any, codes: Tensor, noise_mode: str) -> Any:
        randomize = randomizes(noise_mode, "rosinality")
        images, *_ = generator([codes], input_is_latent=True, randomize_noise=randomize)
        return images


class Shipped(Styled):
    """``load_face_generator``: ``G.styles(z)``, ``G.synthesize(list of codes)``."""

    marks = ("styles", "synthesize", "style_mean", "n_styles", "truncation")

    def latent_size(self, generator: Any) -> int:
        return int(generator.latent_size)

    def n_classes(self, generator: Any) -> int:
        return 0

    def code_size(self, generator: Any) -> int:
        return len(generator.style_mean)

    def n_codes(self, generator: Any) -> int:
        return int(generator.n_styles)

    def map(self, generator: Any, z: Tensor, labels: Labels | None) -> Tensor:
        codes = generator.styles(z)
        mean = generator.style_mean.to(codes)
        return self.spread(generator, mean.lerp(codes, generator.truncation))

    def mean_code(self, generator: Any) -> Tensor | None:
        return generator.style_mean

    def synthesize(self, generator: Any, codes: Tensor, noise_mode: str) -> Any:
        return generator.synthesize(list(codes.unbind(dim=1)))


# BigGAN: latents, classes and the truncation.


class HuggingFace(Convention):
    """pytorch-pretrained-biggan: ``G(z, weights of the classes, truncation)``."""

    marks = ("config.z_dim", "config.num_classes", "embeddings", "generator")

    def latent_size(self, generator: Any) -> int:
        return int(generator.config.z_dim)

    def n_classes(self, generator: Any) -> int:
        return int(generator.config.num_classes)

    def generate(
        self, generator: Any, z: Tensor, labels: Labels, truncation: float
    ) -> Any:
        return generator(z, labels.weights.to(z), truncation)


class Brock(Convention):
    """BigGAN-PyTorch, by BigGAN's author: ``G(z, G.shared(classes))``."""

    marks = ("dim_z", "n_classes", "shared")

    def latent_size(self, generator: Any) -> int:
        return int(generator.dim_z)

    def n_classes(self, generator: Any) -> int:
        return int(generator.n_classes)

    def generate(
        self, generator: Any, z: Tensor, labels: Labels, truncation: float
    ) -> Any:
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
