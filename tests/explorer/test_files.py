"""Files from visitors: what comes back, and what is refused in our words."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from panda_sklearn import Edit, PartsAppearanceDecomposition, editing
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.explorer import _actions as actions
from panda_sklearn.explorer import _files as files
from panda_sklearn.explorer import _views as views


@pytest.fixture(scope="module")
def edited(explored, session):
    session = actions.keep(explored, session, 2.0, "older")
    painted = actions.paint(explored, session, torch.ones(64, 64) / 2)
    session = actions.keep(explored, painted, -3.0, "paler")
    given = actions.choose(actions.put_parts(session, [4]), "transfer", 3)
    return actions.keep(explored, given, 4.0, "smile")


def test_edits_come_back(explored, session, edited, tmp_path):
    path = tmp_path / "edits.safetensors"
    path.write_bytes(files.edits_as_bytes(edited))
    again = files.read_edits(explored, session, path)
    assert [kept.edit.name for kept in again.stack] == ["older", "paler", "smile"]
    assert np.array_equal(
        views.scene(explored, again, 0.0), views.scene(explored, edited, 0.0)
    )
    twice = files.read_edits(explored, again, path)
    assert twice.stack[-1].edit.name == "smile (2)"
    assert actions.undo(twice).stack == again.stack


def test_edits_of_a_fixed_number_of_images(explored, session, tmp_path):
    path = tmp_path / "edits.safetensors"
    edit = Edit(variation=0, part=1, strength=np.array([2.0]))
    editing.save_edits(path, edit, explored.editor.decomposition)
    with pytest.raises(ValueError, match="strength"):
        files.read_edits(explored, session, path)


def test_no_edits_are_no_file(session):
    with pytest.raises(ValueError, match="no edits to save"):
        files.edits_as_bytes(session)


@pytest.mark.parametrize("read", [files.read_edits, files.read_factors])
def test_wrong_files(explored, session, read, tmp_path, monkeypatch):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"no such thing" * 20)
    with pytest.raises(ValueError, match=r"some\.safetensors") as caught:
        read(explored, session, path)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="No file"):
        read(explored, session, None)
    monkeypatch.setattr(files, "MOST_BYTES", dict.fromkeys(files.MOST_BYTES, 100))
    with pytest.raises(ValueError, match="megabytes, but at most"):
        read(explored, session, path)


@pytest.fixture(scope="module")
def other(explored):
    """Other factors of the same layer."""
    features = explored.editor.extractor.transform(explored.draw(60, 1))
    panda = PartsAppearanceDecomposition(5, 16, max_iter=5, tol=0, random_state=0)
    return panda.fit(features)


class TestFactors:
    def test_other_factors(self, explored, session, edited, other, tmp_path):
        path = tmp_path / "factors.safetensors"
        other.save(path, layer="block8")
        found = files.read_factors(explored, edited, path)
        assert len(found.editor.decomposition.parts_) == 5 and found.stack == ()
        assert explored.editor.decomposition is session.editor.decomposition
        kept = actions.keep(explored, actions.put_parts(found, [4]), 2.0)
        assert views.scene(explored, kept, 0.0).any()
        assert "factors.safetensors" in views.code(kept, 0.0)
        drawn = actions.draw(explored, kept, 3, 1, 0.2)
        assert "factors.safetensors" in views.code(drawn, 0.0)
        assert len(drawn.editor.decomposition.parts_) == 5

    def test_of_another_layer(self, explored, session, other, tmp_path):
        path = tmp_path / "factors.safetensors"
        other.save(path, layer="block16")
        with pytest.raises(ValueError, match="of layer 'block16'"):
            files.read_factors(explored, session, path)

    def test_of_another_shape(self, explored, session, tmp_path):
        panda = PartsAppearanceDecomposition(2, 2, max_iter=2, tol=0, random_state=0)
        panda.fit(torch.randn(9, 4, 6, 6)).save(tmp_path / "f.safetensors")
        with pytest.raises(ValueError, match="activations of shape"):
            files.read_factors(explored, session, tmp_path / "f.safetensors")

    def test_of_another_network(self, explored, session, other, tmp_path):
        path = tmp_path / "factors.safetensors"
        other.save(path, layer="block8", network=torch.nn.Linear(2, 2))
        with pytest.raises(ValueError, match="fingerprint"):
            files.read_factors(explored, session, path)


class TestPhotographs:
    @pytest.fixture
    def photograph(self, tmp_path):
        """One of the generator's own, larger, and on its side as cameras say it."""
        generator = load_face_generator(0.7)
        with torch.no_grad():
            (image,) = generator(sample_latents(generator, 1, random_state=99))
        values = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1)
        large = Image.fromarray(values.numpy()).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        turned = large.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        path = tmp_path / "face.png"
        turned.save(path, exif=exif)
        return path, image

    def test_it_is_upright_and_of_the_right_size(self, explored, photograph):
        path, image = photograph
        read = files.read_photograph(explored, path)
        assert read.shape == (1, 3, 64, 64)
        assert (read[0] - image.clamp(-1, 1)).abs().mean() < 0.05

    @pytest.mark.slow
    def test_it_is_inverted_and_edited(
        self, explored, session, photograph, monkeypatch
    ):
        path, image = photograph
        briefly = functools.partial(editing.invert, n_steps=80)
        monkeypatch.setattr(editing, "invert", briefly)
        monkeypatch.setattr(files, "invert", briefly)
        kept = actions.keep(explored, session, 2.0)
        found, text = files.invert_photograph(explored, kept, path)
        assert len(found.latents) == 1 and "not matched" in text
        near = views.faces(explored, found, [])[0]
        assert (2 * near - 1 - image.clamp(-1, 1)).abs().mean() < 0.1
        assert not torch.equal(
            views.faces(explored, found, [found.stack[0].edit])[0], near
        )
        drawn = actions.draw(explored, found, 4, 0, 0.7)
        assert drawn.latents.shape == (4, 64)
        names = {"photograph": files.read_photograph(explored, path)}
        lines = views.code(found, 0.0).replace("photograph = ...", "#")
        exec(lines, names)
        again = ((names["images"] + 1) / 2).clamp(0, 1)
        edited = views.faces(explored, found, [found.stack[0].edit])
        assert (again - edited).abs().mean() < 0.05

    def test_what_is_no_photograph(self, explored, session, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        with pytest.raises(ValueError, match="not a photograph"):
            files.read_photograph(explored, path)
        path.write_bytes(b"GIF89a no")
        with pytest.raises(ValueError, match="not a photograph"):
            files.read_photograph(explored, path)
        Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match="not a photograph"):
            files.read_photograph(explored, path)
        Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(path)
        monkeypatch.setattr(files, "MOST_PIXELS", 1000)
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(ValueError, match="million pixels"):
            files.read_photograph(explored, path)
