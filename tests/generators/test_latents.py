"""Latents of each family."""

import numpy as np
import pytest
import torch

from panda_sklearn import datasets
from panda_sklearn.generators import (
    BigGAN,
    ProGAN,
    StyleGAN2,
    StyleGAN3,
    sample_latents,
)
from tests.generators import families as f


@pytest.mark.parametrize(
    "build, size",
    [
        (f.ProGANNet, f.Z),
        (f.PlainProGANNet, f.Z),
        (f.StyleGANNet, f.Z),
        (f.GenforceStyleGAN2Net, f.Z),
        (f.NvidiaStyleGAN2Net, f.Z),
        (f.RosinalityStyleGAN2Net, f.W),
        (f.StyleGAN3Net, f.Z),
    ],
)
def test_normal_latents(build, size):
    network = f.seeded(build)
    latents = sample_latents(network, 4000, random_state=0)
    assert latents.shape == (4000, size) and latents.dtype == torch.float32
    assert latents.mean().abs() < 0.02 and abs(latents.std() - 1) < 0.02
    assert latents.abs().max() > 3
    assert torch.equal(latents, sample_latents(network, 4000, 0))
    assert not torch.equal(latents, sample_latents(network, 4000, 1))


@pytest.mark.parametrize("build", [f.HuggingFaceBigGANNet, f.BrockBigGANNet])
def test_latents_of_biggan_are_cut_off(build):
    latents = sample_latents(f.seeded(build), 20000, random_state=0)
    z, classes = latents[:, :-1], latents[:, -1]
    assert z.shape == (20000, f.Z) and 1.99 < z.abs().max() < 2
    # Of the standard normal distribution between -2 and 2: 1 - 4 phi(2) / 0.9545.
    assert z.var().item() == pytest.approx(0.7737, abs=0.01)
    assert z.mean().abs() < 0.01
    counts = torch.bincount(classes.long(), minlength=f.N_CLASSES)
    assert len(counts) == f.N_CLASSES and (counts / 4000 - 1).abs().max() < 0.06
    forward = BigGAN(truncation=0.1)
    truncated = sample_latents(f.seeded(build), 20000, 0, forward=forward)
    assert torch.equal(truncated, latents)  # the caller multiplies


def test_classes_to_draw():
    network = f.seeded(f.HuggingFaceBigGANNet)

    def drawn(classes, forward=None):
        latents = sample_latents(network, 5000, 0, classes=classes, forward=forward)
        return torch.bincount(latents[:, -1].long(), minlength=f.N_CLASSES) / 5000

    assert drawn(3).tolist() == [0, 0, 0, 1, 0]
    assert drawn([1, 4])[[1, 4]].sum().item() == pytest.approx(1)
    assert drawn([1, 4])[1].item() == pytest.approx(0.5, abs=0.03)
    mixed = drawn({0: 3, 2: 1, 4: 0}, BigGAN())
    assert mixed[0].item() == pytest.approx(0.75, abs=0.03)
    assert mixed[[0, 2]].sum().item() == pytest.approx(1)
    labelled = sample_latents(network, 4, 0, forward=BigGAN(label=1))
    assert labelled.shape == (4, f.Z)


@pytest.mark.parametrize(
    "options, kind, match",
    [
        ({"classes": 5}, ValueError, "classes must be from 0 to 4, got 5"),
        ({"classes": "dog"}, TypeError, "classes must be a sequence of ints"),
        ({"classes": [0.5]}, TypeError, "classes must be an int"),
        ({"classes": []}, ValueError, "classes is empty"),
        ({"classes": {1: -1}}, ValueError, "weight of classes must be .* at least 0"),
        ({"classes": {1: 0}}, ValueError, "positive sum"),
        ({"classes": 1, "forward": BigGAN(label=1)}, ValueError, "given twice"),
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": 1.5}, TypeError, "n_samples"),
    ],
)
def test_bad_arguments(options, kind, match):
    network = f.seeded(f.HuggingFaceBigGANNet)
    with pytest.raises(kind, match=match):
        sample_latents(network, **{"n_samples": 3, **options})


def test_classes_for_generators_without_classes():
    with pytest.raises(ValueError, match="no classes: leave classes at None"):
        sample_latents(f.seeded(f.StyleGAN3Net), 3, classes=1)


def test_latents_of_unknown_length():
    with pytest.raises(TypeError, match=r"latent_size.*Linear has none"):
        sample_latents(torch.nn.Linear(2, 2), 3)


def test_codes_are_what_the_mapping_network_gives():
    network = f.seeded(lambda: f.NvidiaStyleGAN2Net(c_dim=3)).train()
    w_avg = network.mapping.w_avg.clone()
    forward = StyleGAN2(latent_space="w", truncation_psi=0.5)
    codes = sample_latents(network, 5, 0, forward=forward, classes=[0, 2])
    z = sample_latents(network, 5, 0, classes=[0, 2])
    with torch.no_grad():
        c = torch.eye(3)[z[:, -1].long()]
        expected = network.eval().mapping(z[:, :-1], c)
    torch.testing.assert_close(codes, expected[:, 0])
    assert codes.shape == (5, f.W) and not codes.requires_grad
    assert torch.equal(network.mapping.w_avg, w_avg)
    plus = sample_latents(
        network, 5, 0, forward=StyleGAN2(latent_space="w+"), classes=[0, 2]
    )
    torch.testing.assert_close(plus, expected)


def test_codes_that_differ_between_layers():
    """genforce's repeat_w=False: the mapping network returns codes for all layers."""
    network = f.seeded(f.GenforceStyleGAN2Net)
    n_codes = network.num_layers
    network.mapping.layers = torch.nn.Linear(f.Z, n_codes * f.W)
    plus = StyleGAN2(latent_space="w+")
    codes = sample_latents(network, 3, 0, forward=plus)
    assert codes.shape == (3, n_codes, f.W)
    with pytest.raises(ValueError, match='use latent_space="w\\+"'):
        sample_latents(network, 3, 0, forward=StyleGAN2(latent_space="w"))
    with pytest.raises(TypeError, match="forward is the class StyleGAN2"):
        sample_latents(network, 3, 0, forward=StyleGAN2)


def test_forward_decides_the_family():
    """For a convention that would not be recognised."""
    network = f.seeded(f.StyleGAN3Net)
    network.latent_size = 4
    assert sample_latents(network, 3).shape == (3, f.Z)
    assert sample_latents(network, 3, forward=StyleGAN3()).shape == (3, f.Z)
    plain = ProGAN(convention="plain")
    assert sample_latents(network, 3, forward=plain).shape == (3, 4)
    assert sample_latents(network, 3, forward=lambda g, z: g(z)).shape == (3, f.Z)


def test_datasets_offers_it_too():
    assert datasets.sample_latents is sample_latents
    state = np.random.get_state()[1].copy()
    sample_latents(datasets.load_face_generator(), 3, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
