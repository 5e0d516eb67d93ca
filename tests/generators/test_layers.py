"""The table of layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from panda_sklearn.generators import (
    BigGAN,
    ProGAN,
    StyleGAN,
    StyleGAN2,
    StyleGAN3,
    list_layers,
    sample_latents,
)
from tests.emulated_cuda import emulated_cuda
from tests.generators import families as f


@pytest.mark.parametrize(
    "build, forward, expected",
    [
        # The block returns the same maps, but only after toRGB has read them.
        (f.NvidiaStyleGAN2Net, StyleGAN2(), [("synthesis.b8.conv1", None, 8)]),
        (f.StyleGAN3Net, StyleGAN3(), [("synthesis.L1_12_8", None, 12)]),
        (f.HuggingFaceBigGANNet, BigGAN(), [("generator.layers.1", None, 8)]),
        (f.BrockBigGANNet, BigGAN(), [("blocks.0.1", None, 8)]),
        # Maps here are at most 4 x 4, except those of the image's size.
        (f.ProGANNet, ProGAN(), []),
        (f.StyleGANNet, StyleGAN(), []),
        (f.RosinalityStyleGAN2Net, StyleGAN2(), []),
    ],
)
def test_layers_worth_decomposing(build, forward, expected):
    network = f.seeded(build)
    latents = sample_latents(network, 2, 0)
    layers = list_layers(network, latents, forward)
    found = [
        (layer.name, layer.select, layer.shape[-1]) for layer in layers.recommended
    ]
    assert found == expected
    assert len(layers) > len(found)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Pyramid(nn.Module):
    """A generator of 32 x 32 images, with what must not be recommended."""

    def __init__(self):
        super().__init__()
        self.grow8 = nn.ConvTranspose2d(6, 5, 8)
        self.pair8 = self.Pair()
        self.first16 = nn.Conv2d(5, 6, 3, padding=1)
        self.last16 = self.Overwriting()
        self.side16 = nn.Conv2d(6, 4, 1)
        self.norm = nn.GroupNorm(1, 6)
        self.last32 = nn.Conv2d(6, 6, 1)
        self.image = nn.Conv2d(6, 3, 1)

    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, x.mean(dim=(2, 3))

    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.activate = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.activate(self.conv(x))

    def forward(self, z):
        x = self.grow8(z[:, :, None, None])
        x, _ = self.pair8(x)
        x = self.first16(F.interpolate(x, scale_factor=2))
        x = self.last16(self.norm(x))
        _ = self.side16(x)
        x = self.last32(F.interpolate(self.norm(x), scale_factor=2))
        return self.image(x)


def test_what_is_worth_decomposing():
    """Tensors of tuples by index, the outermost name, no maps of few channels."""
    layers = list_layers(Pyramid(), torch.randn(2, 6))
    assert [(layer.name, layer.select) for layer in layers.recommended] == [
        ("pair8", 0),
        ("last16", None),
    ]
    by_name = {layer.name: layer for layer in layers}
    assert by_name["norm"].n_calls == 2


def test_the_table_is_readable():
    layers = list_layers(Pyramid(), torch.randn(2, 6))
    assert str(layers) == (
        """\
   layer            type             channels     size  calls  select
   grow8            ConvTranspose2d         5    8 x 8      1
*  pair8            Pair                    5    8 x 8      1  0
   pair8            Pair                    5        -      1  1
   first16          Conv2d                  6  16 x 16      1
   norm             GroupNorm               6  16 x 16      2
   last16.conv      Conv2d                  6  16 x 16      1
   last16.activate  ReLU                    6  16 x 16      1
*  last16           Overwriting             6  16 x 16      1
   side16           Conv2d                  4  16 x 16      1
   last32           Conv2d                  6  32 x 32      1
   image            Conv2d                  3  32 x 32      1
* worth decomposing"""
    )
    only = str(layers.recommended).splitlines()
    assert len(only) == 4 and only[0].split() == [
        "layer",
        "type",
        "channels",
        "size",
        "calls",
        "select",
    ]
    assert "worth" not in str(list_layers(nn.Sequential(nn.Linear(6, 6)), only_z()))


def only_z():
    return torch.randn(2, 6)


def test_large_maps_and_tokens_are_not_recommended():
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(2), Tokens())
    layers = list_layers(network, torch.randn(2, 3, 98, 98))
    assert [layer.name for layer in layers.recommended] == ["1"]
    lines = str(layers).splitlines()
    assert lines[3].split() == ["2", "Tokens", "?", "2401", "x", "8", "1"]
    assert lines[-1].startswith("? channels by positions, or tokens by channels")
    assert str(layers[:1]).splitlines()[1].split()[:3] == ["0", "Conv2d", "8"]


def test_networks_of_inference_mode():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 1)

        @torch.inference_mode()
        def forward(self, x):
            return self.layer(x)[:, :3, ::2, ::2]

    layers = list_layers(Frozen(), torch.randn(2, 3, 16, 16))
    assert [layer.name for layer in layers.recommended] == ["layer"]


@pytest.mark.filterwarnings("ignore")  # torch.jit warns that it is deprecated
def test_scripted_parts_are_skipped():
    network = nn.Sequential(torch.jit.script(nn.Linear(6, 5)), nn.ReLU())
    assert [layer.name for layer in list_layers(network, only_z())] == ["1"]


def test_random_numbers_are_left_alone():
    network = nn.Sequential(nn.Linear(6, 5), Noise())
    z = only_z()
    before = torch.get_rng_state()
    list_layers(network, z)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_with_buffers_alone_run_on_their_device():
    class Buffers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))
            self.layer = nn.Identity()

        def forward(self, z):
            return self.layer(self.scale * z)

    with emulated_cuda():
        network = Buffers().to("cuda")
        assert len(list_layers(network, torch.ones(2, 6))) == 1


def test_networks_without_images():
    """A classifier: every size counts, since there is no image to compare with."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 9, 1)
    )
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = list_layers(network, torch.randn(2, 3, 32, 32))
    assert [layer.name for layer in layers.recommended] == ["0.1", "0"]
