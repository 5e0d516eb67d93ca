"""The same images edited many times: what comes before the layer is done once."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_edits, sample_latents
from tests.networks import TinyGenerator


def editor_of(network, z, layer="block1", **options):
    extractor = GeneratorFeatureExtractor(network, layer, **options)
    panda = PartsAppearanceDecomposition(2, 3, max_iter=3, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


@pytest.fixture
def z():
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """Counts how often its layer really runs."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.n = layer, 0

    def forward(self, *args):
        self.n += 1
        return self.layer(*args)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("block1", {}),
        ("block2", {"tap": "input"}),
        ("block1", {"tap": "update"}),
        ("norm", {"call": 1}),
        ("block1", {"batch_size": 4}),
    ],
)
def test_edits_are_the_editors(z, layer, options, noise):
    network = TinyGenerator(noise)
    editor = editor_of(network, z, layer, **options)
    prepared = editor.prepare(z)
    assert torch.equal(prepared.images, editor.extractor.generate(z))
    assert torch.equal(prepared.latents, z)
    n_channels = editor.decomposition.map_shape_[0]
    edits = [
        Edit(0, 1, np.linspace(-2, 2, 10)),
        Edit(np.ones(n_channels), 0, 3.0, "alpha"),
        Edit(latent=np.ones(6), part=0, strength=0.5),
        Edit(0, 1, 0.0),
    ]
    for edit in (*edits, edits[:3]):
        assert torch.equal(prepared.edit(edit), editor.edit(z, edit))
    refined = prepared.edit(edits[0], refine=True)
    assert torch.equal(refined, editor.edit(z, edits[0], refine=True))


def test_earlier_layers_run_once(z):
    network = TinyGenerator()
    network.dense, network.block2 = Counted(network.dense), Counted(network.block2)
    editor = editor_of(network, z)
    prepared = editor.prepare(z)
    network.dense.n = network.block2.n = 0
    for strength in (1.0, 2.0, 3.0):
        prepared.edit(Edit(0, 1, strength))
    assert network.dense.n == 0 and network.block2.n == 3


def test_the_network_is_left_as_it_was(z):
    network = TinyGenerator()
    editor = editor_of(network, z)
    before = {name: dict(vars(m)) for name, m in network.named_modules()}
    prepared = editor.prepare(z)
    prepared.edit(Edit(0, 1, 2.0))
    with pytest.raises(ValueError, match="part"):
        prepared.edit(Edit(0, 9, 2.0))
    for name, module in network.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_other_threads_see_the_network_itself(z):
    network = TinyGenerator()
    editor = editor_of(network, z)
    prepared = editor.prepare(z[:5])
    expected = editor.extractor.generate(z[5:])
    found, begun, done = [], threading.Event(), threading.Event()

    def hold(module, args):
        if threading.current_thread() is not main:
            return
        begun.set()
        done.wait(30)

    main = threading.current_thread()
    other = threading.Thread(
        target=lambda: (begun.wait(30), found.append(network(z[5:])), done.set())
    )
    with network.block2.register_forward_pre_hook(hold), torch.no_grad():
        other.start()
        prepared.edit(Edit(0, 1, 2.0))
        other.join()
    torch.testing.assert_close(found[0], expected)


class Remembering(nn.Module):
    """A layer leaves something for a later one, past all that is returned."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)
        self.first.register_forward_hook(self.remember)

    def remember(self, layer, args, output):
        self.seen = args[0].mean() + self.extra

    def forward(self, z):
        self.extra = z.sum()
        x = self.block(self.first(z))
        out = self.last(x) + self.seen
        self.seen = None
        return out


class Leaving(Remembering):
    """The same from within the layer."""

    def __init__(self):
        super().__init__()
        own = self.first.forward

        def leave(x):
            self.remember(None, (x,), None)
            return own(x)

        self.first.forward = leave


@pytest.mark.parametrize("kind", [Remembering, Leaving])
def test_networks_that_remember_are_run_whole(kind):
    torch.manual_seed(0)
    network, z = kind().eval(), torch.randn(6, 2, 4, 4)
    editor = editor_of(network, z, "block")
    edit = Edit(0, 1, 2.0)
    assert torch.equal(editor.prepare(z).edit(edit), editor.edit(z, edit))


class Skipping(nn.Module):
    """Its first layer leaves a skip connection as an attribute."""

    class First(nn.Conv2d):
        def forward(self, x):
            self.skip = super().forward(x)
            return self.skip

    def __init__(self):
        super().__init__()
        self.first, self.block = self.First(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, z):
        return self.last(self.block(self.first(z)) + self.first.skip)


def test_skips_past_what_is_returned():
    """Which a pass of other latents has overwritten since."""
    torch.manual_seed(0)
    network, z = Skipping().eval(), torch.randn(6, 2, 4, 4)
    editor = editor_of(network, z, "block", batch_size=3)
    edit = Edit(0, 1, 2.0)
    prepared = editor.prepare(z)
    editor.extractor.generate(z.flip(0))
    torch.testing.assert_close(prepared.edit(edit), editor.edit(z, edit))


def test_threads_take_turns(z):
    network = TinyGenerator()
    editor = editor_of(network, z)
    prepared = editor.prepare(z)
    edits = [Edit(0, 1, float(k)) for k in range(3)]
    expected = [editor.edit(z, edit) for edit in edits]
    wrong = []

    def work(k):
        for _ in range(20):
            if not torch.equal(prepared.edit(edits[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not any("forward" in vars(module) for module in network.modules())


def test_numpy_gives_numpy(z):
    editor = editor_of(TinyGenerator(), z)
    prepared = editor.prepare(z.numpy())
    assert isinstance(prepared.images, np.ndarray)
    assert isinstance(prepared.edit(Edit(0, 1, 1.0)), np.ndarray)


def test_faces():
    editor, edits = load_face_edits()
    z = sample_latents(editor.extractor.generator, 3, random_state=0)
    prepared = editor.prepare(z)
    for edit in edits[:3]:
        assert torch.equal(prepared.edit(edit), editor.edit(z, edit))


class TestSteps:
    """Of a layer that runs many times, what comes before the first tapped call."""

    @pytest.fixture
    def model(self):
        diffusers = pytest.importorskip("diffusers")
        from panda_sklearn.generators import Diffusion

        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = diffusers.UNet2DModel(
                sample_size=8,
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            ).eval()
        return Diffusion(unet, diffusers.DDIMScheduler(), n_steps=6)

    def test_of_a_block_that_returns_a_tensor_twice(self, model):
        z = sample_latents(model, 2, random_state=0)
        editor = editor_of(model, z, "unet.down_blocks.1", select=0, call=1)
        edit = Edit(0, 1, 5.0)
        assert torch.equal(editor.prepare(z).edit(edit), editor.edit(z, edit))

    @pytest.mark.parametrize("how", ["samples", "channels"])
    def test_earlier_steps_run_once(self, model, how):
        z = sample_latents(model, 4, random_state=0)
        editor = editor_of(
            model, z, "unet.up_blocks.0", call=[3, 5], calls_as=how, batch_size=3
        )
        prepared = editor.prepare(z)
        calls = []
        with model.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1)):
            late = prepared.edit(Edit(0, 1, 2.0, calls=5))
        assert torch.equal(late, editor.edit(z, Edit(0, 1, 2.0, calls=5)))
        # Of two batches, the steps from the first tapped one on.
        assert len(calls) == 2 * 3
        both = Edit(0, 1, 2.0)
        assert torch.equal(prepared.edit(both), editor.edit(z, both))
        if how == "samples":
            early = Edit(0, 1, 2.0, calls=[1, 3])
            assert torch.equal(prepared.edit(early), editor.edit(z, early))
