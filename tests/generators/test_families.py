"""Every family, in every calling convention, against its forward pass in two pieces."""

import pickle
import threading
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
from panda_sklearn.editing import EditedGenerator
from panda_sklearn.generators import (
    BigGAN,
    ProGAN,
    StyleGAN,
    StyleGAN2,
    StyleGAN3,
    sample_latents,
)
from tests.emulated_cuda import emulated_cuda
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
    """Codes, and the generator turned for good: by_hand has no transform of its own."""
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
    assert not torch.equal(editor.edit(latents, Edit(0, 1, 5.0)), plain)


def test_batches_do_not_matter(case, network, latents):
    whole = make_extractor(network, case.forward, batch_size=7).fit(latents)
    single = make_extractor(network, case.forward, batch_size=1).fit(latents)
    for method in ("transform", "generate"):
        torch.testing.assert_close(
            getattr(whole, method)(latents),
            getattr(single, method)(latents),
            atol=1e-5,
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
    torch.testing.assert_close(features, by_hand(case, latents)[0], atol=1e-5, rtol=0.1)


def test_numpy_latents(case, network, latents):
    extractor = make_extractor(network, case.forward).fit(latents)
    images = extractor.generate(latents.double().numpy())
    assert isinstance(images, np.ndarray)
    torch.testing.assert_close(
        torch.from_numpy(images), extractor.generate(latents), atol=1e-5, rtol=1e-4
    )


def test_two_readers_of_one_output():
    """Its output reaches toRGB and the next convolution, the next one's input one."""
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
    # The block gives the same maps, after toRGB has read them.
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


# Codes instead of latents


@pytest.mark.parametrize("name", [*STYLED, "stylegan3"])
@pytest.mark.parametrize("space", ["w", "w+", "rows"])
def test_codes_make_the_images_of_their_latents(name, space):
    build, family = {**STYLED, "stylegan3": (f.StyleGAN3Net, StyleGAN3)}[name]
    network = f.seeded(build)
    truncation = {"truncation_psi": 0.7, "truncation_layers": 2, "w_avg": MEAN}
    from_z = family(**truncation)
    from_codes = family(latent_space="w" if space == "w" else "w+", **truncation)
    z = sample_latents(network, 5, 0)
    codes = sample_latents(network, 5, 0, forward=from_codes)
    assert codes.shape == ((5, f.W) if space == "w" else (5, codes.shape[1], f.W))
    if space == "rows":
        codes = codes.flatten(1)
    torch.testing.assert_close(
        make_extractor(network, from_codes).fit(codes).generate(codes),
        make_extractor(network, from_z).fit(z).generate(z),
        atol=1e-5,
        rtol=1e-4,
    )


def test_codes_of_single_layers():
    """Codes of late layers change the image, and not the features before them."""
    network = f.seeded(f.NvidiaStyleGAN2Net)
    forward = StyleGAN2(latent_space="w+")
    codes = sample_latents(network, 4, 0, forward=forward)
    other = codes.clone()
    other[:, 4:] += 1
    extractor = make_extractor(network, forward).fit(codes)
    features = [extractor.transform(each) for each in (codes, other)]
    assert torch.equal(*features)
    images = [extractor.generate(each) for each in (codes, other)]
    assert not torch.allclose(*images, atol=1e-3)


@pytest.mark.parametrize(
    "space, shape, match",
    [
        ("w", (2, 9), r"codes of shape \(n_samples, 10\), got \(2, 9\)"),
        ("w+", (2, 5, 10), r"\(n_samples, 6, 10\) or \(n_samples, 60\), got"),
        ("z", (2, 7), r"StyleGAN2 needs latents of 6 columns; got shape \(2, 7\)"),
    ],
)
def test_codes_of_other_shapes(space, shape, match):
    extractor = make_extractor(
        f.seeded(f.NvidiaStyleGAN2Net), StyleGAN2(latent_space=space)
    )
    with pytest.raises(ValueError, match=match):
        extractor.fit(torch.zeros(shape))


# Classes


@pytest.mark.parametrize(
    "build, forward",
    [
        (lambda: f.ProGANNet(label_size=3), ProGAN()),
        (lambda: f.StyleGANNet(label_size=3), StyleGAN()),
        (lambda: f.GenforceStyleGAN2Net(label_size=3), StyleGAN2()),
        (lambda: f.NvidiaStyleGAN2Net(c_dim=3), StyleGAN2()),
        (lambda: f.StyleGAN3Net(c_dim=3), StyleGAN3()),
        (f.HuggingFaceBigGANNet, BigGAN()),
        (f.BrockBigGANNet, BigGAN()),
    ],
)
def test_ways_of_giving_a_class_agree(build, forward):
    network = f.seeded(build)
    n_classes = f.N_CLASSES if isinstance(forward, BigGAN) else 3
    latents = sample_latents(network, 6, 0, classes=2)
    z, column = latents[:, :-1], latents[:, -1]
    assert (column == 2).all()
    weights = torch.cat([z, torch.eye(n_classes)[2].expand(6, -1)], dim=1)
    labelled = type(forward)(label=2)
    mixture = type(forward)(label=np.eye(n_classes)[2])
    images = [
        make_extractor(network, how).fit(x).generate(x)
        for how, x in (
            (forward, latents),
            (forward, weights),
            (labelled, z),
            (mixture, z),
        )
    ]
    for other in images[1:]:
        torch.testing.assert_close(other, images[0], atol=1e-5, rtol=1e-4)
    other = latents.clone()
    other[:, -1] = 1
    assert not torch.allclose(
        make_extractor(network, forward).fit(other).generate(other), images[0]
    )


def test_classes_survive_half_precision():
    """bfloat16 would make 997 of class 999."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"z_dim": 2, "num_classes": 1000})()
            self.embeddings = torch.nn.Linear(1000, 1)
            self.generator = torch.nn.Identity()

        def forward(self, z, weights, truncation):
            assert z.dtype == weights.dtype == torch.bfloat16
            return self.generator(weights.argmax(dim=1)[:, None].float())

    latents = torch.tensor([[0.5, 0.5, 999], [0.1, 0.2, 301]])
    extractor = GeneratorFeatureExtractor(
        Counting().bfloat16(), "generator", forward=BigGAN()
    ).fit(latents)
    assert extractor.transform(latents)[:, 0].tolist() == [999, 301]


@pytest.mark.parametrize(
    "forward, latents, match",
    [
        (BigGAN(), torch.zeros(2, 6), "5 classes, and none was chosen"),
        (BigGAN(label=5), torch.zeros(2, 6), "label must be from 0 to 4, got 5"),
        (BigGAN(label=[1, 0]), torch.zeros(2, 6), "label has 2 weights, but.*5 class"),
        (BigGAN(label=1), torch.zeros(2, 7), "classes are given twice"),
        (BigGAN(), torch.full((2, 7), 0.5), "whole numbers from 0 to 4; got 0.5"),
        (BigGAN(), torch.full((2, 7), 5.0), "whole numbers from 0 to 4; got 5"),
        (BigGAN(), torch.full((2, 7), -1.0), "whole numbers from 0 to 4; got -1"),
        (BigGAN(), torch.zeros(2, 8), r"6 columns, or 7 with .* or 11 with weights"),
        (BigGAN(), torch.zeros(2, 7, 1), "6 columns"),
    ],
)
def test_classes_that_do_not_fit(forward, latents, match):
    extractor = make_extractor(f.seeded(f.HuggingFaceBigGANNet), forward)
    with pytest.raises(ValueError, match=match):
        extractor.fit(latents)


def test_columns_that_cannot_hold_the_classes():
    class Many(torch.nn.Module):
        config = type("Config", (), {"z_dim": 2, "num_classes": 1000})()
        embeddings = generator = 1

    latents = torch.tensor([[0.5, 0.5, 901]], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 does not tell 1000 classes"):
        BigGAN()(Many(), latents)


@pytest.mark.parametrize("shape", [(5, 6, 1, 1), (5, 2, 3)])
def test_plain_generators_take_latents_of_any_shape(shape):
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
    network.nz = 6
    latents = torch.arange(30.0).reshape(shape)
    extractor = GeneratorFeatureExtractor(network, "0", forward=ProGAN())
    assert torch.equal(extractor.fit_transform(latents), latents)
    embedding = torch.nn.Sequential(torch.nn.Embedding(30, 4))
    extractor = GeneratorFeatureExtractor(embedding, "0", forward=ProGAN())
    assert extractor.fit_transform(latents.long().flatten(1)).shape == (5, 6, 4)


def test_codes_take_the_precision_of_the_network():
    network = f.seeded(f.NvidiaStyleGAN2Net).double()
    forward = StyleGAN2(latent_space="w+", truncation_psi=0.5)
    codes = sample_latents(network, 3, 0, forward=forward)
    assert codes.dtype == torch.float32
    features = make_extractor(network, forward).fit_transform(codes.numpy())
    assert features.dtype == np.float64


def test_settings_print_short():
    zeros, ones = (StyleGAN2(w_avg=fill(512)) for fill in (np.zeros, np.ones))
    assert "w_avg=<512 numbers of norm 0>" in repr(zeros)
    assert repr(ones) != repr(zeros) and ones != zeros
    assert len(repr(BigGAN(label=np.ones(1000)))) < 120


def test_labels_of_generators_without_classes():
    extractor = make_extractor(f.seeded(f.NvidiaStyleGAN2Net), StyleGAN2(label=1))
    with pytest.raises(ValueError, match="label=1, but the generator has no classes"):
        extractor.fit(torch.zeros(2, 6))


# Truncation, the transform, conventions


def test_truncation_needs_a_mean():
    network = f.seeded(f.RosinalityStyleGAN2Net)
    z = sample_latents(network, 2, 0)
    with pytest.raises(ValueError, match="give it as w_avg"):
        make_extractor(network, StyleGAN2(truncation_psi=0.5)).fit(z)
    short = StyleGAN2(truncation_psi=0.5, w_avg=[0.0, 1.0])
    with pytest.raises(ValueError, match="w_avg has 2 numbers, but codes have 10"):
        make_extractor(network, short).fit(z)


def test_truncation_at_its_ends():
    network = f.seeded(f.NvidiaStyleGAN2Net)
    z = sample_latents(network, 3, 0)

    def images(**options):
        return make_extractor(network, StyleGAN2(**options)).fit(z).generate(z)

    mean = images(truncation_psi=0)
    torch.testing.assert_close(mean[:1].expand_as(mean), mean)
    assert torch.equal(images(truncation_psi=0.5, truncation_layers=0), images())
    beyond = images(truncation_psi=0.5, truncation_layers=99)
    assert torch.equal(beyond, images(truncation_psi=0.5))


def test_transforms_of_threads():
    """Each thread gets the images of its own transform, or of none."""
    network = f.seeded(f.StyleGAN3Net)
    z = sample_latents(network, 4, 0)
    forwards = [StyleGAN3(), StyleGAN3(transform=TURN)]
    extractors = [make_extractor(network, forward).fit(z) for forward in forwards] * 3
    expected = [extractor.generate(z) for extractor in extractors]
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    wrong = []

    def work(i):
        for _ in range(15):
            if not torch.allclose(extractors[i].generate(z), expected[i], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(network.synthesis.input.transform, torch.eye(3))


def test_gradients_flow_through_a_transformed_generator():
    network = f.seeded(f.StyleGAN3Net)
    z = sample_latents(network, 9, 0)
    pipeline = make_pipeline(
        make_extractor(network, StyleGAN3(transform=TURN)),
        PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0),
    ).fit(z)
    editor = LocalEditor.from_pipeline(pipeline)
    edited = EditedGenerator(editor, Edit(0, 1, 2.0), learn_strengths=True)
    latents = z[:2].clone().requires_grad_()
    images = edited(latents)
    torch.testing.assert_close(
        images.detach(), editor.edit(z[:2], Edit(0, 1, 2.0)), atol=1e-5, rtol=1e-4
    )
    images.square().mean().backward()
    assert latents.grad.abs().sum() > 0 and edited.strengths.grad.abs() > 0


def test_a_transform_without_an_input_for_it():
    network = f.seeded(f.NvidiaStyleGAN2Net)
    extractor = make_extractor(network, StyleGAN3(transform=TURN))
    with pytest.raises(ValueError, match=r"needs a generator with a synthesis\.input"):
        extractor.fit(torch.zeros(2, 6))


@pytest.mark.parametrize(
    "forward",
    [
        BigGAN(),
        StyleGAN2(),
        StyleGAN2(convention="rosinality"),
        ProGAN(convention="genforce"),
        StyleGAN3(),
    ],
)
def test_generators_of_other_families(forward):
    name = type(forward).__name__
    with pytest.raises(TypeError, match=f"is not written as a {name} in a convention"):
        forward(f.seeded(f.PlainProGANNet), torch.zeros(2, 6))


@pytest.mark.parametrize(
    "build, kind, match",
    [
        (lambda: StyleGAN2(truncation_psi="a"), TypeError, "truncation_psi must be a"),
        (lambda: StyleGAN2(truncation_psi=np.nan), ValueError, "truncation_psi"),
        (lambda: StyleGAN2(truncation_layers=-1), ValueError, "truncation_layers"),
        (lambda: StyleGAN2(truncation_layers=1.5), TypeError, "truncation_layers"),
        (lambda: StyleGAN(latent_space="s"), ValueError, "one of 'z', 'w', 'w\\+'"),
        (lambda: StyleGAN(noise_mode=True), ValueError, "noise_mode must be one of"),
        (lambda: StyleGAN(convention="tf"), ValueError, "convention must be one of"),
        (lambda: StyleGAN2(w_avg=[[1.0]]), ValueError, r"one code, got shape \(1, 1\)"),
        (lambda: StyleGAN2(w_avg=[np.inf]), ValueError, "w_avg contains infinity"),
        (lambda: StyleGAN3(convention="nvidia"), TypeError, "convention"),
        (lambda: StyleGAN3(transform=[[1, 0], [0, 1]]), ValueError, "3 x 3"),
        (lambda: StyleGAN3(transform=np.zeros((3, 3))), ValueError, "an inverse"),
        (lambda: BigGAN(truncation=0), ValueError, "truncation must be .* above 0"),
        (lambda: BigGAN(truncation=1.1), ValueError, "at most 1"),
        (lambda: BigGAN(label="dog"), TypeError, "label must be the index of a class"),
        (lambda: BigGAN(label=-1), ValueError, "a class from 0 on"),
        (lambda: BigGAN(label=[[0, 1]]), ValueError, "the same for all images"),
        (lambda: ProGAN(label=[np.nan, 0]), ValueError, "label contains NaN"),
        (lambda: StyleGAN2(0.7), TypeError, "positional"),
    ],
)
def test_bad_settings(build, kind, match):
    with pytest.raises(kind, match=match):
        build()


def test_a_label_of_codes():
    network = f.seeded(lambda: f.NvidiaStyleGAN2Net(c_dim=3))
    forward = StyleGAN2(latent_space="w", label=1)
    codes = sample_latents(network, 3, 0, forward=forward)
    with pytest.raises(ValueError, match="leave it at None"):
        make_extractor(network, forward).fit(codes)


def test_half_precision_is_left_to_cuda():
    network = f.seeded(f.NvidiaStyleGAN2Net)
    z = sample_latents(network, 3, 0)
    images = make_extractor(network, StyleGAN2()).fit(z).generate(z)
    assert network.synthesis.b8.forced[-1] is True
    with emulated_cuda():
        on_device = f.seeded(f.NvidiaStyleGAN2Net).to("cuda")
        latents = sample_latents(on_device, 3, 0)
        assert latents.device.type == "cuda"
        extractor = make_extractor(on_device, StyleGAN2(truncation_psi=0.9))
        made = extractor.fit(latents).generate(latents)
        assert made.device.type == "cuda" and made.shape == images.shape
    assert on_device.synthesis.b8.forced[-1] is False
