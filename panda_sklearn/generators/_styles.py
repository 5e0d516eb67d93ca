"""The three StyleGANs: how a generator is called, as a picklable object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from panda_sklearn.generators._calls import dtype_of
from panda_sklearn.generators._conventions import STYLED, Styled, get
from panda_sklearn.generators._families import Family, check_batch, convention_of
from panda_sklearn.generators._labels import Label, Numbers
from panda_sklearn.utils.arrays import as_tensor
from panda_sklearn.utils.borrowing import borrow
from panda_sklearn.utils.turns import take_turn
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_choice,
    check_count,
    check_fits,
    check_kind,
    check_single,
    check_values,
)

__all__ = ["StyleFamily", "StyleGAN", "StyleGAN2", "StyleGAN3"]

SPACES = ("z", "w", "w+")
NOISE_MODES = ("const", "random", "none")

# What the docstrings of the three share.
PARAMETERS = """Parameters
    ----------
    truncation_psi : float, default=1.0
        How far codes are from their mean: ``w_avg + truncation_psi * (w - w_avg)``.

    truncation_layers : int, default=None
        Number of layers, from the first on, whose codes are truncated; ``None`` is all.

    latent_space : {"z", "w", "w+"}, default="z"
        What the latents are. "z": inputs of the mapping network. "w": its outputs,
        codes (n_samples, w_dim). "w+": a code for each layer, (n_samples, n_layers,
        w_dim) or (n_samples, n_layers * w_dim).

    noise_mode : {"const", "random", "none"}, default="const"
        Noise added in the layers. "const": the generator's own, the same for all
        images. "random": drawn anew, but the same with and without an edit. "none": no
        noise.

    label : int or array-like of shape (n_classes,), default=None
        For generators with classes: the class of all images, or weights that mix
        classes, used as they are. ``None`` reads them from the latents: one more column
        with the index of each image's class, or one column of weights for each class.
        Codes contain the class already.

    w_avg : array-like of shape (w_dim,), default=None
        The mean of the codes; ``None`` is the one that the generator stored during
        training. Generators without one need it for truncation; rosinality's give
        it by ``generator.mean_latent(4096)[0]``.
"""
CONVENTION = """\
convention : {"auto", "genforce", "nvidia", "rosinality", "shipped"}, default="auto"
        How the generator is written. "genforce" returns dicts; "nvidia"
        (stylegan2-ada-pytorch, stylegan3) has ``mapping`` and ``synthesis``;
        "rosinality" is called with lists; "shipped" is ``load_face_generator``, which
        adds no noise. "auto" finds out.
"""
SEE_ALSO = """Raises
    ------
    TypeError, ValueError
        If a setting is of another type or out of range.

    See Also
    --------
    sample_latents : Draws latents, also as codes.
    panda_sklearn.GeneratorFeatureExtractor : Takes this as ``forward``.
"""


@dataclass(frozen=True, kw_only=True)
class StyleFamily(Family):
    """What the three StyleGANs share."""

    truncation_psi: float = 1.0
    truncation_layers: int | None = None
    latent_space: str = "z"
    noise_mode: str = "const"
    label: Label | None = None
    w_avg: Numbers | None = None
    conventions: ClassVar[Any] = STYLED

    def __post_init__(self) -> None:
        check_single("truncation_psi", self.truncation_psi)
        if self.truncation_layers is not None:
            check_count("truncation_layers", self.truncation_layers, at_least=0)
        check_choice("latent_space", self.latent_space, SPACES)
        check_choice("noise_mode", self.noise_mode, NOISE_MODES)
        if self.w_avg is not None:
            mean = check_values(self.w_avg, "w_avg", "(w_dim,)", n_axes=1)
            check_fits(mean, "w_avg", torch.float32)
            if mean.ndim != 1:
                raise ValueError(
                    f"w_avg must be one code, got shape {tuple(mean.shape)}."
                )
            object.__setattr__(self, "w_avg", Numbers(map(float, mean.tolist())))
        self._check()

    def __call__(self, generator: nn.Module, latents: Tensor) -> Any:
        """Images of latents, or of codes."""
        convention = convention_of(self, generator)
        check_batch(latents)
        codes = self._codes(convention, generator, latents)
        codes = self._truncated(convention, generator, codes)
        return convention.synthesize(generator, codes, self.noise_mode)

    def _codes(
        self, convention: Styled, generator: nn.Module, latents: Tensor
    ) -> Tensor:
        """A code for each layer, (n, n_codes, w_dim), not truncated."""
        if self.latent_space == "z":
            z, labels = self._split(convention, generator, latents)
            return convention.map(generator, z, labels)
        if self.label is not None:
            raise ValueError(
                f"label={self.label!r} is read by the mapping network, which does not "
                f"run with latent_space={self.latent_space!r}: leave it at None."
            )
        size, n_codes = convention.code_size(generator), convention.n_codes(generator)
        if self.latent_space == "w":
            shapes: list[tuple[int, ...]] = [(size,)]
        else:
            shapes = [(n_codes, size), (n_codes * size,)]
        if tuple(latents.shape[1:]) not in shapes:
            expected = " or ".join(
                f"(n_samples, {', '.join(map(str, shape))})" for shape in shapes
            )
            raise ValueError(
                f"With latent_space={self.latent_space!r} {type(self).__name__} needs "
                f"codes of shape {expected}, got {tuple(latents.shape)}."
            )
        codes = latents.to(dtype_of(generator, latents.dtype))
        if self.latent_space == "w+":
            return codes.reshape(-1, n_codes, size)
        return convention.spread(generator, codes)

    def _truncated(
        self, convention: Styled, generator: nn.Module, codes: Tensor
    ) -> Tensor:
        """Truncated codes: nearer to their mean."""
        if self.truncation_psi == 1:
            return codes
        mean = convention.mean_code(generator)
        if self.w_avg is not None:
            mean = codes.new_tensor(self.w_avg)
        if mean is None:
            raise ValueError(
                f"truncation_psi={self.truncation_psi:g} needs the mean of codes, "
                "which this generator does not have: give it as w_avg."
            )
        if mean.shape[-1] != codes.shape[-1]:
            raise ValueError(
                f"w_avg has {mean.shape[-1]} numbers, but codes have {codes.shape[-1]}."
            )
        near = mean.to(codes) + self.truncation_psi * (codes - mean.to(codes))
        n = self.truncation_layers
        if n is None or n >= codes.shape[1]:
            return near
        return torch.cat([near[:, :n], codes[:, n:]], dim=1)


@dataclass(frozen=True, kw_only=True)
class StyleGAN(StyleFamily):
    __doc__ = f"""How to call a StyleGAN generator.

    {PARAMETERS}
    {CONVENTION}
    {SEE_ALSO}
    Notes
    -----
    T. Karras, S. Laine, T. Aila. "A Style-Based Generator Architecture for Generative
    Adversarial Networks". CVPR, 2019.
    """

    convention: str = "auto"


@dataclass(frozen=True, kw_only=True)
class StyleGAN2(StyleFamily):
    __doc__ = f"""How to call a StyleGAN2 generator.

    {PARAMETERS}
    {CONVENTION}
    {SEE_ALSO}
    Notes
    -----
    T. Karras, S. Laine, M. Aittala, J. Hellsten, J. Lehtinen, T. Aila. "Analyzing and
    Improving the Image Quality of StyleGAN". CVPR, 2020.
    """

    convention: str = "auto"


@dataclass(frozen=True, kw_only=True)
class StyleGAN3(StyleFamily):
    __doc__ = f"""How to call a StyleGAN3 generator, as NVIDIA wrote it.

    {PARAMETERS}
    transform : array-like of shape (3, 3), default=None
        Rotates and shifts what is in the image: ``[[c, s, x], [-s, c, y], [0, 0, 1]]``
        for an angle with cosine c and sine s and a shift (x, y) in units of the image's
        size, as in NVIDIA's ``gen_images.py``. During the call the generator's
        ``synthesis.input.transform`` is its inverse. ``None`` leaves that as it is.

    {SEE_ALSO}
    Notes
    -----
    The first code belongs to the Fourier features. Layers are larger than the image by
    a margin, and so are parts. StyleGAN3's own layers add no noise; networks derived
    from it may.

    Threads that call the same generator through this class take turns, since the
    transform belongs to the generator.

    T. Karras, M. Aittala, S. Laine, E. Harkonen, J. Hellsten, J. Lehtinen, T. Aila.
    "Alias-Free Generative Adversarial Networks". NeurIPS, 2021.
    """

    transform: tuple[tuple[float, ...], ...] | None = None
    conventions: ClassVar[Any] = {"nvidia": STYLED["nvidia"]}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transform is None:
            return
        given = check_values(self.transform, "transform", "(3, 3)")
        matrix = as_tensor(given).double().cpu().numpy()
        if matrix.shape != (3, 3):
            raise ValueError(
                "transform must be a matrix of 3 x 3 finite numbers, got shape "
                f"{matrix.shape}."
            )
        check_fits(given, "transform", torch.float32)
        if abs(np.linalg.det(matrix)) < 1e-6:
            raise ValueError("transform must have an inverse; its determinant is 0.")
        rows = tuple(tuple(row) for row in matrix.tolist())
        object.__setattr__(self, "transform", rows)

    def __call__(self, generator: nn.Module, latents: Tensor) -> Any:
        """Images of latents, or of codes."""
        check_kind("generator", generator, nn.Module)
        with Undo() as undo, undo:
            take_turn(undo)
            self._set_transform(undo, generator)
            return super().__call__(generator, latents)

    def _set_transform(self, undo: Undo, generator: nn.Module) -> None:
        """Set the generator's transform until it is put back."""
        if self.transform is None:
            return
        source: Any = get(generator, "synthesis.input")
        own = getattr(source, "transform", None)
        if not isinstance(own, Tensor):
            raise ValueError(
                "transform needs a generator with a synthesis.input.transform, which "
                f"{type(generator).__name__} lacks: leave it at None."
            )
        undo.note(lambda: setattr(source, "transform", own))
        # A new tensor: gradients may still need the values of the old one.
        source.transform = own.new_tensor(np.linalg.inv(self.transform).tolist())


def codes_of(
    family: StyleFamily, convention: Styled, generator: nn.Module, latents: Tensor
) -> Tensor:
    """The codes of latents by the mapping network, one for all layers or for each."""
    with Undo() as undo, undo:
        borrow(undo, generator)
        from_z = replace(family, latent_space="z")
        codes = from_z._codes(convention, generator, latents).float()
    if family.latent_space == "w+":
        return codes.contiguous()
    if not torch.equal(codes, codes[:, :1].expand_as(codes)):
        raise ValueError(
            "The mapping network returns a different code for each layer: use "
            'latent_space="w+".'
        )
    return codes[:, 0].clone()
