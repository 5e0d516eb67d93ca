"""What a visitor can do, without a page."""

import dataclasses

import numpy as np
import pytest
import torch

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.explorer import _actions as actions
from panda_sklearn.explorer import _views as views
from panda_sklearn.explorer._explored import Explored
from tests.networks import TinyGenerator

MOUTH = (0.77, 0.5)  # row and column, as fractions of the image


def images_of(explored, session):
    """The picked images with the kept edits."""
    kept = [kept.edit for kept in session.stack if kept.on]
    return views.faces(explored, session, kept)


class TestDrawing:
    def test_images_are_the_generators(self, explored, session):
        drawn = actions.draw(explored, session, 3, 5, 0.7)
        generator = load_face_generator(0.7)
        z = sample_latents(generator, 3, random_state=5)
        assert torch.equal(drawn.latents, z) and drawn.picked == (0,)
        with torch.no_grad():
            expected = ((generator(z[:1]) + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(images_of(explored, drawn), expected)

    def test_truncation_is_the_visitors_own(self, explored, session):
        before = images_of(explored, session)
        near = actions.draw(explored, session, 8, 0, 0.3)
        generator = load_face_generator(0.3)
        with torch.no_grad():
            expected = ((generator(session.latents[:1]) + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(images_of(explored, near), expected)
        assert torch.equal(images_of(explored, session), before)
        back = actions.draw(explored, near, 8, 0, 0.7)
        assert back.editor.extractor is explored.editor.extractor

    def test_edits_stay(self, explored, session):
        kept = actions.keep(explored, session, 2.0)
        assert actions.draw(explored, kept, 2, 1, 0.5).stack == kept.stack

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ((0, 0, 0.7), "number of images"),
            ((13, 0, 0.7), "at most 12"),
            ((3, -1, 0.7), "seed"),
            ((3, 2**32, 0.7), "seed"),
            ((3, 1.5, 0.7), "seed"),
            ((3, 0, 1.5), "truncation"),
            ((3, 0, None), "truncation"),
        ],
    )
    def test_what_cannot_be_drawn(self, explored, session, given, says):
        with pytest.raises((ValueError, TypeError), match=says):
            actions.draw(explored, session, *given)

    def test_one_and_several_are_picked(self, explored, session):
        several = actions.pick(session, [4, 1, 4])
        assert several.picked == (1, 4)
        assert len(images_of(explored, several)) == 2
        with pytest.raises(ValueError, match="image"):
            actions.pick(session, [8])


class TestPlaces:
    def test_a_point_goes_to_the_part_that_is_strongest_there(self, session):
        found = actions.point_at(session, *MOUTH)
        parts = torch.as_tensor(session.editor.decomposition.parts_)
        row, column = (int(8 * share) for share in MOUTH)
        assert parts[found.part, row, column] > 0.6 * parts[found.part].max()
        shares = parts[:, row, column] / parts.flatten(1).max(dim=1).values
        assert found.part == shares.argmax()

    @pytest.mark.parametrize("corner", [(0, 0), (1, 1), (-0.1, 2)])
    def test_edges_count_to_the_image(self, session, corner):
        assert actions.point_at(session, *corner).parts

    def test_several_parts_are_one(self, explored, session):
        both = actions.put_parts(session, [2, 5])
        edit = actions.edit_of(both, 3.0)
        assert edit.part == (2, 5) or list(edit.part) == [2, 5]
        expected = Edit(variation=0, part=[2, 5], strength=3.0)
        torch.testing.assert_close(
            explored.editor.edit(session.chosen, edit),
            explored.editor.edit(session.chosen, expected),
        )
        with pytest.raises(ValueError, match="part"):
            actions.put_parts(session, [99])

    def test_a_painted_region(self, explored, session):
        mask = torch.zeros(64, 64)
        mask[40:, :] = 1
        painted = actions.paint(explored, session, mask)
        assert painted.kind == "appearance" and painted.parts == ()
        kept = actions.keep(explored, painted, 4.0)
        change = (images_of(explored, kept) - images_of(explored, session)).abs()
        assert change[..., 44:, :].mean() > 3 * change[..., :30, :].mean()
        with pytest.raises(ValueError, match="no variations"):
            actions.choose(painted, "variation")
        with pytest.raises(ValueError, match="Nothing is painted"):
            actions.paint(explored, session, torch.zeros(64, 64))
        with pytest.raises(ValueError, match="shape"):
            actions.paint(explored, session, torch.ones(8, 8))

    def test_refined_parts_are_the_images_own(self, explored, session):
        kept = actions.keep(explored, actions.point_at(session, *MOUTH), 4.0)
        refined = actions.refine(kept, True)
        expected = explored.editor.edit(
            session.chosen, [k.edit for k in kept.stack], refine=True
        )
        expected = ((expected + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(images_of(explored, refined), expected)
        assert not torch.equal(images_of(explored, refined), images_of(explored, kept))


class TestChanges:
    def test_directions_are_found_for_the_part(self, explored, session, monkeypatch):
        monkeypatch.setattr(actions, "N_LATENTS", 2)
        mouth = actions.point_at(session, *MOUTH)
        with pytest.raises(ValueError, match="press Find"):
            actions.choose(mouth, "direction")
        found = actions.find(explored, mouth)
        assert found.kind == "direction" and len(found.directions) == 5
        change = images_of(explored, actions.keep(explored, found, 2.0))
        change = (change - images_of(explored, session)).abs()
        assert change[..., 44:54, 20:44].mean() > 5 * change[..., :20, :].mean()
        later = actions.keep(explored, mouth, 1.0)  # meanwhile
        assert actions.with_directions(later, found).stack == later.stack
        with pytest.raises(ValueError, match="another part"):
            actions.with_directions(actions.put_parts(mouth, [0]), found)
        elsewhere = actions.put_parts(found, [0])
        assert elsewhere.directions is None and elsewhere.kind == "variation"

    def test_another_images_part(self, explored, session):
        mouth = actions.point_at(session, *MOUTH)
        given = actions.choose(mouth, "transfer", 3)
        kept = actions.keep(explored, given, 5.0)
        expected = explored.editor.transfer(
            session.chosen, session.latents[3:4], mouth.part
        )
        expected = ((expected + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(images_of(explored, kept), expected)

    @pytest.mark.parametrize("kind", ["variation", "appearance"])
    def test_by_number(self, explored, session, kind):
        chosen = actions.choose(session, kind, 2)
        assert getattr(actions.edit_of(chosen, 1.5), kind) == 2
        with pytest.raises(ValueError, match=kind):
            actions.choose(session, kind, 10_000)
        with pytest.raises(ValueError, match="kind"):
            actions.choose(session, "mood")


class TestStack:
    def test_edits_add_up_and_are_taken_back(self, explored, session):
        one = actions.keep(explored, session, 2.0, "older")
        two = actions.keep(explored, actions.choose(one, "variation", 1), -3.0)
        edits = [kept.edit for kept in two.stack]
        assert [edit.name for edit in edits] == ["older", "variation 1 at part 0"]
        expected = (explored.editor.edit(session.chosen, edits) + 1) / 2
        torch.testing.assert_close(images_of(explored, two), expected.clamp(0, 1))
        off = actions.switch(two, ["older"])
        assert torch.equal(images_of(explored, off), images_of(explored, one))
        assert actions.undo(off).stack == two.stack
        assert actions.undo(two).stack == one.stack
        none = actions.reset(two)
        assert none.stack == () and actions.undo(none).stack == two.stack
        with pytest.raises(ValueError, match="nothing to undo"):
            actions.undo(session)

    def test_names_are_told_apart(self, explored, session):
        for _ in range(3):
            session = actions.keep(explored, session, 1.0, " smile ")
        names = [kept.edit.name for kept in session.stack]
        assert names == ["smile", "smile (2)", "smile (3)"]
        assert (
            len(actions.keep(explored, session, 1.0, "x" * 500).stack[-1].edit.name)
            < 99
        )

    def test_nothing_is_no_edit(self, explored, session):
        with pytest.raises(ValueError, match="of strength 0"):
            actions.keep(explored, session, 0)

    def test_sessions_never_change(self, explored, session):
        fields = {f.name: getattr(session, f.name) for f in dataclasses.fields(session)}
        actions.undo(actions.keep(explored, session, 2.0))
        actions.draw(explored, session, 2, 3, 0.2)
        actions.point_at(session, 0.1, 0.1)
        for name, value in fields.items():
            assert getattr(session, name) is value
        with pytest.raises(dataclasses.FrozenInstanceError):
            session.part = 3


@pytest.fixture(scope="module")
def editor():
    z = np.random.default_rng(0).standard_normal((40, 6))
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1")
    panda = PartsAppearanceDecomposition(3, 4, max_iter=5, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


class TestOtherEditors:
    """The page is for anyone's pipeline."""

    def test_any_network(self, editor):
        explored = Explored(
            editor,
            lambda n, seed: np.random.default_rng(seed).standard_normal((n, 6)),
            (-2, 2),
            "editor = ...",
        )
        assert explored.truncation is None
        session = actions.draw(explored, actions.start(explored), 3, 1)
        session = actions.keep(explored, actions.pick(session, [0, 2]), 3.0)
        assert images_of(explored, session).shape == (2, 3, 8, 8)
        assert "latents = draw(3, 1)" in views.code(session, 0)
        for shown in views.SHOWN:
            assert views.scene(explored, session, 1.0, shown).dtype == np.uint8

    def test_what_is_no_editor(self, editor):
        with pytest.raises(TypeError, match="editor"):
            Explored("an editor", None, (-1, 1), "")
        with pytest.raises(TypeError, match="draw"):
            Explored(editor, 3, (-1, 1), "")
        with pytest.raises(ValueError, match="value_range"):
            Explored(editor, None, (1, -1), "")

    def test_calls_as_samples_and_maps_of_other_shapes(self):
        class Twice(TinyGenerator):
            def forward(self, z):
                return super().forward(z) + super().forward(z)

        z = np.random.default_rng(0).standard_normal((20, 6))
        extractor = GeneratorFeatureExtractor(Twice(), "block1", call="all")
        panda = PartsAppearanceDecomposition(2, 3, max_iter=2, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
        with pytest.raises(ValueError, match="several calls as samples"):
            Explored(editor, None, (-1, 1), "")

    def test_conditions_of_each_sample(self):
        z = np.random.default_rng(0).standard_normal((20, 6))
        extractor = GeneratorFeatureExtractor(
            TinyGenerator(), "block1", forward=lambda network, z, rows: network(z)
        )
        panda = PartsAppearanceDecomposition(2, 3, max_iter=2, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
        with pytest.raises(ValueError, match="conditions by the number"):
            Explored(editor, None, (-1, 1), "")

    def test_what_makes_no_images(self):
        network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 1), torch.nn.Flatten())
        z = torch.randn(20, 2, 4, 4)
        extractor = GeneratorFeatureExtractor(network, "0")
        panda = PartsAppearanceDecomposition(2, 2, max_iter=2, tol=0, random_state=0)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))
        with pytest.raises(ValueError, match="1 or 3, height, width"):
            Explored(editor, None, (-1, 1), "")
