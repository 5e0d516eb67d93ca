"""Latents whose images match given ones."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.datasets import load_face_generator
from panda_sklearn.editing import Inversion, _search, invert
from panda_sklearn.editing._search import Match, Space, _better_half, _ends
from panda_sklearn.generators import BigGAN, StyleGAN2, sample_latents
from tests.generators import families
from tests.networks import TinyGenerator


def fitted(generator, **options):
    forward = options.get("forward")
    extractor = GeneratorFeatureExtractor(generator, "block8", **options)
    latents = sample_latents(generator, 4, random_state=5, forward=forward)
    return extractor.fit(latents), latents


@pytest.fixture(scope="module")
def tiny():
    """An extractor, latents and their images."""
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1", batch_size=4)
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    return extractor.fit(z), z, extractor.generate(z)


def quick(extractor, images, **options):
    """An inversion too short to match all images."""
    options = {"n_steps": 20, "n_starts": 1, "random_state": 0, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* matched badly")
        return invert(extractor, images, **options)


@pytest.fixture(scope="module")
def codes():
    """The shipped generator with codes for each layer; latents and their images."""
    extractor, latents = fitted(
        load_face_generator(), forward=StyleGAN2(latent_space="w+")
    )
    return extractor, latents, extractor.generate(latents)


def unlikeness(images, made):
    """Squared errors as fractions of the variance."""
    about = images - images.mean(dim=(2, 3), keepdim=True)
    errors = (images - made).square().sum(dim=(1, 2, 3))
    return errors / about.square().sum(dim=(1, 2, 3))


class TestImagesOfKnownLatents:
    def test_codes_come_back(self, codes):
        extractor, _latents, images = codes
        found = quick(extractor, images[:2], n_steps=150)
        assert found.latents.shape == (2, 5, 128)
        made = extractor.generate(found.latents)
        assert float(unlikeness(images[:2], made).mean()) < 0.02
        torch.testing.assert_close(found.images, made, rtol=0, atol=1e-3)
        torch.testing.assert_close(
            found.residuals, unlikeness(images[:2], made), rtol=1e-2, atol=1e-4
        )
        torch.testing.assert_close(found.differences, images[:2] - found.images)

    @pytest.mark.slow
    def test_inputs_of_the_mapping_network_come_back(self):
        extractor, latents = fitted(load_face_generator())
        images = extractor.generate(latents)
        found, _residuals = invert(extractor, images, random_state=0)
        made = extractor.generate(found)
        assert float(unlikeness(images, made).median()) < 0.02

    def test_latents_of_a_network_without_local_minima_come_back(self):
        class Linear(nn.Module):
            latent_size = 4

            def __init__(self):
                super().__init__()
                self.block8 = nn.Identity()
                random = torch.Generator().manual_seed(0)
                self.weight = nn.Parameter(torch.randn(4, 192, generator=random))

            def forward(self, z):
                return (self.block8(z) @ self.weight).reshape(-1, 3, 8, 8)

        extractor, latents = fitted(Linear())
        images = extractor.generate(latents)
        found = invert(extractor, images, prior=0.0, n_starts=1, random_state=0)
        torch.testing.assert_close(found.latents, latents, rtol=0, atol=0.02)


def test_an_image_that_is_not_the_generators(codes):
    """A mirrored face: the match is nearer than the nearest of many samples."""
    extractor, _, images = codes
    mirrored = images[:1].flip(-1)
    found = quick(extractor, mirrored, n_steps=100)
    drawn = sample_latents(
        extractor.generator, 300, random_state=9, forward=extractor.forward
    )
    samples = extractor.generate(drawn)

    def likeness(others):
        return structural_similarity_index_measure(
            others, mirrored.expand_as(others), data_range=2.0, reduction="none"
        )

    assert float(likeness(found.images)) > float(likeness(samples).max()) + 0.1


def test_bad_matches_are_warned_about_and_good_ones_are_not(codes):
    extractor, _, images = codes
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = torch.cat([images[:1], 2 * noise - 1])
    options = {"n_steps": 60, "n_starts": 1, "random_state": 0}
    with pytest.warns(
        UserWarning, match=r"1 of 2 images are matched badly.*align_face"
    ):
        found = invert(extractor, both, **options)
    assert found.residuals[1] > 5 * found.residuals[0]
    assert found.own_residuals.shape == (2,) and found.own_residuals.max() < 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert(extractor, images[:1], **options)


def test_the_result_is_a_record_that_unpacks(tiny):
    extractor, _z, images = tiny
    found = quick(extractor, images.numpy())
    latents, residuals = found
    assert isinstance(found, Inversion)
    for array in (latents, residuals, found.images, found.differences):
        assert isinstance(array, np.ndarray) and len(array) == 3
    assert latents.shape == (3, 6) and residuals.shape == (3,)
    assert latents is found.latents and residuals is found.residuals


class TestChoices:
    def test_a_prior_keeps_latents_likely(self, tiny):
        extractor, _z, images = tiny
        far = 2 * images
        near, free = (
            quick(extractor, far, prior=prior, n_steps=100).latents.norm(dim=1)
            for prior in (1.0, 0.0)
        )
        assert (near < 0.7 * free).all()

    def test_custom_losses(self, tiny):
        extractor, _z, images = tiny
        seen = []

        def half(made, targets):
            seen.append((made, targets))
            return (made - targets)[..., :4].square().flatten(1).mean(dim=1)

        found = quick(extractor, images, loss=half, n_steps=150, prior=0.0)
        assert seen[0][0].requires_grad and seen[0][0].shape == seen[0][1].shape
        error = (found.images - images)[..., :4].square().mean()
        assert float(error) < 0.01 * float(images.var())
        with pytest.raises(ValueError, match="one loss for each image"):
            quick(extractor, images, loss=lambda made, targets: made.sum())
        with pytest.raises(ValueError, match="one loss for each image"):
            quick(extractor, images, loss=lambda made, targets: 1.0)

    def test_values_beyond_black_and_white_do_not_count(self, tiny):
        extractor, _z, images = tiny
        low, high = (float(q) for q in images.quantile(torch.tensor([0.2, 0.8])))
        clipped = images.clamp(low, high)
        options = {"n_steps": 150, "prior": 0.0}
        as_seen = quick(extractor, clipped, value_range=(low, high), **options)
        as_is = quick(extractor, clipped, **options)
        assert as_seen.residuals.mean() < 0.2 * as_is.residuals.mean()

    def test_more_starts_find_more(self):
        """Of two valleys, the one that looks nearer is the wrong one."""

        class Valleys(nn.Module):
            latent_size = 1

            def __init__(self):
                super().__init__()
                self.block8 = nn.Identity()

            def forward(self, z):
                z = self.block8(z)
                # Down to 0.3 at -1, and to 0 at 1, over a hill.
                depth = 0.3 * torch.sigmoid(-8 * z)
                hill = (z.abs() - 1).abs() + depth
                return hill[:, :, None, None].expand(-1, 3, 8, 8) * SHAPE

        extractor = GeneratorFeatureExtractor(Valleys(), "block8")
        extractor.fit(torch.zeros(2, 1))
        samples = torch.cat([torch.full((40, 1), -1.0), torch.full((10, 1), 0.4)])
        samples = samples + 0.05 * torch.randn(50, 1)
        images = 0 * SHAPE[None] + 1e-3 * SHAPE
        options = {"samples": samples, "prior": 0.0, "n_steps": 300}
        squares = {"loss": lambda a, b: (a - b).square().flatten(1).mean(1)}
        one, many = (
            quick(extractor, images, n_starts=n, **options, **squares).latents
            for n in (1, 40)
        )
        assert float(one) < 0 and float(many) > 0.8

    def test_given_samples_are_starts_and_prior(self, tiny):
        extractor, _z, images = tiny
        there = 5 + 0.01 * torch.randn(
            50, 6, generator=torch.Generator().manual_seed(0)
        )
        found = quick(extractor, images, samples=there, n_steps=1)
        assert (found.latents - 5).abs().max() < 0.1

    def test_random_state(self, tiny):
        extractor, _z, images = tiny
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        options = {"n_starts": 3, "n_steps": 5}
        same = [quick(extractor, images, **options).latents for _ in range(2)]
        other = quick(extractor, images, random_state=1, **options).latents
        assert torch.equal(*same) and not torch.equal(same[0], other)
        assert torch.equal(states[0], torch.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])

    def test_verbose(self, tiny, capsys):
        extractor, _z, images = tiny
        quick(extractor, images, verbose=1)
        assert "Inversion" in capsys.readouterr().err
        quick(extractor, images)
        assert capsys.readouterr().err == ""


SHAPE = torch.linspace(0.1, 1, 64).reshape(8, 8).expand(3, 8, 8)


@pytest.mark.parametrize("kind", ["double", "half", "list", "inference", "autocast"])
def test_kinds_of_images_and_settings(tiny, kind):
    extractor, _, images = tiny
    options = {"n_steps": 40, "prior": 0.0}
    if kind == "inference":
        with torch.inference_mode():
            found = quick(extractor, images.clone(), **options)
    elif kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = quick(extractor, images, **options)
    else:
        given = {
            "double": images.numpy().astype(np.float64),
            "half": images.half(),
            "list": images.tolist(),
        }
        found = quick(extractor, given[kind], **options)
    assert np.asarray(found.residuals).max() < 0.05


def test_a_network_in_half_precision():
    generator = TinyGenerator().half()
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    extractor = GeneratorFeatureExtractor(generator, "block1").fit(z)
    found = quick(extractor, extractor.generate(z), n_steps=60, prior=0.0)
    assert found.residuals.max() < 0.02


def test_batches_are_no_larger_than_asked_for(tiny):
    extractor, _, images = tiny
    sizes = []
    with extractor.generator.block1.register_forward_hook(
        lambda layer, args, output: sizes.append(len(output))
    ):
        quick(extractor, images, n_starts=5, n_steps=2)
    assert max(sizes) == extractor.batch_size == 4


def test_losses_that_are_not_finite_are_bad_matches(tiny):
    extractor, _, images = tiny

    def nothing(made, targets):
        return torch.full_like(made, torch.nan).flatten(1).mean(1) * made.sum()

    with pytest.warns(UserWarning, match="matched badly"):
        invert(extractor, images, n_steps=2, n_starts=1, loss=nothing)


def test_nothing_is_left_after_an_exception(tiny):
    extractor, _, images = tiny
    generator = extractor.generator
    state = torch.get_rng_state()

    def fail(made, targets):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(extractor, images, loss=fail)
    assert torch.is_grad_enabled() and torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in generator.modules())


def test_the_network_is_left_as_it_was(tiny):
    extractor, _z, images = tiny
    generator = extractor.generator
    generator.train()
    try:
        with torch.no_grad():
            quick(extractor, images.requires_grad_(False))
            assert not torch.is_grad_enabled()
        assert all(module.training for module in generator.modules())
        assert all(p.requires_grad and p.grad is None for p in generator.parameters())
        assert not any(module._forward_hooks for module in generator.modules())
    finally:
        generator.eval()


class TestWhatCannotBe:
    def test_images(self, tiny):
        extractor, _z, images = tiny
        with pytest.raises(
            ValueError, match=r"of shape \(n_images, 3, 8, 8\).*moveaxis"
        ):
            quick(extractor, images.movedim(1, -1))
        with pytest.raises(ValueError, match="Bring them to its units"):
            quick(extractor, 255 * images)

    def test_losses(self, tiny):
        extractor, _, images = tiny
        with pytest.raises(ValueError, match="can be differentiated"):
            quick(
                extractor,
                images,
                loss=lambda made, targets: (made - targets).detach().flatten(1).mean(1),
            )

    def test_networks(self, tiny):
        _extractor, z, images = tiny

        class Detached(TinyGenerator):
            def forward(self, z):
                return super().forward(z.detach())  # parameters require gradients

        other = GeneratorFeatureExtractor(Detached(), "block1").fit(z)
        with pytest.raises(ValueError, match="can be differentiated"):
            quick(other, images)

    def test_latents(self, tiny):
        _extractor, _z, images = tiny
        own = GeneratorFeatureExtractor(
            TinyGenerator(), "block1", forward=lambda g, z: g(z[:, :6])
        ).fit(torch.randn(3, 8))
        with pytest.raises(ValueError, match=r"not known how.*samples"):
            quick(own, images)
        assert quick(own, images, samples=torch.randn(30, 8)).latents.shape == (3, 8)
        with pytest.raises(ValueError, match="at least 3 latents"):
            quick(own, images, samples=torch.randn(1, 8))

        class Tokens(nn.Module):
            def __init__(self):
                super().__init__()
                self.block8 = nn.Embedding(5, 192)

            def forward(self, numbers):
                return self.block8(numbers).reshape(-1, 3, 8, 8)

        numbers = GeneratorFeatureExtractor(Tokens(), "block8")
        numbers.fit(torch.arange(3)[:, None])
        with pytest.raises(ValueError, match="integers"):
            quick(numbers, images)


class TestSpace:
    def test_coordinates_have_mean_0_and_covariance_1(self):
        random = torch.Generator().manual_seed(0)
        mix = torch.randn(2, 3, 3, generator=random)
        u = torch.randn(20_000, 2, 3, generator=random)
        drawn = torch.einsum("nrd,rdk->nrk", u, mix) + 5
        space = Space.of(drawn)
        found = space.coordinates(drawn)
        for row in range(2):
            covariance = found[:, row].T.cov()
            torch.testing.assert_close(covariance, torch.eye(3), rtol=0, atol=0.02)
        torch.testing.assert_close(
            found.mean(dim=0), torch.zeros(2, 3), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(space.latents(found), drawn, rtol=1e-4, atol=1e-4)

    def test_latents_that_are_all_alike_can_move(self):
        space = Space.of(torch.ones(10, 4))
        moved = space.latents(torch.ones(1, 1, 4))
        assert moved.isfinite().all() and not torch.equal(moved, torch.ones(1, 4))


def test_covariances_of_few_samples_are_not_trusted():
    drawn = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    u = Space.of(drawn).coordinates(torch.eye(6))
    # Four samples span three directions; the others are not taken for constant.
    assert u.norm(dim=(1, 2)).max() < 10


def test_starts_are_halved():
    assert _ends(1, 100) == []
    assert _ends(8, 300) == [50, 100, 150]
    assert _ends(3, 100) == [25, 50]
    assert _ends(4, 1) == [1, 1]
    losses = torch.tensor([[3.0, 1, 2], [5, 6, 4]])
    assert _better_half(losses).tolist() == [1, 2, 5, 3]


def test_the_default_loss_is_0_for_a_match_and_sees_all_sizes():
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=random)
    match = Match(images, None, None)
    of = torch.arange(2)
    torch.testing.assert_close(
        match.losses(images, of), torch.zeros(2), rtol=0, atol=1e-5
    )
    # The mean of three sizes, 64, 32 and 16: a shift of colours counts in all of them.
    shifted = match.losses(images + 0.1, of)
    fine = images + 0.1 * (torch.arange(64) % 2 * 2 - 1)
    assert (match.losses(fine, of) < 0.6 * shifted).all()
    # At one size it is this.
    small, other = images[..., :16, :16], images[..., 20:36, 20:36]
    variance = small.flatten(2).var(dim=2, unbiased=False).mean(dim=1)
    expected = (other - small).square().flatten(1).mean(dim=1) / variance
    likeness = structural_similarity_index_measure(
        other, small, data_range=float(small.max() - small.min()), reduction="none"
    )
    found = Match(small, None, None).losses(other, of)
    torch.testing.assert_close(found, expected + 0.5 * (1 - likeness))


def test_custom_forwards_are_not_taken_to_read_classes():
    network = families.HuggingFaceBigGANNet().eval()
    fixed = BigGAN(label=1)
    z = sample_latents(network, 3, random_state=0, forward=fixed)
    extractor = GeneratorFeatureExtractor(
        network, **network.layer, forward=lambda g, z: fixed(g, z)
    ).fit(z)
    images = extractor.generate(z)
    found = quick(extractor, images, n_steps=2, samples=z)
    assert found.latents.shape == z.shape


def test_images_without_structure_need_no_torchmetrics(monkeypatch):
    """Images of one spatial axis have no SSIM."""
    monkeypatch.setattr(_search, "needed", lambda *names: 1 / 0)
    rows = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    losses = Match(rows, None, None).losses(rows + 1, torch.arange(2))
    assert losses.shape == (2,) and (losses > 0).all()


def test_classes_among_the_latents():
    network = families.HuggingFaceBigGANNet().eval()
    latents = sample_latents(network, 2, random_state=0)
    free = GeneratorFeatureExtractor(network, **network.layer, forward=BigGAN())
    images = free.fit(latents).generate(latents)
    with pytest.raises(ValueError, match="forward with a label"):
        quick(free, images)
    chosen = BigGAN(label=1)
    latents = sample_latents(network, 2, random_state=0, forward=chosen)
    fixed = GeneratorFeatureExtractor(network, **network.layer, forward=chosen)
    found = quick(fixed.fit(latents), images, n_steps=2)
    assert found.latents.shape == latents.shape
