"""The shipped generator and the planted data."""

import io
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.utils import Bunch

from panda_sklearn.datasets import (
    _faces,
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.generators import fingerprint, list_layers


@pytest.fixture(scope="module")
def generator():
    return load_face_generator()


def test_the_generator_is_ready_to_use(generator):
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())
    assert all(p.dtype == torch.float32 for p in generator.parameters())
    assert sum(p.numel() for p in generator.parameters()) < 1_000_000
    layers = {
        layer.name: layer.shape
        for layer in list_layers(generator, sample_latents(generator, 2, 0))
    }
    assert layers["block8"] == (2, 128, 8, 8)
    assert layers["block16"] == (2, 96, 16, 16)
    assert layers["block32"] == (2, 48, 32, 32)


def test_the_weights_are_small_and_no_code():
    file = _faces.resources.files("panda_sklearn.datasets") / "data"
    weights = file / "face_generator.safetensors"
    assert len(weights.read_bytes()) < 2_100_000
    with safe_open(weights, framework="numpy") as tensors:
        assert {str(tensors.get_tensor(k).dtype) for k in list(tensors.keys())} == {
            "float16"
        }
    assert "may not be used for" in (file / "MODEL_CARD.rst").read_text()


def test_the_images_are_pictures_and_varied(generator):
    images = generator(sample_latents(generator, 64, random_state=0))
    assert images.shape == (64, 3, 64, 64)
    assert (images.abs() <= 1).float().mean() > 0.95
    # No two alike: of trained faces the nearest pair still differs visibly.
    pixels = images.flatten(1)
    distances = torch.cdist(pixels, pixels) / pixels.shape[1] ** 0.5
    distances.fill_diagonal_(np.inf)
    assert distances.min() > 0.05
    # And faces: brighter in the middle than at the sides, on the whole.
    brightness = images.mean(dim=(0, 1))
    assert brightness[24:40, 24:40].mean() > brightness[:, :8].mean() + 0.1


def test_the_same_latents_give_the_same_image(generator):
    latents = sample_latents(generator, 3, random_state=0)
    assert torch.equal(generator(latents), generator(latents))
    full = generator(latents)
    near = generator(latents, truncation=0.5)
    mean = generator(latents, truncation=0.0)
    assert torch.allclose(mean[0], mean[1], atol=1e-5)
    assert (near - mean).norm() < (full - mean).norm()


def test_a_generator_is_loaded_with_its_truncation(generator):
    latents = sample_latents(generator, 3, random_state=0)
    near = load_face_generator(truncation=0.7)
    assert torch.equal(near(latents), generator(latents, truncation=0.7))
    assert torch.equal(near(latents, truncation=1.0), generator(latents))
    assert fingerprint(near) == fingerprint(generator)
    for bad, error in (("0.7", TypeError), (True, TypeError), (1.5, ValueError)):
        with pytest.raises(error, match="truncation"):
            load_face_generator(truncation=bad)


def test_loading_draws_no_random_numbers():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    load_face_generator()
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_sample_latents(generator):
    before = np.random.get_state()[1].copy()
    latents = sample_latents(generator, 1000, random_state=0)
    assert latents.shape == (1000, 64) and latents.dtype == torch.float32
    assert torch.equal(latents, sample_latents(generator, 1000, random_state=0))
    assert not torch.equal(latents, sample_latents(generator, 1000, random_state=1))
    assert latents.mean().abs() < 0.02 and abs(latents.std() - 1) < 0.02
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    with pytest.raises(ValueError, match="n_samples"):
        sample_latents(generator, 0)
    with pytest.raises(TypeError, match="latent_size"):
        sample_latents(torch.nn.Linear(2, 2), 3)


def test_planted_factors():
    X, parts, appearances = make_parts_appearances(
        20, 3, 4, n_channels=6, spatial_shape=(2, 3, 4), random_state=0
    )
    assert X.shape == (20, 6, 2, 3, 4)
    P = parts.reshape(3, -1).T
    np.testing.assert_allclose(P.T @ P, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(appearances @ appearances.T, np.eye(4), atol=1e-12)
    assert P.min() >= 0
    Z = X.reshape(20, 6, 24)
    model = appearances.T @ (appearances @ Z @ P) @ P.T
    np.testing.assert_allclose(model, Z, atol=1e-12)


@pytest.mark.parametrize("snr_db", [0, 10])
def test_noise_is_as_strong_as_asked(snr_db):
    clean, *_ = make_parts_appearances(500, random_state=0)
    noisy, *_ = make_parts_appearances(500, snr_db=snr_db, random_state=0)
    ratio = np.sum(clean**2) / np.sum((noisy - clean) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"n_samples": 0}, "n_samples must be"),
        ({"n_parts": 65}, "n_parts=65 exceeds the number of positions, 64"),
        ({"n_appearances": 17}, "n_appearances=17 exceeds the number of channels"),
        ({"spatial_shape": (0, 3)}, "spatial_shape"),
        ({"snr_db": np.nan}, "snr_db"),
    ],
)
def test_bad_sizes(options, match):
    with pytest.raises(ValueError, match=match):
        make_parts_appearances(**options)


@pytest.mark.slow
def test_the_training_script_runs(tmp_path):
    """A few steps on a handful of pictures, from a folder of JPEGs."""
    image = pytest.importorskip("PIL.Image")
    import importlib.util
    import sys

    random = np.random.default_rng(0)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(20):
        pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        image.fromarray(pixels).save(buffer, format="JPEG")
        (photographs / f"{i}.jpg").write_bytes(buffer.getvalue())
    spec = importlib.util.spec_from_file_location(
        "train_face_generator", "examples/train_face_generator.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = f"--images {photographs} --out {tmp_path / 'out'} --steps 9"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["train", *arguments.split()])
        script.main()
        faces = random.random((5, 64, 64, 3), dtype=np.float32)  # as scikit-learn's
        patch.setattr(
            "sklearn.datasets.fetch_lfw_people", lambda **options: Bunch(images=faces)
        )
        images = script.load_images(None)
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8
    assert abs(int(images[4, 2, 1, 0]) - 255 * faces[4, 1, 0, 2]) <= 0.5
    made = tmp_path / "out"
    assert (made / "samples_000009.png").exists()
    with safe_open(made / "face_generator.safetensors", framework="pt") as tensors:
        assert set(tensors.keys()) == set(load_face_generator().state_dict())
