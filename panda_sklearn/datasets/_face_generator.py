"""The architecture of the small face generator that the package ships.

A style-based generator after Karras et al., *Analyzing and Improving the Image
Quality of StyleGAN* (CVPR 2020), kept small enough to run on any laptop and with
one deliberate simplification: it has no noise inputs, so that the same latents
always give the same image. Its weights are made by
``examples/train_face_generator.py``.

Depends on torch alone.

Notation: N samples, ``z`` (N, 64) latents, ``w`` (N, 128) styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Guards the two normalisations against division by zero; the usual value in style-based
# generators.
EPS = 1e-8
LATENT_SIZE = 64
STYLE_SIZE = 128
CHANNELS = {4: 192, 8: 192, 16: 128, 32: 64, 64: 24}
N_BLOCKS = len(CHANNELS)
# Slope of the leaky ReLU below 0, and the factor that keeps the variance of its input.
SLOPE = 0.2
GAIN = math.sqrt(2)


class _Linear(nn.Module):
    """A linear layer whose weight is scaled by its fan-in at run time.

    With weights of unit variance Adam moves every layer at the same relative speed
    ("equalised learning rate", Karras et al., ICLR 2018); ``speed`` makes one slower.
    """

    def __init__(
        self, n_in: int, n_out: int, *, bias: float = 0.0, speed: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / speed)
        self.bias = nn.Parameter(torch.full((n_out,), bias / speed))
        self.gain = speed / math.sqrt(n_in)
        self.speed = speed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.speed)


class _StyledConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and a leaky ReLU.

    The output is divided by the norm that unit-variance input would give it
    ("demodulation"). Scaling input and output instead of the weights makes grouped
    convolutions unnecessary: the result is the same.

    With ``upsample=True`` the output of the convolution is doubled in size
    bilinearly before bias and activation, which costs a quarter of upsampling first
    and leaves no checkerboard.
    """

    def __init__(
        self, n_in: int, n_out: int, *, size: int = 3, upsample: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, size, size))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.style = _Linear(STYLE_SIZE, n_in, bias=1.0)
        self.gain = 1 / math.sqrt(n_in * size**2)
        self.upsample = upsample

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight * self.gain
        style = self.style(w)  # (N, n_in)
        y = F.conv2d(
            x * style[:, :, None, None], weight, padding=self.weight.shape[-1] // 2
        )
        if self.upsample:
            y = _double(y)
        power = weight.square().sum(dim=(2, 3))  # (n_out, n_in)
        norm = torch.rsqrt(style.square() @ power.T + EPS)  # (N, n_out)
        # The gain goes through the leaky ReLU: two passes over y instead of four.
        scale, shift = (norm * GAIN).to(y.dtype), (self.bias * GAIN).to(y.dtype)
        y = torch.addcmul(shift[:, None, None], y, scale[:, :, None, None])
        return F.leaky_relu(y, SLOPE)


class _ToRGB(nn.Module):
    """A styled 1 x 1 convolution to three colours, without demodulation."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, n_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.style = _Linear(STYLE_SIZE, n_in, bias=1.0)
        self.gain = 1 / math.sqrt(n_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = x * self.style(w)[:, :, None, None]
        return F.conv2d(x, self.weight * self.gain, self.bias)


class _Block(nn.Module):
    """Two styled convolutions; the first doubles the size."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv0 = _StyledConv(n_in, n_out, upsample=True)
        self.conv1 = _StyledConv(n_out, n_out)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv1(self.conv0(x, w), w)


class _StartBlock(nn.Module):
    """The learned 4 x 4 constant and its styled convolution."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(n_out, 4, 4))
        self.conv1 = _StyledConv(n_out, n_out)

    def forward(self, w: Tensor) -> Tensor:
        x = self.constant.expand(len(w), -1, -1, -1)
        return self.conv1(x, w)


def _double(x: Tensor) -> Tensor:
    """Bilinear upsampling to twice the size."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class FaceGenerator(nn.Module):
    """A style-based generator of 64 x 64 face images.

    Called as ``generator(latents)``. The outputs of its blocks are the feature maps to
    decompose:

    ========== ========= =========
    layer      channels  size
    ========== ========= =========
    block4     192       4 x 4
    block8     192       8 x 8
    block16    128       16 x 16
    block32    64        32 x 32
    block64    24        64 x 64
    ========== ========= =========

    Each block's output feeds the next block and, from ``block8`` on, the image
    branch of its size (``to_rgb8`` and so on).

    Parameters
    ----------
    channels : dict of int to int, default=None
        Channels of the block of each size, 4 to 64; ``None`` is the table above.

    Attributes
    ----------
    latent_size : int
        Length of a latent, 64.

    n_styles : int
        Number of styles that ``synthesize`` takes, 5.

    style_mean : Tensor of shape (128,)
        Mean of the styles over the latent distribution, towards which
        ``truncation`` pulls.

    truncation : float
        Factor by which styles are pulled if a call does not give one. 1, not at all,
        unless the generator was loaded with another.
    """

    latent_size = LATENT_SIZE
    n_styles = N_BLOCKS

    def __init__(self, channels: dict[int, int] | None = None) -> None:
        super().__init__()
        channels = channels or CHANNELS
        self.truncation = 1.0
        # If the mapping learns as fast as the rest, latents collapse to a few faces.
        sizes = [LATENT_SIZE, STYLE_SIZE, STYLE_SIZE, STYLE_SIZE]
        self.mapping = nn.ModuleList(
            _Linear(*pair, speed=0.01) for pair in pairwise(sizes)
        )
        self.style_mean: Tensor
        self.register_buffer("style_mean", torch.zeros(STYLE_SIZE))
        self.block4 = _StartBlock(channels[4])
        self.block8 = _Block(channels[4], channels[8])
        self.to_rgb8 = _ToRGB(channels[8])
        self.block16 = _Block(channels[8], channels[16])
        self.to_rgb16 = _ToRGB(channels[16])
        self.block32 = _Block(channels[16], channels[32])
        self.to_rgb32 = _ToRGB(channels[32])
        self.block64 = _Block(channels[32], channels[64])
        self.to_rgb64 = _ToRGB(channels[64])

    def styles(self, latents: Tensor) -> Tensor:
        """Map latents (N, 64) to styles (N, 128)."""
        w = latents * torch.rsqrt(latents.square().mean(dim=1, keepdim=True) + EPS)
        for layer in self.mapping:
            w = F.leaky_relu(layer(w), SLOPE) * GAIN
        return w

    def forward(self, latents: Tensor, truncation: float | None = None) -> Tensor:
        """Generate images.

        Parameters
        ----------
        latents : Tensor of shape (n_samples, 64)
            Standard normal numbers.

        truncation : float, default=None
            Styles are pulled towards their mean by this factor. Below 1 faces are more
            alike and have fewer faults. ``None`` is the generator's own.

        Returns
        -------
        images : Tensor of shape (n_samples, 3, 64, 64)
            RGB, black is -1 and white is 1; values a little outside that range
            occur.
        """
        if truncation is None:
            truncation = self.truncation
        styles = self.styles(latents)
        w = self.style_mean.to(styles).lerp(styles, truncation)
        return self.synthesize([w] * N_BLOCKS)

    def synthesize(self, styles: Sequence[Tensor]) -> Tensor:
        """Make images from styles, one (N, 128) for each block."""
        w4, w8, w16, w32, w64 = styles
        x = self.block8(self.block4(w4), w8)
        image = self.to_rgb8(x, w8)
        x = self.block16(x, w16)
        image = _double(image) + self.to_rgb16(x, w16)
        x = self.block32(x, w32)
        image = _double(image) + self.to_rgb32(x, w32)
        x = self.block64(x, w64)
        return _double(image) + self.to_rgb64(x, w64)
