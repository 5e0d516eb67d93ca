"""What there is to see."""

import numpy as np
import pytest
import torch

from panda_sklearn import Edit
from panda_sklearn.explorer import _actions as actions
from panda_sklearn.explorer import _views as views
from panda_sklearn.explorer._session import Kept


@pytest.fixture(scope="module")
def edited(explored, session):
    """Several images with two edits, one of them off."""
    session = actions.keep(explored, actions.pick(session, [0, 2, 5]), 2.0, "older")
    session = actions.keep(explored, actions.put_parts(session, [1, 4]), 3.0)
    return actions.switch(session, ["older"])


def test_a_picture_holds_the_images_side_by_side(explored, session):
    images = views.faces(explored, actions.pick(session, [0, 1, 2]), [])
    picture = views.sheet(images, 128)
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    one = views.sheet(images[2:], 64)
    assert np.array_equal(picture[64:, :64], one)
    assert (picture[64:, 64:] == 255).all()
    # As many pixels as the generator makes are those.
    exact = (images[2].movedim(0, -1) * 255).round().byte().numpy()
    assert np.abs(one.astype(int) - exact).max() <= 1


def test_points_of_each_image(explored, session):
    several = actions.pick(session, [0, 1, 2])
    for x, y in ((96, 48), (288, 48), (96, 240)):
        assert views.point_of(explored, several, x, y) == (0.25, 0.5)


def test_before_and_change(explored, session, edited):
    plain = views.scene(explored, edited.but(stack=()), 0.0)
    assert np.array_equal(views.scene(explored, edited, 3.0, "before"), plain)
    after = views.scene(explored, edited, 0.0)
    assert not np.array_equal(after, plain)
    grey = views.scene(explored, edited.but(stack=()), 0.0, "change")
    assert set(np.unique(grey[:384, :192])) <= {127, 128}
    assert views.scene(explored, edited, 3.0, "change").std() > 1


def test_the_slider_adds_to_what_is_kept(explored, session):
    kept = actions.keep(explored, session, 2.0)
    assert np.array_equal(
        views.scene(explored, session, 2.0), views.scene(explored, kept, 0.0)
    )


@pytest.mark.parametrize("refined", [False, True])
def test_a_part_is_over_the_image(explored, session, refined):
    mouth = actions.refine(actions.point_at(session, 0.77, 0.5), refined)
    picture = views.scene(explored, mouth, 0.0, "part").astype(int)
    red = picture[..., 0] - picture[..., 2]
    assert red[280:310, 160:220].mean() > red[:100].mean() + 100


def test_saliency_and_its_mask(explored, session):
    chosen = actions.choose(session, "appearance", 3)
    picture = views.scene(explored, chosen, 0.0, "saliency")
    other = views.scene(
        explored, actions.choose(session, "appearance", 5), 0.0, "saliency"
    )
    assert (picture == 255).all(axis=2).any() and not np.array_equal(picture, other)


@pytest.mark.parametrize("kind", ["variation", "appearance", "transfer"])
def test_tiles_come_one_by_one(explored, session, kind):
    sizes, n = [], min(len(views.names_of(session, kind)), views.MOST_TILES)
    for found, of in views.tiles(explored, session, kind):
        sizes.append((len(found), of))
    assert sizes == [(k, n) for k in range(1, n + 1)]
    assert len({tile.tobytes() for tile in found}) == n
    width = 96 if kind == "transfer" else 192
    assert all(tile.shape == (96, width, 3) for tile in found)
    assert len(views.names_of(session, kind)) >= n


def test_a_strip_of_strengths(explored, session):
    picture = views.strip(explored, session)
    assert picture.shape == (96, 96 * len(views.STRIP), 3)


def run(lines):
    names = {}
    exec(lines, names)
    return names["images"]


class TestCode:
    """The lines give what is shown."""

    def test_of_drawn_images_with_edits(self, explored, edited):
        other = actions.draw(explored, edited, 5, 3, 0.4)
        for session in (edited, actions.pick(other, [1, 4])):
            images = (run(views.code(session, 1.5)) + 1) / 2
            picture = views.scene(explored, session, 1.5)
            shown = views.sheet(images.clamp(0, 1), 384)
            assert np.abs(shown.astype(int) - picture).max() <= 1

    def test_without_edits(self, explored, session):
        images = (run(views.code(session, 0.0)) + 1) / 2
        shown = views.sheet(images.clamp(0, 1), 384)
        assert (
            np.abs(shown.astype(int) - views.scene(explored, session, 0.0)).max() <= 1
        )

    def test_refined(self, explored, session):
        refined = actions.refine(actions.point_at(session, 0.77, 0.5), True)
        lines = views.code(refined, 4.0)
        assert "refine=True" in lines
        images = (run(lines) + 1) / 2
        torch.testing.assert_close(
            images.clamp(0, 1),
            views.faces(explored, refined, [actions.edit_of(refined, 4.0)]),
        )

    def test_units_and_the_like_are_not_lost(self, explored, session):
        for edit in (
            Edit(3, 2, 8.0, "alpha", name="a"),
            Edit(variation=0, part=2, strength=2.0, given="others", name="b"),
            Edit(0, 1, np.array([2.0]), name="c"),
        ):
            kept = session.with_stack((Kept(edit),))
            lines = views.code(kept, 0.0)
            assert "load_edits" in lines and f"in ['{edit.name}']" in lines

    def test_what_has_arrays_is_in_a_file(self, explored, session):
        painted = actions.paint(explored, session, torch.ones(64, 64))
        lines = views.code(actions.keep(explored, painted, 2.0), 0.0)
        assert 'load_edits("edits.safetensors"' in lines
