"""The shipped generator and the planted data."""

import contextlib
import importlib.util
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.utils import Bunch

from panda_sklearn.datasets import (
    _faces,
    load_face_diffusion,
    load_face_edits,
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.generators import fingerprint, list_layers


def load_script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def generator():
    return load_face_generator()


def test_the_generator_is_ready_to_use(generator):
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())
    assert all(p.dtype == torch.float32 for p in generator.parameters())
    assert sum(p.numel() for p in generator.parameters()) < 2_500_000
    layers = {
        layer.name: layer.shape
        for layer in list_layers(generator, sample_latents(generator, 2, 0))
    }
    assert layers["block8"] == (2, 192, 8, 8)
    assert layers["block16"] == (2, 128, 16, 16)
    assert layers["block32"] == (2, 64, 32, 32)


def test_the_weights_are_small_and_hold_no_code():
    file = _faces.resources.files("panda_sklearn.datasets") / "data"
    weights = file / "face_generator.safetensors"
    assert len(weights.read_bytes()) < 5_000_000
    with safe_open(weights, framework="numpy") as tensors:
        assert {str(tensors.get_tensor(k).dtype) for k in list(tensors.keys())} == {
            "float16"
        }
    card = (file / "MODEL_CARD.rst").read_text()
    assert "may not be used for" in card
    assert fingerprint(load_face_generator()) in card


def test_the_diffusion_model_has_a_card_of_its_own():
    pytest.importorskip("diffusers")
    file = _faces.resources.files("panda_sklearn.datasets") / "data"
    assert len((file / "face_diffusion.safetensors").read_bytes()) < 5_000_000
    card = (file / "MODEL_CARD_DIFFUSION.rst").read_text()
    assert "may not be used for" in card
    assert fingerprint(load_face_diffusion()) in card


def test_the_images_are_pictures_and_varied(generator):
    images = generator(sample_latents(generator, 64, random_state=0))
    assert images.shape == (64, 3, 64, 64)
    assert (images.abs() <= 1).float().mean() > 0.95
    # No two alike: even the nearest pair of faces differs visibly.
    pixels = images.flatten(1)
    distances = torch.cdist(pixels, pixels) / pixels.shape[1] ** 0.5
    distances.fill_diagonal_(np.inf)
    assert distances.min() > 0.05
    # And faces: on average brighter in the middle than at the sides.
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
def test_noise_has_the_requested_strength(snr_db):
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


@pytest.fixture(scope="module")
def script():
    """The script that trained the generator."""
    pytest.importorskip("PIL.Image")
    return load_script("examples/train_face_generator.py")


def save_photographs(folder, n, size=64, *, apart=False):
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        pixels = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
        own = folder / f"person{i}" if apart else folder
        own.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(own / f"{i}.jpg", format="JPEG")
    return folder


def run(script, arguments):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["train", *arguments.split()])
        script.main()


@pytest.mark.slow
def test_the_training_script_continues_where_it_was(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "N_SAMPLES", 24)
    monkeypatch.setattr(script, "PENALTY_EVERY", 2)
    photographs = save_photographs(tmp_path / "photographs", 20)
    common = f"--images {photographs} --batch-size 8 --held-out 4 --report-every 2"
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    run(script, f"{common} --out {whole} --steps 4")
    assert (whole / "samples_000004.png").exists()
    weights = load_file(whole / "face_generator.safetensors")
    assert set(weights) == set(load_face_generator().state_dict())

    def stop(training, real, rate):
        if training.step == 3:  # after the checkpoint of step 2
            raise KeyboardInterrupt
        return advance(training, real, rate)

    advance = script.Training.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.Training, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            run(script, f"{common} --out {halved} --steps 4")
    assert not (halved / "samples_000004.png").exists()
    steps = []

    def count(training, real, rate):
        steps.append(training.step)
        return advance(training, real, rate)

    monkeypatch.setattr(script.Training, "advance", count)
    run(script, f"{common} --out {halved} --steps 4")
    assert steps == [2, 3]
    again = load_file(halved / "face_generator.safetensors")
    # Half precision, and threads may add in another order.
    for name, weight in weights.items():
        torch.testing.assert_close(again[name], weight, rtol=2e-2, atol=2e-3)


class Mesh:
    """A stand-in for MediaPipe's face mesh that finds the points it was given."""

    def __init__(self, faces):
        self.faces = faces

    def process(self, photograph):
        height, width = photograph.shape[:2]
        size = np.array([width, height, width])
        found = [
            Bunch(landmark=[Bunch(x=x, y=y, z=z) for x, y, z in face / size])
            for face in self.faces
        ]
        return Bunch(multi_face_landmarks=found or None)


def mesh_points(script, *, angle=0.0, distance=50.0, middle=(125, 120), depth=0.0):
    """The points of a face mesh, with given corners of eyes and mouth, and nose."""
    at = (script.PLACES - script.PLACES.mean(axis=0)) @ [1, 1j]
    turn = distance / 20 * np.exp(1j * np.deg2rad(angle))
    centres = turn * at + complex(*middle)
    points = np.zeros((478, 3))
    points[1, :2] = middle
    for pair, centre in zip(script.CORNERS, centres, strict=True):
        for corner, side in zip(pair, (-1, 1), strict=True):
            z = centre + side * turn
            points[corner] = z.real, z.imag, depth * at.real[script.CORNERS.index(pair)]
    return points, centres


@pytest.mark.parametrize("angle", [0, 25, -10])
def test_photographs_are_aligned(script, angle):
    points, centres = mesh_points(script, angle=angle)
    photograph = np.full((250, 250, 3), 40, dtype=np.uint8)
    rows, columns = np.mgrid[:250, :250] + 0.5
    for channel, centre in enumerate(centres):  # a dot for each of the three
        near = np.hypot(columns - centre.real, rows - centre.imag) < 4
        photograph[near, channel] = 240
    # Another face, further from the middle, is ignored.
    other, _ = mesh_points(script, middle=(60, 60))
    crop = script.aligned(photograph, Mesh([other, points]))
    assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8
    rows, columns = np.mgrid[:64, :64] + 0.5
    for channel, (column, row) in enumerate(script.PLACES):
        weight = crop[..., channel].astype(float) - 40
        found = [(weight * axis).sum() / weight.sum() for axis in (columns, rows)]
        np.testing.assert_allclose(found, [column, row], atol=0.2)


def test_photographs_that_cannot_be_aligned_are_left_out(script):
    photograph = np.zeros((250, 250, 3), dtype=np.uint8)
    for faces in (
        [],
        [mesh_points(script, depth=1.0)[0]],  # 21 degrees
        [mesh_points(script, distance=15)[0]],
        [mesh_points(script, middle=(40, 120))[0]],
    ):
        assert script.aligned(photograph, Mesh(faces)) is None
    assert script.aligned(photograph, Mesh([mesh_points(script)[0]])) is not None


def test_photographs_are_aligned_once(script, tmp_path, monkeypatch):
    def fetch(**options):
        (tmp_path / "lfw_home").mkdir()
        save_photographs(tmp_path / "lfw_home/lfw_funneled", 3, size=200, apart=True)

    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    points, _ = mesh_points(script, distance=30, middle=(100, 100))
    mesh = SimpleNamespace(
        FaceMesh=lambda **options: contextlib.nullcontext(Mesh([points]))
    )
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.face_mesh", mesh)
    images = script.load_images(None, tmp_path / "aligned.npy")
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.uint8
    monkeypatch.setattr(script, "align", None)
    assert torch.equal(script.load_images(None, tmp_path / "aligned.npy"), images)


def test_face_edits():
    editor, edits = load_face_edits()
    assert editor.extractor.generator.truncation == 0.7
    names = [edit.name for edit in edits]
    assert len(set(names)) == len(edits) >= 5 and "smile" in names
    latents = sample_latents(editor.extractor.generator, 6, random_state=3)
    plain = editor.extractor.generate(latents)
    mouth = torch.zeros(64, 64)
    mouth[42:58, 20:44] = 1
    for edit in edits:
        change = editor.edit(latents, edit) - plain
        assert change.abs().amax(dim=(1, 2, 3)).min() > 0.1
        inside = (change * mouth).square().mean(dim=(0, 1)).sum() / mouth.sum()
        outside = (change * (1 - mouth)).square().mean(dim=(0, 1)).sum()
        at_mouth = inside > 3 * outside / (1 - mouth).sum()
        assert bool(at_mouth) == (edit.name in ("smile", "beard shadow"))
    assert load_face_edits(truncation=1)[0].extractor.generator.truncation == 1
    with pytest.raises(ValueError, match="truncation"):
        load_face_edits(2)
