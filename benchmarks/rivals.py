"""Four rival methods of editing images of the shipped generator, in small versions.

Each was written from its paper. Three find directions in the 128 dimensions of the
styles; the fourth finds single channels of scales. None decomposes feature maps:

SeFa          eigenvectors of A'A for the weights A of the layers that take styles.
              Yujun Shen and Bolei Zhou, Closed-Form Factorization of Latent Semantics
              in GANs, CVPR 2021. https://arxiv.org/abs/2007.06600
GANSpace      principal components of the styles of many samples. Erik Harkonen, Aaron
              Hertzmann, Jaakko Lehtinen and Sylvain Paris, GANSpace: Discovering
              Interpretable GAN Controls, NeurIPS 2020.
              https://arxiv.org/abs/2004.02546
LowRankGAN    directions that change one region of the image most, less what would
              change the rest. Jiapeng Zhu, Ruili Feng, Yujun Shen, Deli Zhao, Zhengjun
              Zha, Jingren Zhou and Qifeng Chen, Low-Rank Subspaces in GANs, NeurIPS
              2021. https://arxiv.org/abs/2106.04488
StyleSpace    the scales of single channels that change little but the region. Zongze
              Wu, Dani Lischinski and Eli Shechtman, StyleSpace Analysis: Disentangled
              Controls for StyleGAN Image Generation, CVPR 2021.
              https://arxiv.org/abs/2011.12799

``sefa`` and ``ganspace`` do not know which region is to change, so the caller must
choose among their candidates; ``low_rank_gan`` and ``style_space`` do. The first three
return candidates for all layers together and for each layer alone, since their authors
edit chosen layers of style-based generators. A layer here is a block of the generator,
4, 8, 16, 32 or 64, with everything that takes its style.

The generator is left as found: without new hooks, in the same mode and without new
gradients. No global random state is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from panda_sklearn.datasets import sample_latents

__all__ = [
    "Candidate",
    "StyleChannel",
    "ganspace",
    "loco_directions",
    "low_rank_directions",
    "low_rank_gan",
    "low_rank_plus_sparse",
    "sefa",
    "style_gradients",
    "style_jacobian",
    "style_space",
]

LAYERS = (4, 8, 16, 32, 64)
CHOICES = (LAYERS, *((layer,) for layer in LAYERS))  # all together, each alone
# Singular values below this fraction of the largest count as zero: the pursuit sets
# those of its low-rank part to zero, up to rounding.
RANK_TOL = 1e-6
# The authors of LowRankGAN weight the sparse part by 1/60 for 512 dimensions; in theory
# the weight falls with the root of the dimension (Candes et al., cited below).
SPARSITY = 512**0.5 / 60


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction that edits images.

    Attributes
    ----------
    method : str
        "SeFa", "GANSpace" or "LowRankGAN".

    name : str
        Which of its directions, for example "component 3, layer 8".

    offset : Tensor of shape (5, 128)
        Added to the styles of the five layers for a strength of 1; zero for layers
        that are left alone.
    """

    method: str
    name: str
    offset: Tensor

    @torch.no_grad()
    def apply(self, generator, latents: Tensor, strengths: Tensor) -> Tensor:
        """Edit images.

        Parameters
        ----------
        generator : FaceGenerator
            The one that the candidate was made for.

        latents : Tensor of shape (n_samples, 64)
            All are generated at once: pass no more than memory holds.

        strengths : Tensor of shape (n_samples,)
            Of either sign; 0 gives ``generator(latents)`` exactly.

        Returns
        -------
        images : Tensor of shape (n_samples, 3, 64, 64)
        """
        w = generator.styles(latents)
        steps = strengths.to(w)[:, None]
        return generator.synthesize([w + steps * row for row in self.offset.to(w)])


def sefa(generator, n_directions: int) -> list[Candidate]:
    """Directions that the weights of the layers stretch most.

    The maximisers of ||A n||^2 over unit, orthogonal n, where A stacks the affine
    layers that turn a style into scales of channels, all of them or those of one block.
    A follows the paper's formula; the authors' published code also scales its rows to
    unit norm. The branches that turn maps into colours are left out; the authors leave
    out all but the last. A strength is a distance in style space.

    Parameters
    ----------
    generator : FaceGenerator

    n_directions : int
        For each choice of layers.

    Returns
    -------
    candidates : list of Candidate, 6 * n_directions of them
        All layers first, then each alone, by falling eigenvalue.
    """
    grams = torch.stack([_weight_gram(generator, layer) for layer in LAYERS])
    grams = torch.cat([grams.sum(dim=0, keepdim=True), grams])  # as CHOICES
    directions = [_leading(gram, n_directions) for gram in grams]
    return _candidates("SeFa", directions, generator)


def ganspace(
    generator, n_directions: int, *, n_samples: int = 10_000, random_state=0
) -> list[Candidate]:
    """Principal components of the styles.

    As the paper does for style-based generators: the components are found once and
    applied to all layers or to some. A strength is a number of standard deviations of
    the component.

    Parameters
    ----------
    generator : FaceGenerator

    n_directions : int
        For each choice of layers.

    n_samples : int, default=10_000
        The paper draws a million for 512 dimensions.

    random_state : int, RandomState instance or None, default=0

    Returns
    -------
    candidates : list of Candidate, 6 * n_directions of them
        All layers first, then each alone, by falling variance.
    """
    w = _sampled_styles(generator, n_samples, random_state)
    values, vectors = torch.linalg.eigh(w.double().T.cov())
    rows = (vectors * values.clamp(min=0).sqrt()).T.flip(0)[:n_directions]
    return _candidates("GANSpace", [rows] * len(CHOICES), generator)


def low_rank_gan(
    generator,
    mask: Tensor,
    n_directions: int,
    *,
    n_samples: int = 8,
    sparsity: float = SPARSITY,
    random_state=0,
) -> list[Candidate]:
    """Directions that change a region and little else.

    For the Jacobian J of the image with respect to the style, J'J of the region and of
    the rest are each split into a low-rank and a sparse part. The leading vectors b of
    the region's low-rank part are projected onto the null space, spanned by B, of the
    rest's: B B' b, scaled to unit norm. A strength is a distance in style space.

    Two liberties, both in the method's favour. The paper takes J from one image and
    finds that the directions carry over to others; here J'J is averaged over
    ``n_samples`` images (1 is the paper's way). And where the authors find a direction
    of a style that all layers share, then apply it to some layers, here a layer alone
    has directions from the Jacobian with respect to its own style.

    Parameters
    ----------
    generator : FaceGenerator

    mask : Tensor of shape (64, 64)
        The region, with values in [0, 1]: the fraction of a pixel that belongs to it.

    n_directions : int
        For each choice of layers; fewer if the rank of the region's low-rank part is
        smaller, since no more are defined.

    n_samples : int, default=8
        Number of images that J'J is averaged over.

    sparsity : float, default=sqrt(512) / 60
        The weight of the sparse part is this over the root of the dimension. The
        default is the authors' weight. Larger values give higher ranks, which leave
        less of the null space.

    random_state : int, RandomState instance or None, default=0

    Returns
    -------
    candidates : list of Candidate, at most 6 * n_directions
        All layers first, then each alone, by falling singular value.
    """
    styles = _sampled_styles(generator, n_samples, random_state)
    inside, outside = _region_grams(generator, styles, mask.to(styles))
    directions = [
        low_rank_directions(*grams, n_directions, sparsity)
        for grams in zip(inside, outside, strict=True)
    ]
    return _candidates("LowRankGAN", directions, generator)


def style_jacobian(generator, w: Tensor, *, chunk: int = 32) -> Tensor:
    """Derivative of one image with respect to the style of each layer.

    By forward mode, since there are fewer styles than pixels. Blocks before a layer do
    not depend on its style, so they run once a chunk.

    Parameters
    ----------
    generator : FaceGenerator

    w : Tensor of shape (128,)
        Given to all layers.

    chunk : int, default=32
        Number of derivatives taken at once.

    Returns
    -------
    jacobian : Tensor of shape (5, 128, 3, 64, 64)
        Summed over the first axis, the derivative by the style that all layers share.
    """
    units = torch.eye(len(w), dtype=w.dtype, device=w.device)

    def column(row, unit):
        def image(v):
            return generator.synthesize(
                [(v if k == row else w)[None] for k in range(len(LAYERS))]
            )[0]

        return jvp(image, (w,), (unit,))[1]

    with torch.no_grad():
        return torch.stack(
            [
                vmap(lambda unit: column(row, unit), chunk_size=chunk)(units)  # noqa: B023
                for row in range(len(LAYERS))
            ]
        )


@dataclass(frozen=True, eq=False)
class StyleChannel:
    """The scale of one channel of one styled layer.

    Attributes
    ----------
    layer : str
        Dotted name, for example "block16.conv0".

    channel : int
        Which of the layer's input channels.

    std : float
        Standard deviation of the scale over random latents: a strength of 1.
    """

    layer: str
    channel: int
    std: float

    @property
    def name(self) -> str:
        """For tables."""
        return f"channel {self.channel}, {self.layer}"

    @torch.no_grad()
    def apply(self, generator, latents: Tensor, strengths: Tensor, run=None) -> Tensor:
        """Edit images, as of :class:`Candidate`.

        ``run(generator, latents)``, if given, is how to call it.
        """
        styles = generator.get_submodule(self.layer).style
        steps = self.std * strengths.to(latents)

        def move(layer, args, scales):
            moved = scales.clone()
            moved[:, self.channel] += steps
            return moved

        with styles.register_forward_hook(move):
            return generator(latents) if run is None else run(generator, latents)


@torch.no_grad()
def style_gradients(
    generator, *, n_samples: int = 8, random_state=0
) -> list[tuple[StyleChannel, Tensor]]:
    """How each scale of each styled layer changes each pixel.

    Central differences at a tenth of a standard deviation of the scale, by which
    channels become comparable; absolute, summed over colours and averaged over images.

    Parameters
    ----------
    generator : FaceGenerator

    n_samples : int, default=8
        Number of images.

    random_state : int, RandomState instance or None, default=0

    Returns
    -------
    gradients : list of (StyleChannel, Tensor of shape (64, 64))
        Of the channels that change anything.
    """
    latents = sample_latents(generator, 1000, random_state)
    latents = latents.to(generator.style_mean)
    some, found = latents[:n_samples], []
    step = torch.full((n_samples,), 0.1)
    for layer, deviations in _scale_deviations(generator, latents).items():
        for channel, std in enumerate(deviations.tolist()):
            each = StyleChannel(layer, channel, std)
            ahead, back = (each.apply(generator, some, s) for s in (step, -step))
            gradient = (ahead - back).abs().sum(dim=1).mean(dim=0)
            if gradient.any():
                found.append((each, gradient))
    return found


def style_space(
    gradients: list[tuple[StyleChannel, Tensor]], mask: Tensor, n_channels: int
) -> list[StyleChannel]:
    """Channels whose scale changes little but a region.

    Those with the largest share of their gradient inside the region. The authors find
    regions with a network that segments, and ask for the channels whose gradients
    overlap most with one; here the region is given.

    Parameters
    ----------
    gradients : list
        From :func:`style_gradients`.

    mask : Tensor of shape (64, 64)
        The region, with values in [0, 1].

    n_channels : int

    Returns
    -------
    channels : list of StyleChannel
        By falling share.
    """

    def share(item):
        _, gradient = item
        return float((gradient * mask).sum() / gradient.sum())

    return [each for each, _ in sorted(gradients, key=share, reverse=True)][:n_channels]


def _scale_deviations(generator, latents):
    """Standard deviations (n_in,) of the scales of each styled layer, by its name."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.style.register_forward_hook(
            lambda layer, args, scales, name=name: seen.update(
                {name: scales.std(dim=0)}
            )
        )
        for name, module in generator.named_modules()
        if hasattr(module, "style")
    ]
    try:
        generator(latents)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def low_rank_plus_sparse(
    M: Tensor, weight: float, *, tol: float = 1e-7, max_iter: int = 1000
) -> tuple[Tensor, Tensor]:
    """Principal component pursuit: min ||L||_* + weight ||S||_1 with L + S = M.

    By the inexact augmented Lagrangian method: L and S are minimised over in turn, each
    in closed form, then the multiplier Y takes a step and the penalty mu grows.

    Parameters
    ----------
    M : Tensor of shape (n, m)

    weight : float
        1 / sqrt(max(n, m)) recovers a planted L and S under mild conditions.

    tol : float, default=1e-7
        Stop when ||M - L - S|| is below this share of ||M||.

    max_iter : int, default=1000
        More is an error: some 40 are usual.

    Returns
    -------
    L, S : Tensor of shape (n, m)

    References
    ----------
    Emmanuel Candes, Xiaodong Li, Yi Ma and John Wright, Robust Principal Component
    Analysis?, Journal of the ACM, 2011. https://arxiv.org/abs/0912.3599

    Zhouchen Lin, Minming Chen and Yi Ma, The Augmented Lagrange Multiplier Method for
    Exact Recovery of Corrupted Low-Rank Matrices, 2010.
    https://arxiv.org/abs/1009.5055
    """
    spectral = torch.linalg.matrix_norm(M, 2)
    if spectral == 0:
        return M.clone(), M.clone()
    mu = 1.25 / spectral  # this start and growth are those of Lin et al.
    Y = M / torch.maximum(spectral, M.abs().max() / weight)
    S = torch.zeros_like(M)
    for _ in range(max_iter):
        U, s, Vh = torch.linalg.svd(M - S + Y / mu, full_matrices=False)
        L = U * (s - 1 / mu).clamp(min=0) @ Vh
        S = _shrunk(M - L + Y / mu, weight / mu)
        gap = M - L - S
        if gap.norm() <= tol * M.norm():
            return L, S
        Y = Y + mu * gap
        mu = 1.5 * mu
    raise RuntimeError(f"No convergence within max_iter={max_iter}; raise tol={tol}.")


def _shrunk(X, threshold):
    """X with magnitudes lessened by the threshold, down to zero."""
    return X.sign() * (X.abs() - threshold).clamp(min=0)


def _weight_gram(generator, layer):
    """A'A (128, 128) for the styled convolutions of a block."""
    block = getattr(generator, f"block{layer}")
    weights = [conv.style.weight * conv.style.gain for conv in block.children()]
    A = torch.cat(weights).detach().double()
    return A.T @ A


def _leading(gram, n_directions):
    """Rows are unit eigenvectors by falling eigenvalue, (n_directions, 128)."""
    return torch.linalg.eigh(gram).eigenvectors.T.flip(0)[:n_directions]


@torch.no_grad()
def _sampled_styles(generator, n_samples, random_state):
    """Styles of random latents, (n_samples, 128)."""
    latents = sample_latents(generator, n_samples, random_state)
    return generator.styles(latents.to(generator.style_mean))


def _region_grams(generator, styles, mask):
    """J'J of the region and of the rest, means over samples, each (6, 128, 128).

    In the order of CHOICES: by the style that all layers share, then by each layer's.
    """
    shape = (len(CHOICES), styles.shape[1], styles.shape[1])
    inside = torch.zeros(shape, dtype=torch.float64, device=styles.device)
    outside = torch.zeros_like(inside)
    for w in styles:
        J = style_jacobian(generator, w)
        J = torch.cat([J.sum(dim=0, keepdim=True), J])  # (6, 128, 3, 64, 64)
        for grams, weights in ((inside, mask), (outside, 1 - mask)):
            part = (J * weights.sqrt()).flatten(2)  # (6, 128, 3 * 64 * 64)
            grams += (part @ part.mT).double() / len(styles)
    return inside, outside


def low_rank_directions(
    inside: Tensor, outside: Tensor, n_directions: int, sparsity: float = SPARSITY
) -> Tensor:
    """LowRankGAN's directions from J'J (n, n) of the region and of the rest.

    Rows are unit B B' b by falling singular value, (up to n_directions, n).
    """
    weight = sparsity / len(inside) ** 0.5
    _, s, Vh = torch.linalg.svd(low_rank_plus_sparse(inside, weight)[0])
    leading = Vh[: min(n_directions, _rank(s))]
    _, s, Vh = torch.linalg.svd(low_rank_plus_sparse(outside, weight)[0])
    null = Vh[min(_rank(s), len(s) - 1) :]  # one dimension at least, as the authors do
    projected = leading @ null.T @ null
    return projected / torch.linalg.vector_norm(projected, dim=1, keepdim=True)


def loco_directions(
    inside: Tensor, outside: Tensor, n_directions: int, n_removed: int
) -> Tensor:
    """LOCO Edit's directions from J'J (n, n) of the region and of the rest.

    The leading right singular vectors of the region's Jacobian, from which the
    ``n_removed`` leading ones of the rest's are projected out; unit rows. Siyi Chen,
    Huijie Zhang, Minzhe Guo, Yifu Lu, Peng Wang and Qing Qu, Exploring Low-Dimensional
    Subspaces in Diffusion Models for Controllable Image Editing, NeurIPS 2024,
    algorithm 1 (there of one image and of a diffusion model's input; here of what is
    given). https://arxiv.org/abs/2409.02374
    """
    leading, removed = _leading(inside, n_directions), _leading(outside, n_removed)
    projected = leading - leading @ removed.T @ removed
    return projected / torch.linalg.vector_norm(projected, dim=1, keepdim=True)


def _rank(s):
    """Number of falling singular values that are not zero."""
    return int((s > RANK_TOL * s[0]).sum())


def _candidates(method, directions, generator):
    """One for each row of each of the directions, which are in the order of CHOICES."""
    found = []
    for layers, rows in zip(CHOICES, directions, strict=True):
        where = "all layers" if layers == LAYERS else f"layer {layers[0]}"
        chosen = torch.tensor([[float(layer in layers)] for layer in LAYERS])
        for k, row in enumerate(rows.to(generator.style_mean), start=1):
            name = f"component {k}, {where}"
            found.append(Candidate(method, name, chosen.to(row) * row))
    return found
