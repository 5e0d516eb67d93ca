"""A compact generator of each family, in each calling convention.

Written for the tests, with random weights and the traits that matter. Each has
``layer``, the extractor's options for its tapped tensor, and ``by_hand``: the forward
pass in two pieces, that tensor and the images made from what it is changed to.
"""

import math
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

Z, W, C = 6, 10, 8  # latents, codes, channels


def seeded(build, seed=0):
    """A network in evaluation mode whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        for name, buffer in network.named_buffers():
            if name.endswith(("w_avg", "running_mean")):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return network.eval()


def keep(x):
    return x


def up(x):
    return F.interpolate(x, scale_factor=2)


def pixel_norm(x):
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


# ProGAN: progressive blocks, pixel norm, in-place activations.


class ProgressiveBlock(nn.Module):
    def __init__(self, n_in, n_out, kernel=3, padding=1, grows=False):
        super().__init__()
        self.grows = grows
        self.conv = nn.Conv2d(n_in, n_out, kernel, padding=padding)
        self.activate = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        x = pixel_norm(x)
        return self.activate(self.conv(up(x) if self.grows else x))


class ProGANNet(nn.Module):
    """As genforce's: ``G(z, label)`` returns a dict."""

    layer: ClassVar = {"layer": "layer1"}
    z_space_dim = Z

    def __init__(self, label_size=0):
        super().__init__()
        self.label_size = label_size
        self.register_buffer("lod", torch.zeros(()))
        self.layer0 = ProgressiveBlock(Z + label_size, C, kernel=4, padding=3)
        self.layer1 = ProgressiveBlock(C, C)
        self.layer2 = ProgressiveBlock(C, C, grows=True)
        self.output0 = nn.Conv2d(C, 3, 1)  # of the lower resolution, unused once grown
        self.output1 = nn.Conv2d(C, 3, 1)

    def forward(self, z, label=None, lod=None, **_unused):
        z = pixel_norm(z)
        if self.label_size:
            z = torch.cat([z, label], dim=1)
        x = self.layer1(self.layer0(z[:, :, None, None]))
        if (self.lod.item() if lod is None else lod) >= 1:
            return {"image": up(self.output0(x))}
        return {"z": z, "image": self.output1(self.layer2(x))}

    def by_hand(self, z, change=keep):
        x = self.layer0(pixel_norm(z)[:, :, None, None])
        features = F.leaky_relu(self.layer1.conv(pixel_norm(x)), 0.2)
        x = self.layer2.conv(up(pixel_norm(change(features))))
        return features, self.output1(F.leaky_relu(x, 0.2))


class PlainProGANNet(ProGANNet):
    """``G(z)`` returns the images."""

    z_space_dim = None
    latent_size = Z

    def forward(self, z):
        return super().forward(z)["image"]


# Mapping networks.


def dense(n_in):
    return nn.Sequential(nn.Linear(n_in, W), nn.LeakyReLU(0.2), nn.Linear(W, W))


class NvidiaMapping(nn.Module):
    def __init__(self, c_dim, num_ws):
        super().__init__()
        self.c_dim, self.num_ws = c_dim, num_ws
        self.layers = dense(Z + c_dim)
        self.register_buffer("w_avg", torch.zeros(W))

    def forward(
        self, z, c, truncation_psi=1, truncation_cutoff=None, update_emas=False
    ):
        assert c.shape == (len(z), self.c_dim)
        w = self.layers(torch.cat([pixel_norm(z), c], dim=1))
        if self.training:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, 0.9))
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            cutoff = truncation_cutoff
            ws[:, :cutoff] = self.w_avg.lerp(ws[:, :cutoff], truncation_psi)
        return ws


class GenforceMapping(nn.Module):
    def __init__(self, label_size=0):
        super().__init__()
        self.layers = dense(Z + label_size)

    def forward(self, z, label=None):
        if label is not None:
            z = torch.cat([z, label], dim=1)
        return {"z": z, "label": label, "w": self.layers(pixel_norm(z))}


class GenforceTruncation(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        self.num_layers = num_layers
        self.register_buffer("w_avg", torch.zeros(W))

    def forward(self, w, trunc_psi=None, trunc_layers=None):
        wp = w[:, None].repeat(1, self.num_layers, 1) if w.ndim == 2 else w
        psi, layers = trunc_psi or 1.0, trunc_layers or 0
        if psi < 1 and layers > 0:  # otherwise nothing, as in theirs
            near = self.w_avg + (wp - self.w_avg) * psi
            wp = torch.cat([near[:, :layers], wp[:, layers:]], dim=1)
        return wp


class GenforceStyles(nn.Module):
    """What genforce's StyleGANs share."""

    z_space_dim, w_space_dim = Z, W

    def __init__(self, synthesis, label_size=0):
        super().__init__()
        self.label_size = label_size
        self.num_layers = synthesis.num_layers
        self.mapping = GenforceMapping(label_size)
        self.truncation = GenforceTruncation(self.num_layers)
        self.synthesis = synthesis

    def forward(
        self,
        z,
        label=None,
        trunc_psi=None,
        trunc_layers=None,
        randomize_noise=False,
        **_unused,
    ):
        mapped = self.mapping(z, label)
        if self.training:
            self.truncation.w_avg.mul_(0.9).add_(0.1 * mapped["w"].detach().mean(0))
        wp = self.truncation(mapped["w"], trunc_psi, trunc_layers)
        return {**mapped, **self.synthesis(wp, randomize_noise=randomize_noise)}

    def by_hand(self, wp, change=keep):
        return self.synthesis.by_hand(wp, change)


# StyleGAN: adaptive instance norm, noise, layers that return (x, style).


class AdaINBlock(nn.Module):
    def __init__(self, size, grows):
        super().__init__()
        self.grows = grows
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.style = nn.Linear(W, 2 * C)
        self.strength = nn.Parameter(torch.rand(C, 1, 1))
        self.register_buffer("noise", torch.randn(1, 1, size, size))

    def forward(self, x, w, randomize_noise=False):
        x = self.conv(up(x) if self.grows else x)
        noise = torch.randn_like(x[:, :1]) if randomize_noise else self.noise
        x = F.leaky_relu(x + self.strength * noise, 0.2)
        style = self.style(w)
        scale, shift = style[:, :, None, None].chunk(2, dim=1)
        return F.instance_norm(x) * (1 + scale) + shift, style


class AdaINSynthesis(nn.Module):
    num_layers = 3

    def __init__(self):
        super().__init__()
        self.const = nn.Parameter(torch.randn(1, C, 4, 4))
        self.layer0 = AdaINBlock(4, grows=False)
        self.layer1 = AdaINBlock(8, grows=True)
        self.layer2 = AdaINBlock(8, grows=False)
        self.output = nn.Conv2d(C, 3, 1)

    def forward(self, wp, lod=None, randomize_noise=False):
        x = self.const.expand(len(wp), -1, -1, -1)
        results = {"wp": wp}
        for i in range(self.num_layers):
            layer = getattr(self, f"layer{i}")
            x, results[f"style{i}"] = layer(x, wp[:, i], randomize_noise)
        return {**results, "image": self.output(x)}

    def by_hand(self, wp, change=keep):
        x = self.const.expand(len(wp), -1, -1, -1)
        x, _ = self.layer0(x, wp[:, 0])
        features, _ = self.layer1(x, wp[:, 1])
        x, _ = self.layer2(change(features), wp[:, 2])
        return features, self.output(x)


class StyleGANNet(GenforceStyles):
    layer: ClassVar = {"layer": "synthesis.layer1", "select": 0}

    def __init__(self, label_size=0):
        super().__init__(AdaINSynthesis(), label_size)


# StyleGAN2: modulated convolutions, toRGB skips; each block's last layer has two
# consumers.


def modulated(x, weight, style, demodulate=True):
    w = weight * style[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]),
        w.flatten(0, 1),
        padding=weight.shape[-1] // 2,
        groups=len(x),
    )
    return y.reshape(len(x), -1, *y.shape[2:])


class ModulatedConv(nn.Module):
    """Its noise is "const", "random", "none" or a given tensor."""

    def __init__(self, size, grows=False):
        super().__init__()
        self.grows = grows
        self.weight = nn.Parameter(torch.randn(C, C, 3, 3) / 8)
        self.affine = nn.Linear(W, C)
        self.strength = nn.Parameter(torch.rand(()))
        self.register_buffer("noise_const", torch.randn(size, size))

    def forward(self, x, w, noise_mode="random"):
        x = modulated(up(x) if self.grows else x, self.weight, self.affine(w))
        if isinstance(noise_mode, torch.Tensor):
            x = x + self.strength * noise_mode
        elif noise_mode == "const":
            x = x + self.strength * self.noise_const
        elif noise_mode == "random":
            x = x + self.strength * torch.randn_like(x[:, :1])
        return F.leaky_relu(x, 0.2).mul_(math.sqrt(2))


class ToRGB(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, C, 1, 1) / 3)
        self.affine = nn.Linear(W, C)

    def forward(self, x, w, skip=None):
        image = modulated(x, self.weight, self.affine(w), demodulate=False)
        return image if skip is None else image + up(skip)


class NvidiaBlock(nn.Module):
    def __init__(self, size, first):
        super().__init__()
        if first:
            self.const = nn.Parameter(torch.randn(C, size, size))
        else:
            self.conv0 = ModulatedConv(size, grows=True)
        self.conv1 = ModulatedConv(size)
        self.torgb = ToRGB()
        self.first, self.num_conv = first, 1 if first else 2
        self.forced = []

    def forward(self, x, img, ws, force_fp32=False, **layer_options):
        self.forced.append(force_fp32)
        if self.first:
            x = self.const.expand(len(ws), -1, -1, -1)
        else:
            x = self.conv0(x, ws[:, 0], **layer_options)
        x = self.conv1(x, ws[:, self.num_conv - 1], **layer_options)
        return x, self.torgb(x, ws[:, self.num_conv], img)


class NvidiaSynthesis2(nn.Module):
    num_ws = 6

    def __init__(self):
        super().__init__()
        for size in (4, 8, 16):
            setattr(self, f"b{size}", NvidiaBlock(size, first=size == 4))

    def forward(self, ws, **block_options):
        assert ws.shape[1:] == (self.num_ws, W)
        x = img = None
        for size, start in ((4, 0), (8, 1), (16, 3)):
            block = getattr(self, f"b{size}")
            x, img = block(x, img, ws[:, start:], **block_options)
        return img


class NvidiaStyleGAN2Net(nn.Module):
    layer: ClassVar = {"layer": "synthesis.b8.conv1"}
    z_dim, w_dim = Z, W

    def __init__(self, c_dim=0):
        super().__init__()
        self.c_dim = c_dim
        self.synthesis = NvidiaSynthesis2()
        self.num_ws = self.synthesis.num_ws
        self.mapping = NvidiaMapping(c_dim, self.num_ws)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **options):
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, **options)

    def by_hand(self, ws, change=keep):
        b4, b8, b16 = (getattr(self.synthesis, f"b{size}") for size in (4, 8, 16))
        x = b4.conv1(b4.const.expand(len(ws), -1, -1, -1), ws[:, 0], "const")
        image = b4.torgb(x, ws[:, 1])
        features = b8.conv1(b8.conv0(x, ws[:, 1], "const"), ws[:, 2], "const")
        x = change(features)
        image = b8.torgb(x, ws[:, 3], image)
        x = b16.conv1(b16.conv0(x, ws[:, 3], "const"), ws[:, 4], "const")
        return features, b16.torgb(x, ws[:, 5], image)


class GenforceConv(ModulatedConv):
    """Returns (x, style)."""

    def forward(self, x, w, randomize_noise=False):
        x = super().forward(x, w, "random" if randomize_noise else "const")
        return x, self.affine(w)


class GenforceSynthesis2(nn.Module):
    num_layers = 4

    def __init__(self):
        super().__init__()
        self.const = nn.Parameter(torch.randn(1, C, 4, 4))
        self.layer0 = GenforceConv(4)
        self.layer1 = GenforceConv(8, grows=True)
        self.layer2 = GenforceConv(8)
        self.output0, self.output1 = ToRGB(), ToRGB()

    def forward(self, wp, randomize_noise=False):
        assert wp.shape[1:] == (self.num_layers, W)
        x = self.const.expand(len(wp), -1, -1, -1)
        x, _ = self.layer0(x, wp[:, 0], randomize_noise)
        image = self.output0(x, wp[:, 1])
        x, _ = self.layer1(x, wp[:, 1], randomize_noise)
        x, style = self.layer2(x, wp[:, 2], randomize_noise)
        image = self.output1(x, wp[:, 3], image)
        return {"wp": wp, "style02": style, "image": image}

    def by_hand(self, wp, change=keep):
        features, _ = self.layer0(self.const.expand(len(wp), -1, -1, -1), wp[:, 0])
        x = change(features)
        image = self.output0(x, wp[:, 1])
        x, _ = self.layer1(x, wp[:, 1])
        x, _ = self.layer2(x, wp[:, 2])
        return features, self.output1(x, wp[:, 3], image)


class GenforceStyleGAN2Net(GenforceStyles):
    layer: ClassVar = {"layer": "synthesis.layer0", "select": 0}

    def __init__(self, label_size=0):
        super().__init__(GenforceSynthesis2(), label_size)


class RosinalityStyleGAN2Net(nn.Module):
    layer: ClassVar = {"layer": "convs.1"}
    style_dim = W  # latents are as long as codes
    n_latent = 4

    def __init__(self):
        super().__init__()
        self.style = dense(W)
        self.input = nn.Parameter(torch.randn(1, C, 4, 4))
        self.conv1, self.to_rgb1 = ModulatedConv(4), ToRGB()
        self.convs = nn.ModuleList([ModulatedConv(8, grows=True), ModulatedConv(8)])
        self.to_rgbs = nn.ModuleList([ToRGB()])
        self.noises = nn.Module()
        for i, size in enumerate((4, 8, 8)):
            self.noises.register_buffer(f"noise_{i}", torch.randn(1, 1, size, size))

    def forward(
        self,
        styles,
        return_latents=False,
        inject_index=None,
        truncation=1,
        truncation_latent=None,
        input_is_latent=False,
        noise=None,
        randomize_noise=True,
    ):
        assert isinstance(styles, list)
        if not input_is_latent:
            styles = [self.style(s) for s in styles]
        if truncation < 1:
            styles = [
                truncation_latent + truncation * (s - truncation_latent) for s in styles
            ]
        latent = styles[0]
        if latent.ndim < 3:
            latent = latent[:, None].repeat(1, self.n_latent, 1)
        noise = [
            "random" if randomize_noise else getattr(self.noises, f"noise_{i}")
            for i in range(3)
        ]
        x = self.input.expand(len(latent), -1, -1, -1)
        x = self.conv1(x, latent[:, 0], noise[0])
        skip = self.to_rgb1(x, latent[:, 1])
        x = self.convs[0](x, latent[:, 1], noise[1])
        x = self.convs[1](x, latent[:, 2], noise[2])
        return self.to_rgbs[0](x, latent[:, 3], skip), None

    def by_hand(self, ws, change=keep):
        noise = [getattr(self.noises, f"noise_{i}") for i in range(3)]
        x = self.input.expand(len(ws), -1, -1, -1)
        x = self.conv1(x, ws[:, 0], noise[0])
        image = self.to_rgb1(x, ws[:, 1])
        x = self.convs[0](x, ws[:, 1], noise[1])
        features = self.convs[1](x, ws[:, 2], noise[2])
        return features, self.to_rgbs[0](change(features), ws[:, 3], image)


# StyleGAN3: constant Fourier features, margins around the image, a crop.

MARGIN = 2


class FourierInput(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.affine = nn.Linear(W, 4)
        with torch.no_grad():  # hardly any motion, as in theirs
            self.affine.weight.mul_(0.3)
            self.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        self.weight = nn.Parameter(torch.randn(C, C))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", torch.randn(C, 2))
        self.register_buffer("phases", torch.rand(C))

    def forward(self, w):
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        zero, one = torch.zeros_like(t[:, 0]), torch.ones_like(t[:, 0])
        rows = [
            torch.stack([t[:, 0], -t[:, 1], t[:, 2]], dim=1),
            torch.stack([t[:, 1], t[:, 0], t[:, 3]], dim=1),
            torch.stack([zero, zero, one], dim=1),
        ]
        m = torch.stack(rows, dim=1) @ self.transform
        freqs = self.freqs @ m[:, :2, :2]
        phases = self.phases + (self.freqs @ m[:, :2, 2:])[:, :, 0]
        axis = (torch.arange(self.size) + 0.5) / self.size - 0.5
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).to(w)
        x = torch.einsum("hwd,ncd->nhwc", grid, freqs) + phases[:, None, None]
        return (torch.sin(2 * math.pi * x) @ self.weight.T).permute(0, 3, 1, 2)


class FilteredConv(nn.Module):
    """Enlarges the map and crops what the convolution spoiled."""

    def __init__(self, n_out, size, grows):
        super().__init__()
        self.size, self.grows = size, grows
        self.weight = nn.Parameter(torch.randn(n_out, C, 3, 3) / 8)
        self.affine = nn.Linear(W, C)
        self.register_buffer("magnitude_ema", torch.ones(()))

    def forward(self, x, w, noise_mode="random", force_fp32=False, update_emas=False):
        assert noise_mode in ("random", "const", "none") and force_fp32
        x = x * self.magnitude_ema.rsqrt()
        x = modulated(up(x) if self.grows else x, self.weight, self.affine(w))
        crop = (x.shape[-1] - self.size) // 2
        x = x[:, :, crop : crop + self.size, crop : crop + self.size]
        return F.leaky_relu(x, 0.2)


class Synthesis3(nn.Module):
    num_ws = 5

    def __init__(self):
        super().__init__()
        self.input = FourierInput(4 + 2 * MARGIN)
        sizes = [(C, 4 + 2 * MARGIN), (C, 8 + 2 * MARGIN), (C, 8), (3, 8)]
        self.layer_names = []
        last = self.input.size
        for i, (channels, size) in enumerate(sizes):
            name = f"L{i}_{size}_{channels}"
            setattr(self, name, FilteredConv(channels, size, grows=size > last))
            self.layer_names.append(name)
            last = size

    def forward(self, ws, **layer_options):
        assert ws.shape[1:] == (self.num_ws, W)
        ws = ws.to(torch.float32).unbind(dim=1)
        x = self.input(ws[0])
        for name, w in zip(self.layer_names, ws[1:], strict=True):
            x = getattr(self, name)(x, w, **layer_options)
        return x * 0.25


class StyleGAN3Net(NvidiaStyleGAN2Net):
    layer: ClassVar = {"layer": "synthesis.L1_12_8"}

    def __init__(self, c_dim=0):
        nn.Module.__init__(self)
        self.c_dim = c_dim
        self.synthesis = Synthesis3()
        self.num_ws = self.synthesis.num_ws
        self.mapping = NvidiaMapping(c_dim, self.num_ws)

    def by_hand(self, ws, change=keep):
        s = self.synthesis
        x = s.L0_8_8(s.input(ws[:, 0]), ws[:, 1], force_fp32=True)
        features = s.L1_12_8(x, ws[:, 2], force_fp32=True)
        x = s.L2_8_8(change(features), ws[:, 3], force_fp32=True)
        return features, 0.25 * s.L3_8_3(x, ws[:, 4], force_fp32=True)


# BigGAN: class-conditional batch norm under spectral norm, and self-attention. The
# first activations are the input of the first block, and no module's output.

N_CLASSES = 5
spectral = nn.utils.parametrizations.spectral_norm


class ConditionalNorm(nn.Module):
    def __init__(self, n_condition):
        super().__init__()
        self.scale = spectral(nn.Linear(n_condition, C, bias=False))
        self.shift = spectral(nn.Linear(n_condition, C, bias=False))
        self.norm = nn.BatchNorm2d(C, affine=False)

    def forward(self, x, condition):
        scale, shift = (
            f(condition)[:, :, None, None] for f in (self.scale, self.shift)
        )
        return self.norm(x) * (1 + scale) + shift


class ResidualBlock(nn.Module):
    def __init__(self, n_condition):
        super().__init__()
        self.bn = ConditionalNorm(n_condition)
        self.conv = spectral(nn.Conv2d(C, C, 3, padding=1))

    def forward(self, x, condition, truncation=1.0):
        y = up(F.relu(self.bn(x, condition), inplace=True))
        return up(x) + truncation * self.conv(y)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (
            spectral(nn.Conv2d(C, C, 1, bias=False)) for _ in range(3)
        )
        self.gamma = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, condition=None):
        q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = (q.transpose(1, 2) @ k).softmax(dim=-1)
        return x + self.gamma * (v @ weights.transpose(1, 2)).reshape(x.shape)


class DeepInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.gen_z = spectral(nn.Linear(2 * Z, C * 16))
        self.layers = nn.ModuleList(
            [ResidualBlock(2 * Z), SelfAttention(), ResidualBlock(2 * Z)]
        )
        self.conv_to_rgb = spectral(nn.Conv2d(C, 3, 3, padding=1))

    def forward(self, condition, truncation):
        x = self.gen_z(condition).reshape(-1, 4, 4, C).permute(0, 3, 1, 2).contiguous()
        x = self.layers[0](x, condition, truncation)
        x = self.layers[2](self.layers[1](x), condition, truncation)
        return torch.tanh(self.conv_to_rgb(x))


class HuggingFaceBigGANNet(nn.Module):
    """``G(z, class_label, truncation)``."""

    layer: ClassVar = {"layer": "generator.layers.0", "tap": "input"}

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(z_dim=Z, num_classes=N_CLASSES)
        self.embeddings = nn.Linear(N_CLASSES, Z, bias=False)
        self.generator = DeepInside()

    def forward(self, z, class_label, truncation):
        assert 0 < truncation <= 1
        condition = torch.cat([z, self.embeddings(class_label)], dim=1)
        return self.generator(condition, truncation)

    def by_hand(self, inputs, change=keep):
        z, weights, truncation = inputs
        g = self.generator
        condition = torch.cat([z, weights @ self.embeddings.weight.T], dim=1)
        features = g.gen_z(condition).reshape(-1, 4, 4, C).permute(0, 3, 1, 2)
        x = g.layers[0](change(features), condition, truncation)
        x = g.layers[2](g.layers[1](x), condition, truncation)
        return features, torch.tanh(g.conv_to_rgb(x))


class BrockBigGANNet(nn.Module):
    """``G(z, G.shared(y))``, blocks in nested lists."""

    layer: ClassVar = {"layer": "blocks.0.1"}  # self-attention
    dim_z, n_classes = Z, N_CLASSES

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(N_CLASSES, Z)
        self.linear = spectral(nn.Linear(Z, C * 16))
        blocks = [[ResidualBlock(Z), SelfAttention()], [ResidualBlock(Z)]]
        self.blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(C), nn.ReLU(inplace=True), spectral(nn.Conv2d(C, 3, 1))
        )

    def forward(self, z, y):
        x = self.linear(z).reshape(-1, C, 4, 4)
        for blocks in self.blocks:
            for block in blocks:
                x = block(x, y)
        return torch.tanh(self.output_layer(x))

    def by_hand(self, inputs, change=keep):
        z, weights, _ = inputs
        y = weights @ self.shared.weight
        x = self.blocks[0][0](self.linear(z).reshape(-1, C, 4, 4), y)
        features = self.blocks[0][1](x)
        x = self.blocks[1][0](change(features), y)
        return features, torch.tanh(self.output_layer(x))
