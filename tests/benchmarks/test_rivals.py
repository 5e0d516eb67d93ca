"""The rival methods of benchmarks/rivals.py, against slow versions and facts."""

import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.datasets._face_generator import FaceGenerator

FILE = Path(__file__).parents[2] / "benchmarks" / "rivals.py"


def load_rivals():
    spec = importlib.util.spec_from_file_location("panda_benchmarks_rivals", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rivals = load_rivals()
# torch's own forward mode compiles its rules by a call that torch has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning",
)


@pytest.fixture(scope="module")
def generator():
    return load_face_generator()


@pytest.fixture(scope="module")
def mouth():
    mask = torch.zeros(64, 64)
    mask[42:54, 20:44] = 1
    return mask


def state_of(generator):
    """All that making candidates could change, in the generator and outside."""
    return {
        "weights": {k: v.clone() for k, v in generator.state_dict().items()},
        "needs": [p.requires_grad for p in generator.parameters()],
        "gradients": [p.grad for p in generator.parameters()],
        "modes": [module.training for module in generator.modules()],
        "hooks": [len(module._forward_hooks) for module in generator.modules()],
        "torch seed": torch.get_rng_state(),
        "numpy seed": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        "autograd": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


@pytest.fixture(scope="module")
def made(mouth):
    """Candidates of LowRankGAN, and the state before and after."""
    generator = load_face_generator().train()
    generator.block8.requires_grad_(True)
    before = state_of(generator)
    found = rivals.low_rank_gan(generator, mouth, 2, n_samples=1)
    return found, before, state_of(generator)


@pytest.fixture(scope="module")
def low_rank(made):
    return made[0]


def named(candidates, name):
    (found,) = (c for c in candidates if c.name == name)
    return found.offset


def assert_same_direction(found, expected, atol):
    """Up to sign."""
    sign = np.sign(found @ expected)
    np.testing.assert_allclose(found, sign * expected, rtol=0, atol=atol)


def test_sefa_directions_are_the_eigenvectors_of_the_stacked_weights(generator):
    found = rivals.sefa(generator, 3)
    parameters = {k: v.double().numpy() for k, v in generator.named_parameters()}
    cases = {
        "all layers": [k for k in parameters if "conv" in k],
        "layer 4": ["block4.conv1.style.weight"],
        "layer 32": ["block32.conv0.style.weight", "block32.conv1.style.weight"],
    }
    assert len(found) == 18
    assert {c.method for c in found} == {"SeFa"}
    for where, keys in cases.items():
        A = np.vstack([parameters[k] for k in keys if k.endswith("style.weight")])
        vectors = np.linalg.eigh(A.T @ A)[1]
        for k in (1, 2, 3):
            offset = named(found, f"component {k}, {where}").numpy()
            row = 3 if where == "layer 32" else 0
            assert_same_direction(offset[row], vectors[:, -k], 1e-5)  # float32 offsets


def test_ganspace_directions_are_the_principal_components_of_the_styles(generator):
    found = rivals.ganspace(generator, 3, n_samples=500, random_state=1)
    w = generator.styles(sample_latents(generator, 500, random_state=1))
    pca = PCA(3, svd_solver="full").fit(w.double().numpy())
    for k in (1, 2, 3):
        # Lengths are standard deviations.
        expected = pca.components_[k - 1] * pca.explained_variance_[k - 1] ** 0.5
        offset = named(found, f"component {k}, all layers").numpy()
        assert_same_direction(offset[0], expected, 1e-5)  # float32 offsets


@pytest.mark.parametrize("make", ["sefa", "ganspace"])
def test_a_candidate_moves_the_layers_that_it_names(generator, make):
    found = getattr(rivals, make)(generator, 1)
    together = named(found, "component 1, all layers")
    torch.testing.assert_close(together, together[:1].expand(5, 128))
    for row, layer in enumerate(rivals.LAYERS):
        moved = named(found, f"component 1, layer {layer}").any(dim=1)
        assert moved.tolist() == [k == row for k in range(5)]


def test_a_strength_of_one_is_one_offset(generator):
    candidate = rivals.ganspace(generator, 1, n_samples=200)[2]
    latents = sample_latents(generator, 2, random_state=3)
    w = generator.styles(latents)
    strengths = torch.tensor([1.0, -2.0])
    expected = generator.synthesize(
        [w + strengths[:, None] * row for row in candidate.offset]
    )
    found = candidate.apply(generator, latents, strengths)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # twenty layers
    assert (found - generator(latents)).abs().max() > 0.01


def test_strength_zero_gives_the_generators_own_images(generator, low_rank):
    latents = sample_latents(generator, 3, random_state=4)
    own = generator(latents)
    for candidates in (
        rivals.sefa(generator, 1),
        rivals.ganspace(generator, 1, n_samples=200),
        low_rank,
    ):
        for candidate in candidates:
            found = candidate.apply(generator, latents, torch.zeros(3))
            assert torch.equal(found, own)


def test_the_jacobian_is_the_limit_of_differences(generator):
    double = copy.deepcopy(generator).double()
    w = generator.styles(sample_latents(generator, 1, random_state=5))[0]
    J = rivals.style_jacobian(generator, w, chunk=24).double()
    w = w.double()
    assert J.shape == (5, 128, 3, 64, 64)
    draw = torch.Generator().manual_seed(0)
    h = 1e-6
    for row in range(5):
        v = torch.randn(128, generator=draw, dtype=torch.float64)

        def image(t, row=row, v=v):
            return double.synthesize([(w + t * v * (k == row))[None] for k in range(5)])

        # Leaky ReLU has kinks: near one, an image differs by its change of slope at
        # most, and few pixels do. J is of single precision, to be fast.
        difference = (image(h) - image(-h))[0] / (2 * h)
        gap = torch.einsum("k,kchw->chw", v, J[row]) - difference
        assert gap.norm() < 1e-4 * difference.norm()


def test_pursuit_recovers_a_planted_pair():
    draw = torch.Generator().manual_seed(0)
    n = 80
    U, V = torch.randn(2, n, 4, generator=draw, dtype=torch.float64)
    L = U @ V.T
    spikes = torch.rand(n, n, generator=draw, dtype=torch.float64) < 0.05
    S = 5 * torch.randn(n, n, generator=draw, dtype=torch.float64) * spikes
    found_L, found_S = rivals.low_rank_plus_sparse(L + S, n**-0.5)
    # Recovery is exact in theory; the loop stops at 1e-7 of the norm.
    assert (found_L - L).norm() < 1e-5 * L.norm()
    assert (found_S - S).norm() < 1e-5 * S.norm()
    assert torch.linalg.matrix_rank(found_L, rtol=1e-6) == 4


def test_pursuit_says_when_it_does_not_converge():
    with pytest.raises(RuntimeError, match="max_iter=2"):
        rivals.low_rank_plus_sparse(torch.eye(5) + 1, 0.4, max_iter=2)


def test_pursuit_of_nothing_is_nothing():
    L, S = rivals.low_rank_plus_sparse(torch.zeros(3, 3), 1.0)
    assert not L.any()
    assert not S.any()


def test_projection_leaves_what_moves_the_rest():
    # Region moved by e0 + e1 alone, rest by e1 alone: what is left is e0.
    b = torch.zeros(128, dtype=torch.float64)
    b[:2] = 1
    rest = torch.zeros(128, 128, dtype=torch.float64)
    rest[1, 1] = 1
    # The larger the weight, the less is called sparse: here nothing.
    (found,) = rivals.low_rank_directions(torch.outer(b, b), rest, 3, 10 * 128**0.5)
    assert found[0].abs() == pytest.approx(1)
    assert found[1:].abs().max() < 1e-6


def contrast(generator, offset, mask):
    """Root mean square change of a region relative to that of the rest."""
    latents = sample_latents(generator, 8, random_state=6)
    candidate = rivals.Candidate("", "", offset)
    changed = candidate.apply(generator, latents, torch.full((8,), 0.5))
    change = (changed - generator(latents)).square().mean(dim=(0, 1))
    inside = (change * mask).sum() / mask.sum()
    outside = (change * (1 - mask)).sum() / (1 - mask).sum()
    return float((inside / outside).sqrt())


@pytest.mark.parametrize("where", ["all layers", "layer 16", "layer 32"])
def test_low_rank_directions_prefer_the_region(generator, mouth, low_rank, where):
    offset = named(low_rank, f"component 1, {where}")
    moved = offset.any(dim=1)
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(10, 128, generator=draw), dim=1)
    random = [contrast(generator, moved[:, None] * row, mouth) for row in rows]
    assert offset[moved].norm(dim=1).tolist() == pytest.approx([1] * int(moved.sum()))
    assert contrast(generator, offset, mouth) > 1.2 * np.mean(random)


def assert_same_state(found, expected):
    for key, value in expected.items():
        if key == "weights":
            assert all(torch.equal(found[key][k], v) for k, v in value.items())
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[key], value)
        else:
            assert found[key] == value


def test_low_rank_gan_leaves_generator_and_global_state_as_found(made):
    found, before, after = made
    assert_same_state(after, before)
    assert not any(c.offset.requires_grad for c in found)


def test_the_others_leave_generator_and_global_state_as_found():
    generator = load_face_generator().train()
    generator.requires_grad_(True)
    before = state_of(generator)
    found = [*rivals.sefa(generator, 1), *rivals.ganspace(generator, 1, n_samples=200)]
    latents = sample_latents(generator, 1, random_state=0)
    images = found[0].apply(generator, latents, torch.ones(1))
    assert_same_state(state_of(generator), before)
    assert not images.requires_grad
    assert not any(c.offset.requires_grad for c in found)


@pytest.fixture(scope="module")
def narrow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = FaceGenerator({4: 5, 8: 4, 16: 4, 32: 3, 64: 2})
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def gradients(narrow):
    return rivals.style_gradients(narrow, n_samples=2)


class TestStyleSpace:
    """On a narrow generator, whose few scales can all be looked at."""

    def test_a_strength_adds_to_one_scale(self, narrow):
        latents = sample_latents(narrow, 3, random_state=1)
        channel = rivals.StyleChannel("block16.conv1", 2, 0.5)
        strengths = torch.tensor([0.0, 1.0, -2.0])
        edited = channel.apply(narrow, latents, strengths)
        plain = narrow(latents)
        torch.testing.assert_close(edited[0], plain[0])
        for n in (1, 2):
            moved = copy.deepcopy(narrow)
            style = moved.block16.conv1.style
            style.bias[2] += 0.5 * strengths[n] / style.speed
            torch.testing.assert_close(edited[n], moved(latents)[n])
            assert (edited[n] - plain[n]).abs().max() > 1e-3
        assert not narrow.block16.conv1.style._forward_hooks

    def test_gradients_are_those_of_autograd(self, narrow, gradients):
        latents = sample_latents(narrow, 1000, 0)[:2]
        for channel, found in gradients[::7]:
            layer = narrow.get_submodule(channel.layer).style
            total = torch.zeros(64, 64)
            for z in latents:

                def image(step, layer=layer, channel=channel, z=z):
                    def move(module, args, scales):
                        unit = torch.eye(scales.shape[1])[channel.channel]
                        return scales + step * channel.std * unit

                    with layer.register_forward_hook(move):
                        return narrow(z[None])[0]

                J = torch.func.jacfwd(image)(torch.tensor(0.0))
                total += J.abs().sum(dim=0) / 2
            # Central differences over 0.2 standard deviations, across kinks of the
            # activations.
            error = (found / 0.2 - total).norm() / total.norm()
            assert error < 0.15

    def test_channels_of_the_largest_share_inside(self, gradients, mouth):
        shares = {
            channel: float((gradient * mouth).sum() / gradient.sum())
            for channel, gradient in gradients
        }
        found = rivals.style_space(gradients, mouth, 5)
        assert [shares[channel] for channel in found] == sorted(
            shares.values(), reverse=True
        )[:5]
        assert found[0].name.startswith("channel ")

    def test_every_scale_of_every_styled_layer_is_looked_at(self, narrow, gradients):
        n_scales = sum(
            module.style.weight.shape[0]
            for module in narrow.modules()
            if hasattr(module, "style")
        )
        assert len(gradients) == n_scales
