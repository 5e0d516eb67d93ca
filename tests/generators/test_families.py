"""Every family and convention, against its forward pass in two pieces."""

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch.nn import functional as F

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.generators import (
    BigGAN,
    ProGAN,
    StyleGAN,
    StyleGAN2,
    StyleGAN3,
    sample_latents,
)
from tests.generators import families as f

TURN = ((0.8, 0.6, 0.1), (-0.6, 0.8, -0.2), (0.0, 0.0, 1.0))


def nvidia_codes(network, z, labels=None, **truncation):
    c = z.new_zeros(len(z), 0) if labels is None else labels
    return network.mapping(z, c, **truncation)


def genforce_codes(network, z, psi=None, layers=None, label=None):
    return network.truncation(network.mapping(z, label)["w"], psi, layers)


def rosinality_codes(network, z, psi=1.0, mean=0.0):
    w = mean + psi * (network.style(z) - mean)
    return w[:, None].repeat(1, network.n_latent, 1)


def turned(network, z):
    """Codes, with the transform set in the generator: by_hand takes none."""
    network.synthesis.input.transform = torch.tensor(TURN).inverse()
    return nvidia_codes(network, z, truncation_psi=0.6)


def mixed(z, *weights):
    return torch.tensor(weights).expand(len(z), -1)


MEAN = np.linspace(-1, 1, f.W)


@dataclass
class Case:
    """A network, how we call it, and the inputs of its ``by_hand`` from latents."""

    build: Any
    forward: Any
    inputs: Any
    classes: int = 0


CASES = {
    "progan": Case(f.ProGANNet, ProGAN(), lambda network, z: z),
    "progan plain": Case(f.PlainProGANNet, ProGAN(), lambda network, z: z),
    "stylegan": Case(f.StyleGANNet, StyleGAN(), genforce_codes),
    "stylegan truncated": Case(
        f.StyleGANNet,
        StyleGAN(truncation_psi=0.5, truncation_layers=2),
        lambda network, z: genforce_codes(network, z, 0.5, 2),
    ),
    "stylegan2 genforce": Case(
        f.GenforceStyleGAN2Net,
        StyleGAN2(truncation_psi=0.7),
        lambda network, z: genforce_codes(network, z, 0.7, 99),
    ),
    "stylegan2 nvidia": Case(f.NvidiaStyleGAN2Net, StyleGAN2(), nvidia_codes),
    "stylegan2 nvidia truncated": Case(
        f.NvidiaStyleGAN2Net,
        StyleGAN2(truncation_psi=0.7, truncation_layers=3, convention="nvidia"),
        lambda network, z: nvidia_codes(
            network, z, truncation_psi=0.7, truncation_cutoff=3
        ),
    ),
    "stylegan2 nvidia classes": Case(
        lambda: f.NvidiaStyleGAN2Net(c_dim=4),
        StyleGAN2(),
        lambda network, x: nvidia_codes(
            network, x[:, : f.Z], F.one_hot(x[:, f.Z].long(), 4).float()
        ),
        classes=4,
    ),
    "stylegan2 nvidia label": Case(
        lambda: f.NvidiaStyleGAN2Net(c_dim=4),
        StyleGAN2(label=2),
        lambda network, z: nvidia_codes(network, z, torch.eye(4)[2].expand(len(z), -1)),
    ),
    "stylegan2 rosinality": Case(
        f.RosinalityStyleGAN2Net, StyleGAN2(), rosinality_codes
    ),
    "stylegan2 rosinality truncated": Case(
        f.RosinalityStyleGAN2Net,
        StyleGAN2(truncation_psi=0.4, w_avg=MEAN),
        lambda network, z: rosinality_codes(
            network, z, 0.4, torch.tensor(MEAN, dtype=torch.float32)
        ),
    ),
    "stylegan3": Case(f.StyleGAN3Net, StyleGAN3(), nvidia_codes),
    "stylegan3 turned": Case(
        f.StyleGAN3Net, StyleGAN3(truncation_psi=0.6, transform=TURN), turned
    ),
    "biggan": Case(
        f.HuggingFaceBigGANNet,
        BigGAN(truncation=0.4),
        lambda network, x: (
            0.4 * x[:, : f.Z],
            F.one_hot(x[:, f.Z].long(), f.N_CLASSES).float(),
            0.4,
        ),
        classes=f.N_CLASSES,
    ),
    "biggan mixed": Case(
        f.HuggingFaceBigGANNet,
        BigGAN(label=(0, 0.25, 0, 0.75, 0)),
        lambda network, z: (z, mixed(z, 0, 0.25, 0, 0.75, 0), 1.0),
    ),
    "biggan brock": Case(
        f.BrockBigGANNet,
        BigGAN(truncation=0.5),
        lambda network, x: (
            0.5 * x[:, : f.Z],
            F.one_hot(x[:, f.Z].long(), f.N_CLASSES).float(),
            None,
        ),
        classes=f.N_CLASSES,
    ),
    "biggan brock mixed": Case(
        f.BrockBigGANNet,
        BigGAN(label=(0.5, 0, 0, 0, 0.5)),
        lambda network, z: (z, mixed(z, 0.5, 0, 0, 0, 0.5), None),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def network(case):
    return f.seeded(case.build)


@pytest.fixture
def latents(case, network):
    return sample_latents(network, 7, 0, forward=case.forward)


def make_extractor(network, forward, batch_size=3, **options):
    return GeneratorFeatureExtractor(
        network, **network.layer, forward=forward, batch_size=batch_size, **options
    )


def by_hand(case, latents, change=f.keep):
    """On a network of its own, with the same weights."""
    network = f.seeded(case.build)
    with torch.no_grad():
        return network.by_hand(case.inputs(network, latents), change)


def test_features_and_images_are_those_of_a_pass_by_hand(case, network, latents):
    features, images = by_hand(case, latents)
    extractor = make_extractor(network, case.forward).fit(latents)
    torch.testing.assert_close(
        extractor.transform(latents), features, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        extractor.generate(latents), images, atol=1e-5, rtol=1e-4
    )
    assert latents.shape[1] == (case.classes > 0) + (
        network.style_dim if isinstance(network, f.RosinalityStyleGAN2Net) else f.Z
    )


def test_an_edit_is_running_on_from_the_edited_activations(case, network, latents):
    def change(x):
        return 1.5 * x - 0.3

    features, images = by_hand(case, latents, change)
    extractor = make_extractor(network, case.forward).fit(latents)
    for replacement in (change, change(features)):
        edited = extractor.generate(latents, features=replacement)
        torch.testing.assert_close(edited, images, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(images, extractor.generate(latents), atol=1e-3)


def test_an_edit_of_nothing_changes_no_bit(case, network, latents):
    pipeline = make_pipeline(
        make_extractor(network, case.forward),
        PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0),
    ).fit(latents)
    editor = LocalEditor.from_pipeline(pipeline)
    plain = pipeline[0].generate(latents)
    assert torch.equal(editor.edit(latents, Edit(0, 1, 0.0)), plain)
    assert torch.equal(pipeline[0].generate(latents, features=lambda x: x), plain)
    assert (editor.edit(latents, Edit(0, 1, 5.0)) - plain).abs().max() > 1e-3


def test_batches_do_not_matter(case, network, latents):
    whole = make_extractor(network, case.forward, batch_size=7).fit(latents)
    single = make_extractor(network, case.forward, batch_size=1).fit(latents)
    for method in ("transform", "generate"):
        torch.testing.assert_close(
            getattr(whole, method)(latents),
            getattr(single, method)(latents),
            atol=5e-5,  # about forty layers in single precision
            rtol=0,
        )


def test_the_network_is_left_as_it_was(case, network, latents):
    network.train()
    list(network.modules())[3].eval()
    list(network.parameters())[1].requires_grad_(False)

    def picture():
        return (
            [module.training for module in network.modules()],
            [
                (name, p.data_ptr(), p.requires_grad)
                for name, p in network.named_parameters()
            ],
            [
                [list(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks)]
                for m in network.modules()
            ],
            {k: (id(v), v.data_ptr()) for k, v in network.named_buffers()},
        )

    before = picture()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    random = torch.get_rng_state()
    extractor = make_extractor(network, case.forward).fit(latents)
    extractor.generate(latents, features=extractor.transform(latents))
    extractor.list_layers(network, latents[:2], case.forward)
    with pytest.raises(KeyboardInterrupt):

        def interrupt(x):
            raise KeyboardInterrupt

        extractor.generate(latents, features=interrupt)
    assert picture() == before
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_forwards_pickle_and_compare(case, network, latents):
    copy = pickle.loads(pickle.dumps(case.forward))
    assert copy == case.forward and hash(copy) == hash(case.forward)
    assert repr(copy) == repr(case.forward)
    for forward in (case.forward, copy):
        extractor = make_extractor(network, forward).fit(latents)
        features = extractor.transform(latents)
        torch.testing.assert_close(
            features, by_hand(case, latents)[0], atol=1e-5, rtol=1e-4
        )


def test_numpy_latents(case, network, latents):
    extractor = make_extractor(network, case.forward).fit(latents)
    images = extractor.generate(latents.double().numpy())
    assert isinstance(images, np.ndarray)
    torch.testing.assert_close(
        torch.from_numpy(images), extractor.generate(latents), atol=1e-5, rtol=1e-4
    )


def test_two_readers_of_one_output():
    """The output reaches toRGB and the next convolution; that one's input only one."""
    network = f.seeded(f.NvidiaStyleGAN2Net)
    z = sample_latents(network, 4, 0)
    ws = nvidia_codes(network, z)
    features, _ = network.by_hand(ws)
    s = network.synthesis
    with torch.no_grad():
        x = s.b4.conv1(s.b4.const.expand(4, -1, -1, -1), ws[:, 0], "const")
        image = s.b8.torgb(features, ws[:, 3], s.b4.torgb(x, ws[:, 1]))
        x = s.b16.conv0(features + 2, ws[:, 3], "const")
        expected = s.b16.torgb(s.b16.conv1(x, ws[:, 4], "const"), ws[:, 5], image)
    one = GeneratorFeatureExtractor(
        network, "synthesis.b16.conv0", tap="input", forward=StyleGAN2()
    ).fit(z)
    torch.testing.assert_close(one.transform(z), features.detach())
    edited = one.generate(z, features=lambda x: x + 2)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-4)
    both = make_extractor(network, StyleGAN2()).fit(z)
    assert not torch.allclose(both.generate(z, features=lambda x: x + 2), edited)
    # The block returns the same maps, after toRGB has read them.
    block = GeneratorFeatureExtractor(
        network, "synthesis.b8", select=0, forward=StyleGAN2()
    ).fit(z)
    edited = block.generate(z, features=lambda x: x + 2)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-4)


# Noise


STYLED = {
    "stylegan": (f.StyleGANNet, StyleGAN),
    "genforce": (f.GenforceStyleGAN2Net, StyleGAN2),
    "nvidia": (f.NvidiaStyleGAN2Net, StyleGAN2),
    "rosinality": (f.RosinalityStyleGAN2Net, StyleGAN2),
}


@pytest.mark.parametrize("name", STYLED)
def test_random_noise_is_the_same_with_and_without_an_edit(name):
    build, family = STYLED[name]
    network = f.seeded(build)
    z = sample_latents(network, 5, 0)
    const = make_extractor(network, family()).fit(z)
    extractor = make_extractor(network, family(noise_mode="random")).fit(z)
    images = extractor.generate(z)
    assert not torch.allclose(images, const.generate(z), atol=1e-3)
    assert torch.equal(extractor.generate(z, features=lambda x: x), images)


def test_no_noise():
    network = f.seeded(f.NvidiaStyleGAN2Net)
    z = sample_latents(network, 3, 0)
    none = StyleGAN2(noise_mode="none")
    images = make_extractor(network, none).fit(z).generate(z)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, f.ModulatedConv):
                module.strength.zero_()
    plain = make_extractor(network, StyleGAN2()).fit(z).generate(z)
    torch.testing.assert_close(images, plain)
    for build in (f.GenforceStyleGAN2Net, f.RosinalityStyleGAN2Net):
        network = f.seeded(build)
        z = sample_latents(network, 3, 0)
        with pytest.raises(ValueError, match="noise_mode='none' is not offered"):
            make_extractor(network, none).fit(z)
