"""Generators that other people wrote, with random weights.

Skipped where their packages are missing; docs/development.rst says how to get them.
"""

import warnings

import pytest
import torch
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.generators import BigGAN, ProGAN, list_layers, sample_latents
from tests.generators.families import keep, seeded


class HuggingFaceBigGAN:
    """pytorch-pretrained-biggan's architecture, narrow."""

    layer = "generator.layers.3"  # self-attention
    shape = (16, 16, 16)
    forward = BigGAN(truncation=0.43)
    recommended = ("generator.layers.1", "generator.layers.4")

    @staticmethod
    def build():
        package = pytest.importorskip("pytorch_pretrained_biggan")
        config = package.BigGANConfig(
            output_dim=32,
            z_dim=8,
            class_embed_dim=8,
            channel_width=4,
            num_classes=7,
            layers=[
                (False, 16, 16),
                (True, 16, 8),
                (True, 8, 4),
                (False, 4, 2),
                (True, 2, 1),
            ],
            attention_layer_position=3,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's older spectral norm
            network = package.BigGAN(config)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_means"):
                tensor.normal_()
            if name.endswith("running_vars"):
                tensor.uniform_(0.5, 2)
            if name.endswith("gamma"):
                tensor.fill_(0.6)
        torch.nn.init.normal_(network.generator.bn.weight)
        torch.nn.init.normal_(network.generator.bn.bias)
        with torch.no_grad():  # so that spectral norm converges
            for _ in range(20):
                network.train()(torch.randn(1, 8), torch.eye(7)[:1], 0.43)
        return network

    @staticmethod
    def by_hand(network, latents, change=keep):
        g = network.generator
        z, truncation = 0.43 * latents[:, :8], 0.43
        classes = torch.eye(7)[latents[:, 8].long()]
        condition = torch.cat([z, network.embeddings(classes)], dim=1)
        x = g.gen_z(condition).reshape(-1, 4, 4, 64).permute(0, 3, 1, 2).contiguous()
        for i, layer in enumerate(g.layers):
            if i == 4:
                features = x
                x = change(features)
            attends = type(layer).__name__ == "SelfAttn"
            x = layer(x) if attends else layer(x, condition, truncation)
        x = g.relu(g.bn(x, truncation))
        return features, torch.tanh(g.conv_to_rgb(x)[:, :3])


class PlainProGAN:
    """pro-gan-pth's generator, called with latents alone."""

    layer = "layers.1"
    shape = (512, 8, 8)
    forward = ProGAN()
    recommended = ("layers.1",)

    @staticmethod
    def build():
        networks = pytest.importorskip("pro_gan_pytorch.networks")
        # Its own way of scaling weights no longer runs with torch.
        return networks.Generator(depth=4, latent_size=12, use_eql=False)

    @staticmethod
    def by_hand(network, latents, change=keep):
        features = network.layers[1](network.layers[0](latents))
        x = network.layers[2](change(features))
        return features, network.rgb_converters[2](x)


@pytest.fixture(params=[HuggingFaceBigGAN, PlainProGAN])
def case(request):
    return request.param


@pytest.fixture
def network(case):
    return seeded(case.build)


@pytest.fixture
def latents(case, network):
    return sample_latents(network, 5, 0, forward=case.forward)


def make_extractor(case, network, batch_size=2):
    return GeneratorFeatureExtractor(
        network, case.layer, forward=case.forward, batch_size=batch_size
    )


def test_features_images_and_edits_are_those_of_a_pass_by_hand(case, network, latents):
    extractor = make_extractor(case, network).fit(latents)
    with torch.no_grad():
        features, images = case.by_hand(network, latents)
        edited = case.by_hand(network, latents, lambda x: 2 - x)[1]
    assert extractor.feature_shape_ == case.shape
    torch.testing.assert_close(
        extractor.transform(latents), features, atol=1e-5, rtol=1e-4
    )
    plain = extractor.generate(latents)
    torch.testing.assert_close(plain, images, atol=1e-5, rtol=1e-4)
    made = extractor.generate(latents, features=lambda x: 2 - x)
    torch.testing.assert_close(made, edited, atol=1e-5, rtol=1e-4)
    assert torch.equal(extractor.generate(latents, features=lambda x: x), plain)


def test_batches_do_not_matter(case, network, latents):
    whole, single = (
        make_extractor(case, network, size).fit(latents).transform(latents)
        for size in (5, 1)
    )
    torch.testing.assert_close(whole, single, atol=5e-5, rtol=1e-4)


def test_everything_is_left_as_it_was(case, network, latents):
    """Hooks and vectors of spectral norm, and the modes."""
    network.train()
    hooks = [dict(m._forward_pre_hooks) for m in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pipeline = make_pipeline(
        make_extractor(case, network),
        PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0),
    ).fit(latents)
    editor = LocalEditor.from_pipeline(pipeline)
    plain = pipeline[0].generate(latents)
    assert torch.equal(editor.edit(latents, Edit(0, 1, 0.0)), plain)
    assert (editor.edit(latents, Edit(0, 1, 9.0)) - plain).abs().max() > 1e-3
    assert [dict(m._forward_pre_hooks) for m in network.modules()] == hooks
    assert all(m.training for m in network.modules())
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


def test_layers_worth_decomposing(case, network, latents):
    layers = list_layers(network, latents[:2], case.forward)
    assert tuple(layer.name for layer in layers.recommended) == case.recommended


def small():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 48),
        torch.nn.Unflatten(1, (3, 4, 4)),
        torch.nn.Conv2d(3, 5, 1),
    )


def test_low_rank_layers_that_merge_in_evaluation_mode():
    loralib = pytest.importorskip("loralib")
    network = small()
    network[0] = loralib.Linear(4, 48, r=2)
    torch.nn.init.normal_(network[0].lora_B)
    network.train()
    before, z = network[0].weight.detach().clone(), torch.randn(5, 4)
    for act in (
        GeneratorFeatureExtractor(network, "2").fit,
        lambda z: list_layers(network, z),
    ):
        act(z)
        assert network[0].training and not network[0].merged
        torch.testing.assert_close(network[0].weight, before)  # merged, unmerged
        network.zero_grad()
        network(z).sum().backward()
        assert network[0].lora_A.grad is not None


def test_networks_offloaded_by_accelerate():
    accelerate = pytest.importorskip("accelerate")
    network, z = small(), torch.randn(6, 4)
    expected = network(z).detach()
    accelerate.cpu_offload(network, execution_device="cpu")
    extractor = GeneratorFeatureExtractor(network, "2").fit(z)
    torch.testing.assert_close(extractor.transform(z), expected)
    torch.testing.assert_close(extractor.generate(z, lambda x: x + 1), expected + 1)
    assert network[0].weight.device.type == "meta"
    with pytest.raises(ValueError, match="offloaded"):
        extractor.set_params(device="cpu").fit(z)
