"""The settings of a call: codes, classes, truncation, the transform."""

import threading

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator
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
from tests.generators.test_families import MEAN, STYLED, TURN, make_extractor

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
    """Codes of late layers change the image, but not earlier features."""
    network = f.seeded(f.NvidiaStyleGAN2Net)
    forward = StyleGAN2(latent_space="w+")
    codes = sample_latents(network, 4, 0, forward=forward)
    other = codes.clone()
    other[:, 4:] += 1
    extractor = make_extractor(network, forward).fit(codes)
    features = [extractor.transform(each) for each in (codes, other)]
    torch.testing.assert_close(*features)
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
    with pytest.raises(
        ValueError, match="bfloat16 is too coarse for indices of 1000 classes"
    ):
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


def test_settings_have_a_short_repr():
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
    none = images(truncation_psi=0.5, truncation_layers=0)
    torch.testing.assert_close(none, images())
    beyond = images(truncation_psi=0.5, truncation_layers=99)
    torch.testing.assert_close(beyond, images(truncation_psi=0.5))
    assert not torch.allclose(none, beyond, atol=1e-3)


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
            if not torch.allclose(extractors[i].generate(z), expected[i], atol=1e-4):
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
        (lambda: BigGAN(label=-1), ValueError, "a class, 0 or more"),
        (lambda: BigGAN(label=[[0, 1]]), ValueError, "the same for all images"),
        (lambda: ProGAN(label=[np.nan, 0]), ValueError, "label contains NaN"),
        (lambda: StyleGAN2(0.7), TypeError, "positional"),
    ],
)
def test_bad_settings(build, kind, match):
    with pytest.raises(kind, match=match):
        build()


def test_a_label_with_codes():
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


@pytest.mark.parametrize("truncation", [1.0, 0.6])
def test_the_shipped_generator_is_a_stylegan2(truncation):
    """In all three spaces, with the truncation given when loading."""
    generator = load_face_generator(truncation)
    z = sample_latents(generator, 3, random_state=0)
    expected = generator(z)
    for space in ("z", "w", "w+"):
        family = StyleGAN2(latent_space=space)
        latents = sample_latents(generator, 3, random_state=0, forward=family)
        torch.testing.assert_close(family(generator, latents), expected)
    mean = StyleGAN2(truncation_psi=0.0)(generator, z)
    torch.testing.assert_close(mean, generator(z, truncation=0.0))
