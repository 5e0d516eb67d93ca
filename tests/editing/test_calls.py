"""Edits at calls of a layer that runs many times, and in guided batches."""

import numpy as np
import pytest
import torch

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing import EditedGenerator, load_edits, save_edits
from tests.editing.conftest import unit_scaled
from tests.networks import TinySteps


@pytest.fixture(scope="module")
def z():
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def editor_of(z, k=1, **options):
    options = {"call": "all", "batch_size": 4, **options}
    if k > 1:
        options = {"guidance": "last", **options}
    extractor = GeneratorFeatureExtractor(TinySteps(k=k), "block", **options)
    panda = PartsAppearanceDecomposition(2, 4, max_iter=10, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


def by_hand(network, z, added):
    """The steps one by one, with ``added(step)`` of shape (k, 1, C, 1, 1) or 0."""
    x = z
    with torch.no_grad():
        for step in range(network.n_steps):
            rows = x.repeat(network.k, 1, 1, 1)
            shift = torch.arange(float(network.k)).repeat_interleave(len(x))
            shift = 0.3 * step + shift.reshape(-1, 1, 1, 1)
            (hidden,) = network.block(rows, shift)
            hidden = hidden.unflatten(0, (network.k, -1)) + added(step)
            update = network.out(hidden.flatten(0, 1)).unflatten(0, (network.k, -1))
            x = x + 0.5 * (2 * update[-1] - update[0])
    return x


def vector_and_mask(editor, j=1, part=0):
    panda = editor.decomposition
    return panda.appearances_[j], unit_scaled(panda.parts_[part])


@pytest.mark.parametrize(
    ("calls", "factors"),
    [
        (None, [1, 1, 1, 1]),
        (2, [0, 0, 1, 0]),
        ([0, 3], [1, 0, 0, 1]),
        (range(2), [1, 1, 0, 0]),
        ({1: 2.0, 3: -0.5}, [0, 2, 0, -0.5]),
    ],
)
@pytest.mark.parametrize("calls_as", ["samples", "mean"])
def test_edits_at_calls(z, calls, factors, calls_as):
    editor = editor_of(z, calls_as=calls_as)
    vector, mask = vector_and_mask(editor)
    edited = editor.edit(z, Edit(1, 0, 0.7, "alpha", calls=calls))
    change = 0.7 * vector[:, None, None] * mask
    network = editor.extractor.generator
    expected = by_hand(network, z, lambda step: factors[step] * change)
    torch.testing.assert_close(edited, expected)


def test_calls_that_the_extractor_does_not_take(z):
    editor = editor_of(z, call=1)
    vector, mask = vector_and_mask(editor)
    change = 0.7 * vector[:, None, None] * mask
    network = editor.extractor.generator
    for calls, steps in ((None, {1}), ([0, 2], {0, 2})):
        edited = editor.edit(z, Edit(1, 0, 0.7, "alpha", calls=calls))
        expected = by_hand(network, z, lambda s: (s in steps) * change)  # noqa: B023
        torch.testing.assert_close(edited, expected)


def test_several_edits_at_calls_of_their_own(z):
    editor = editor_of(z, call=1)
    edits = [Edit(0, 0, 0.5, "alpha", calls=3), Edit(1, 1, 0.5, "alpha")]
    one, other = (
        0.5 * vector[:, None, None] * mask
        for vector, mask in (
            vector_and_mask(editor, 0, 0),
            vector_and_mask(editor, 1, 1),
        )
    )
    expected = by_hand(
        editor.extractor.generator, z, lambda s: (s == 3) * one + (s == 1) * other
    )
    torch.testing.assert_close(editor.edit(z, edits), expected)


def test_slices_of_appearances(z):
    editor = editor_of(z, call=[0, 2], calls_as="channels")
    vector, mask = vector_and_mask(editor)
    slices = dict(zip((0, 2), vector.reshape(2, 5, 1, 1), strict=True))
    network = editor.extractor.generator
    for calls in (None, 2):
        edited = editor.edit(z, Edit(1, 0, 0.7, "alpha", calls=calls))
        chosen = slices if calls is None else {2: slices[2]}
        expected = by_hand(network, z, lambda s: 0.7 * chosen.get(s, 0 * mask) * mask)  # noqa: B023
        torch.testing.assert_close(edited, expected)
    with pytest.raises(ValueError, match="at which nothing is known"):
        editor.edit(z, Edit(1, 0, 0.7, calls=1))
    with pytest.raises(ValueError, match="edits add vectors"):
        editor.edit(z, Edit(features=z.new_zeros(10, 4, 4), part=0))
    with pytest.raises(ValueError, match="Leave it False"):
        editor.edit(z, Edit(1, 0), refine=True)
    found = editor.find_directions(z[:2], 0, 2)
    assert found.shape == (2, 10)
    table = editor.rank_edits(z[:2], appearances=[0, 1], parts=[0])
    assert len(table["edit"]) == 8


@pytest.mark.parametrize(
    ("branches", "signs"), [("own", (0, 1)), ("both", (1, 1)), ("opposite", (-1, 1))]
)
def test_branches(z, branches, signs):
    editor = editor_of(z, k=2)
    vector, mask = vector_and_mask(editor)
    change = 0.3 * vector[:, None, None] * mask
    signs = torch.tensor(signs).reshape(2, 1, 1, 1, 1)
    edited = editor.edit(z, Edit(1, 0, 0.3, "alpha", branches=branches, calls=[1, 2]))
    expected = by_hand(
        editor.extractor.generator, z, lambda s: (s in (1, 2)) * signs * change
    )
    torch.testing.assert_close(edited, expected)


class TestOtherKinds:
    def test_latents(self, z):
        """The activations of each call at moved latents, at that call."""
        editor = editor_of(z)
        direction = torch.ones(3, 4, 4)
        extractor = editor.extractor
        there = extractor.split_calls(extractor.transform(z + 0.5 * direction))
        here = np.ones((4, 4))
        edited = editor.edit(z, Edit(latent=direction, part=here, strength=0.5))
        expected = extractor.generate(z, there.flatten(0, 1))
        torch.testing.assert_close(edited, expected)

    def test_transfers(self, z):
        editor = editor_of(z)
        here = np.ones((4, 4))
        donors = z.flip(0)
        moved = editor.transfer(z, donors, here, mix=True)
        extractor = editor.extractor
        expected = extractor.generate(z, extractor.transform(donors))
        torch.testing.assert_close(moved, expected)
        one = editor.transfer(z, donors[:1], here, mix=True)
        same = editor.transfer(z, donors[:1].expand_as(z), here, mix=True)
        torch.testing.assert_close(one, same)
        with pytest.raises(ValueError, match="use mix=True"):
            editor.transfer(z, donors, 0)

    def test_features_are_the_same_at_all_calls(self, z):
        editor = editor_of(z)
        target = torch.full((5, 4, 4), 0.3)
        edited = editor.edit(z, Edit(features=target, part=np.ones((4, 4))))
        expected = editor.extractor.generate(z, lambda maps: 0 * maps + 0.3)
        torch.testing.assert_close(edited, expected)


class TestEverywhere:
    def test_strength_0_changes_no_bit(self, z):
        editor = editor_of(z, k=2)
        plain = editor.extractor.generate(z)
        for edit in (
            Edit(1, 0, 0.0, calls=[0, 2], branches="opposite"),
            Edit(1, 0, 1.0, calls={1: 0.0}),
        ):
            assert torch.equal(editor.edit(z, edit), plain)

    def test_target_changes(self, z):
        editor = editor_of(z)
        edit = Edit(1, 0, 1.0, calls={2: 1.0, 3: 0.5})
        region = np.ones((4, 4))
        edited = editor.edit(z, edit, target_change=0.05, region=region)
        change = edited - editor.extractor.generate(z)
        found = change.square().mean(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(found, torch.full((5,), 0.05), rtol=0.02, atol=0)
        with pytest.raises(ValueError, match="refine=True needs one part"):
            editor.edit(z, edit, target_change=0.05, refine=True)

    def test_an_edited_generator(self, z):
        editor = editor_of(z, k=2)
        edit = Edit(1, 0, 0.7, "alpha", calls={0: 1.0, 2: 0.5}, branches="opposite")
        module = EditedGenerator(editor, edit, learn_strengths=True)
        torch.testing.assert_close(module(z), editor.edit(z, edit))
        module(z).mean().backward()
        assert float(module.strengths.grad.abs()) > 0

    def test_files(self, z, tmp_path):
        editor = editor_of(z, k=2)
        edit = Edit(1, 0, 0.7, calls={0: 1.0, 2: 0.5}, branches="both", name="x")
        save_edits(tmp_path / "edits", [edit], editor.decomposition)
        for decomposition in (editor.decomposition, None):
            (loaded,) = load_edits(tmp_path / "edits", decomposition)
            assert loaded.calls == {0: 1.0, 2: 0.5} and loaded.branches == "both"
            torch.testing.assert_close(editor.edit(z, loaded), editor.edit(z, edit))

    @pytest.mark.usefixtures("refining_briefly")
    def test_each_call_is_refined(self, z):
        editor = editor_of(z)
        edited = editor.edit(z, Edit(1, 0, 1.0, calls=2), refine=True)
        one = GeneratorFeatureExtractor(editor.extractor.generator, "block", call=2)
        alone = LocalEditor(one.fit(z), editor.decomposition)
        expected = alone.edit(z, Edit(1, 0, 1.0), refine=True)
        torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3)
        unrefined = alone.edit(z, Edit(1, 0, 1.0))
        assert (unrefined - expected).abs().max() > 1e-2

    def test_rankings_and_directions(self, z):
        editor = editor_of(z)
        table = editor.rank_edits(z, appearances=[0], parts=[0, 1])
        assert np.isfinite(table["distance"]).all()
        best = table["edit"][0]
        assert editor.edit(z, best).shape == z.shape
        assert editor.find_directions(z[:2], 0, 2).shape == (2, 5)

    def test_masks_need_one_map(self, z):
        with pytest.raises(ValueError, match="calls_as='mean'"):
            editor_of(z).mask(z, 0)
        mask = editor_of(z, calls_as="mean").mask(z, 0)
        assert mask.shape == (5, 4, 4)


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("calls", "words"),
        [
            ([], "got none"),
            ({}, "got none"),
            ([1, 1], "each call once"),
            (-1, "at least 0"),
            ("all", "calls must be"),
            ({1: "much"}, "factors"),
            ({1.5: 1.0}, "each of calls"),
        ],
    )
    def test_calls(self, calls, words):
        with pytest.raises((TypeError, ValueError), match=words):
            Edit(0, 0, calls=calls)

    def test_branches_without_guidance(self, z):
        with pytest.raises(ValueError, match="guidance is None"):
            editor_of(z).edit(z, Edit(0, 0, branches="both"))

    def test_branches(self):
        with pytest.raises(ValueError, match="branches"):
            Edit(0, 0, branches="all")

    def test_calls_out_of_range(self, z):
        with pytest.raises(ValueError, match="from 0 to 3"):
            editor_of(z).edit(z, Edit(0, 0, calls=4))
        with pytest.raises(ValueError, match="at which nothing is known"):
            editor = editor_of(z, call=1)
            editor.edit(z, Edit(latent=torch.ones(3, 4, 4), part=0, calls=2))


def test_edits_are_compared_by_calls():
    one, same = (Edit(0, 0, calls=calls) for calls in ([2, 0], {0: 1, 2: 1}))
    assert one == same and hash(one) == hash(same)
    assert one.calls == {0: 1.0, 2: 1.0}
    assert one != Edit(0, 0, calls={0: 1, 2: 2}) and one != Edit(0, 0)
