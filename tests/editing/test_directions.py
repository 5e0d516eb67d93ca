"""Vectors of channels that change one region of the image and little else."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_edits, sample_latents
from panda_sklearn.editing import _directions
from panda_sklearn.metrics import roi_ratio
from tests.editing.conftest import unit_scaled
from tests.networks import TinyGenerator


def objective(editor, z, part, region, g):
    """The two matrices (C, C) of the objective, by autograd's own Jacobian."""
    generator, panda = editor.extractor.generator, editor.decomposition
    mask = unit_scaled(panda.parts_[part])
    n_channels = len(panda.appearances_[0])

    def image(t):
        add = t[:, None, None] * mask
        return generator.by_hand(latent, lambda features: features + add)[1]

    inside = outside = 0
    for latent in z.split(1):  # noqa: B007
        J = torch.autograd.functional.jacobian(image, torch.zeros(n_channels))[0]
        J = J.double()
        for_region, for_rest = (
            (J * w[..., None]).flatten(0, 2) for w in (region, 1 - region)
        )
        inside = inside + for_region.T @ for_region
        outside = outside + for_rest.T @ for_rest
    vectors, stds = (torch.as_tensor(x).double() for x in panda.variations(part))
    every = torch.linalg.qr(vectors.T, mode="complete").Q
    every[:, : len(vectors)] = vectors.T
    lengths = torch.cat([stds, stds[-1:].expand(n_channels - len(stds))])
    K = every * lengths**2 @ every.T
    root = every * lengths @ every.T
    h = torch.linalg.eigvalsh(root @ outside @ root)[-1]
    return inside, outside + g * h * torch.linalg.inv(K)


@pytest.fixture(scope="module")
def region():
    region = torch.zeros(8, 8)
    region[2:6, 3:7] = 1
    region[2, 3] = 0.5
    return region


@pytest.mark.parametrize("g", [0.003, 0.3])
def test_directions_maximise_the_objective(editor, z, region, g):
    found = editor.find_directions(z[:3], 1, 3, region, naturalness=g)
    A, B = objective(editor, z[:3], 1, region, g)
    values = torch.linalg.eigvals(torch.linalg.solve(B, A)).real.sort(descending=True)
    found = found.double()
    ratios = (found @ A * found).sum(dim=1) / (found @ B * found).sum(dim=1)
    torch.testing.assert_close(ratios, values.values[:3], rtol=1e-3, atol=0)
    # No direction repeats what another does.
    between = found @ B @ found.T
    sizes = between.diagonal().sqrt()
    torch.testing.assert_close(
        between / sizes / sizes[:, None], torch.eye(3).double(), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3).double())


class Moved(nn.Module):
    """Channel 0 shows where it is, 1 on the other side, 2 in both places, 3 nowhere."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, z):
        x = self.maps(z.reshape(-1, 4, 6, 6))
        here, there = x[:, :1], x[:, 1:2].roll(3, dims=-1)
        return here + there + x[:, 2:3] + x[:, 2:3].roll(3, dims=-1)


def test_the_channel_that_shows_in_the_region_is_found():
    z = torch.randn(200, 4 * 36, generator=torch.Generator().manual_seed(0))
    extractor = GeneratorFeatureExtractor(Moved(), "maps")
    panda = PartsAppearanceDecomposition(2, 4, max_iter=5, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
    part = torch.zeros(6, 6)
    part[:, :3] = 1
    here = editor.find_directions(z[:4], part, 1, naturalness=1e-3)
    there = editor.find_directions(z[:4], part, 1, 1 - part, naturalness=1e-3)
    for found, shown, hidden in ((here, 0, 1), (there, 1, 0)):
        (v,) = found
        # The hidden channel cancels what channel 2 shows outside the region.
        assert abs(v[hidden] + v[2]) < 0.02 * abs(v[shown] + v[2])
        assert abs(v[shown] + v[2]) > 0.5


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


class Stubborn(TinyGenerator):
    """A network for which torch has no derivatives in forward mode."""

    def forward(self, z):
        return NoForwardMode.apply(super().forward(z))


def editor_of(generator, z):
    extractor = GeneratorFeatureExtractor(generator, "block1", batch_size=4)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=10, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


class TestDerivatives:
    def test_three_ways_find_the_same(self, editor, z, region, monkeypatch):
        exact = editor.find_directions(z[:3], 0, 2, region, derivatives="exact")
        small = editor.find_directions(z[:3], 0, 2, region, derivatives="differences")
        monkeypatch.setattr(_directions, "MOST_CHANNELS", 1)
        products = editor.find_directions(z[:3], 0, 2, region)
        # Differences step over kinks of the ReLU.
        torch.testing.assert_close(small, exact, rtol=0, atol=0.05)
        # The iteration stops at a tolerance.
        torch.testing.assert_close(products, exact, rtol=0, atol=0.02)

    def test_large_images_are_not_stored(self, editor, z, region, monkeypatch):
        formed = editor.find_directions(z[:2], 0, 1, region)
        monkeypatch.setattr(_directions, "MOST_BYTES", 10)
        asked = []
        monkeypatch.setattr(
            _directions, "grams", lambda *args: asked.append(args) or 1 / 0
        )
        products = editor.find_directions(z[:2], 0, 1, region)
        assert not asked
        torch.testing.assert_close(products, formed, rtol=0, atol=0.02)

    def test_without_forward_mode_differences_are_used_with_a_warning(self, z):
        editor = editor_of(Stubborn(), z)
        with pytest.warns(UserWarning, match="finite differences"):
            found = editor.find_directions(z[:2], 0, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asked = editor.find_directions(z[:2], 0, 2, derivatives="differences")
        torch.testing.assert_close(found, asked, rtol=0, atol=1e-4)
        with pytest.raises(ValueError, match="no exact derivatives"):
            editor.find_directions(z[:2], 0, 2, derivatives="exact")

    @pytest.mark.parametrize("kind", [KeyError, RuntimeError])
    def test_an_error_of_the_network_is_raised(self, z, kind):
        class Broken(TinyGenerator):
            broken = False

            def forward(self, z):
                if self.broken:
                    raise kind("of the network")
                return super().forward(z)

        editor = editor_of(Broken(), z)
        editor.extractor.generator.broken = True
        state = torch.get_rng_state()
        with pytest.raises(kind, match="of the network"):
            editor.find_directions(z[:2], 0, 2)
        assert torch.is_grad_enabled() and torch.equal(state, torch.get_rng_state())
        modules = list(editor.extractor.generator.modules())
        assert not any(module._forward_hooks for module in modules)

    def test_noise_is_the_same_in_all_columns(self, z, region, monkeypatch):
        editor = editor_of(TinyGenerator(noise=1.0), z)
        found = editor.find_directions(z[:3], 0, 1, region)
        one = editor_of(TinyGenerator(noise=1.0), z)
        one.extractor.batch_size = 1
        alone = one.find_directions(z[:3], 0, 1, region)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-3)


class Wide(nn.Module):
    """Latents -> 60 channels at 4 x 4 -> images, each channel at a place of its own."""

    latent_size = 8

    def __init__(self, scale=1.0, loud=1.0):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.dense = nn.Linear(8, 60 * 16)
        self.maps, self.to_image = nn.Identity(), nn.Conv2d(60, 3, 3, padding=1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=random) / p[0].numel() ** 0.5)
            self.dense.weight *= loud
            self.dense.bias *= loud
            self.to_image.weight /= loud
        self.scale = scale
        self.eval().requires_grad_(False)

    def forward(self, z):
        x = self.maps(torch.tanh(self.dense(z)).reshape(-1, 60, 4, 4) + 0)
        return self.scale * torch.tanh(self.to_image(F.interpolate(x, scale_factor=2)))


def wide_editor(generator, z):
    extractor = GeneratorFeatureExtractor(generator, "maps", batch_size=16)
    panda = PartsAppearanceDecomposition(3, 60, max_iter=10, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


@pytest.fixture(scope="module")
def wide_z():
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(0))


def cosines(one, other):
    return (one.double() * other.double()).sum(dim=1).abs()


class TestManyChannels:
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
    def test_products_find_what_the_matrix_does(self, wide_z, monkeypatch, scale):
        editor = wide_editor(Wide(scale), wide_z)
        formed = editor.find_directions(wide_z[:3], 0, 3)
        monkeypatch.setattr(_directions, "MOST_CHANNELS", 1)
        products = editor.find_directions(wide_z[:3], 0, 3)
        assert cosines(formed, products).min() > 0.98

    def test_not_converging_is_warned_about(self, wide_z, monkeypatch):
        monkeypatch.setattr(_directions, "MOST_CHANNELS", 1)
        monkeypatch.setattr(_directions, "MAX_ITER", 1)
        monkeypatch.setattr(_directions, "ROUGH", 1e-6)
        editor = wide_editor(Wide(), wide_z)
        with pytest.warns(ConvergenceWarning, match="naturalness"):
            editor.find_directions(wide_z[:2], 0, 3, naturalness=0.0)

    def test_batches_are_no_larger_than_asked_for(self, wide_z):
        editor = wide_editor(Wide(), wide_z)
        sizes = []
        with editor.extractor.generator.maps.register_forward_hook(
            lambda layer, args, output: sizes.append(len(output))
        ):
            editor.find_directions(wide_z[:2], 0, 1)
        assert max(sizes) == 16

    def test_several_threads(self, wide_z):
        editor = wide_editor(Wide(), wide_z)
        expected = editor.find_directions(wide_z[:2], 0, 1)
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(
                    lambda _: editor.find_directions(
                        wide_z[:2], 0, 1, derivatives="exact"
                    ),
                    range(8),
                )
            )
        for each in found:
            torch.testing.assert_close(each, expected, rtol=0, atol=1e-4)

    def test_in_inference_mode(self, wide_z, monkeypatch):
        editor = wide_editor(Wide(), wide_z)
        expected = editor.find_directions(wide_z[:2], 0, 1)
        with torch.inference_mode():
            found = editor.find_directions(
                wide_z[:2].clone(), 0, 1, derivatives="exact"
            )
            monkeypatch.setattr(_directions, "MOST_CHANNELS", 1)
            products = editor.find_directions(wide_z[:2].clone(), 0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert cosines(products, expected).min() > 0.98


class TestDifferences:
    @pytest.mark.parametrize("loud", [0.01, 1.0, 100.0])
    def test_units_of_activations_do_not_matter(self, wide_z, loud):
        editor = wide_editor(Wide(loud=loud), wide_z)
        exact, small = (
            editor.find_directions(wide_z[:3], 0, 2, derivatives=kind)
            for kind in ("exact", "differences")
        )
        assert cosines(exact, small).min() > 0.95

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, wide_z, dtype):
        whole = wide_editor(Wide(), wide_z).find_directions(wide_z[:3], 0, 1)
        half = wide_editor(Wide().to(dtype), wide_z)
        for kind, least in (("exact", 0.9), ("differences", 0.8)):
            found = half.find_directions(wide_z[:3], 0, 1, derivatives=kind)
            assert cosines(found, whole).min() > least


class TestWhatCannotBe:
    def test_a_part_at_which_nothing_varies(self, z):
        extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1").fit(z)
        panda = PartsAppearanceDecomposition(2, 3, max_iter=3, tol=0, random_state=0)
        alike = extractor.transform(z[:1].expand(5, -1))
        editor = LocalEditor(extractor, panda.fit(alike))
        with pytest.raises(ValueError, match="part does not vary"):
            editor.find_directions(z[:2], 0, 1, torch.ones(8, 8))

    def test_a_region_out_of_reach(self):
        z = torch.randn(50, 4 * 36, generator=torch.Generator().manual_seed(0))
        extractor = GeneratorFeatureExtractor(Moved(), "maps")
        panda = PartsAppearanceDecomposition(2, 4, max_iter=5, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
        part, region = torch.zeros(6, 6), torch.zeros(6, 6)
        part[0, 0] = region[5, 1] = 1
        with pytest.raises(ValueError, match="does not change the region"):
            editor.find_directions(z[:2], part, 1, region)

    def test_more_directions_than_channels(self, editor, z):
        with pytest.raises(ValueError, match="at most 5"):
            editor.find_directions(z[:2], 0, 6)


def test_naturalness_trades_locality_for_what_varies(editor, z, region):
    vectors, stds = editor.decomposition.variations(1)
    A, B = objective(editor, z[:3], 1, region, 0.0)
    ratios, lengths = [], []
    for g in (0.0, 0.01, 0.1, 1.0, 10.0):
        (v,) = editor.find_directions(z[:3], 1, 1, region, naturalness=g).double()
        ratios.append(float((v @ A @ v) / (v @ B @ v)))
        along = vectors.double() @ v / stds.double()
        beside = 1 - (vectors.double() @ v).square().sum()
        lengths.append(
            float((along.square().sum() + beside / stds[-1] ** 2) / (v @ A @ v))
        )
    assert all(a >= b * (1 - 1e-3) for a, b in itertools.pairwise(ratios))
    assert all(a >= b * (1 - 1e-3) for a, b in itertools.pairwise(lengths))
    assert ratios[0] > 1.1 * ratios[-1] and lengths[0] > 1.1 * lengths[-1]


def test_a_region_that_is_the_whole_image(editor, z):
    found = editor.find_directions(z[:2], 0, 2, torch.ones(8, 8))
    assert found.isfinite().all()


def test_all_kinds_of_parts(editor, z):
    part = unit_scaled(editor.decomposition.parts_[1])
    by_index, by_list, by_mask = (
        editor.find_directions(z[:2], p, 1, torch.ones(8, 8)) for p in (1, [1], part)
    )
    torch.testing.assert_close(by_index, by_list)
    # At a mask, all parts that it overlaps count.
    assert float((by_index * by_mask).sum()) > 0.5
    with pytest.raises(ValueError, match="same for all samples"):
        editor.find_directions(z[:2], part.expand(2, 4, 4), 1)
    with pytest.raises(ValueError, match=r"region must be of the images' shape"):
        editor.find_directions(z[:2], 0, 1, torch.ones(4, 4))


def test_the_network_is_left_as_it_was(editor, z):
    generator = editor.extractor.generator
    generator.train()
    weight = generator.block2.weight
    try:
        state = torch.get_rng_state()
        found = editor.find_directions(z[:2].numpy(), 0, 2, verbose=0)
        assert torch.equal(state, torch.get_rng_state())
        assert all(module.training for module in generator.modules())
        assert not any(module._forward_hooks for module in generator.modules())
        assert weight.requires_grad and weight.grad is None
        assert torch.is_grad_enabled()
    finally:
        generator.eval()
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_the_progress_bar_names_the_derivatives(editor, z, capsys):
    editor.find_directions(z[:2], 0, 1, verbose=1)
    assert "exact derivatives" in capsys.readouterr().err
    editor.find_directions(z[:2], 0, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_faces_change_less_elsewhere_than_by_the_best_variation():
    """On other latents than the directions were found on."""
    editor, edits = load_face_edits()
    part = next(edit for edit in edits if edit.name == "smile").part
    generator = editor.extractor.generator
    latents = sample_latents(generator, 3, random_state=0)
    unseen = sample_latents(generator, 8, random_state=1)
    (direction,) = editor.find_directions(latents, part, 1)
    images = editor.extractor.generate(unseen)
    mask = unit_scaled(editor.decomposition.parts_[part])
    mask = F.interpolate(mask[None, None], size=(64, 64), mode="bilinear")[0, 0]

    def ratio(edit):
        edited = editor.edit(unseen, edit, target_change=0.1)
        return roi_ratio(mask, images, edited)

    variations = [
        ratio(Edit(None, part, s, variation=n)) for n in (0, 1) for s in (1, -1)
    ]
    assert ratio(Edit(direction, part, 1.0, "alpha")) < 0.9 * min(variations)
