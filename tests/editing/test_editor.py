"""Local edits."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing import scale_part
from tests.editing.conftest import unit_scaled
from tests.nearness import (
    assert_near,
    assert_thresholded,
    decided,
)
from tests.networks import TinyGenerator


def added(editor, edits):
    """The sum of alpha a_j p_k'."""
    appearances = torch.as_tensor(editor.decomposition.appearances_)
    parts = torch.as_tensor(editor.decomposition.parts_)
    return sum(
        alpha * appearances[j][:, None, None] * unit_scaled(parts[k])
        for j, k, alpha in edits
    )


def test_an_edit_is_the_rest_of_the_network_run_from_there(editor, z, by_hand):
    image = editor.extractor.generate(z)
    edited = editor.edit(z, Edit(1, 2, 3.0, "alpha"))
    assert (edited - image).abs().max() > 0.01
    expected = by_hand(editor, z, added(editor, [(1, 2, 3.0)]))
    torch.testing.assert_close(edited, expected)
    edits = [(1, 2, 3.0), (0, 1, -2)]
    torch.testing.assert_close(
        editor.edit(z, [Edit(*edit, "alpha") for edit in edits]),
        by_hand(editor, z, added(editor, edits)),
    )


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_no_strength_is_the_same_image_bit_for_bit(z, noise):
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(TinyGenerator(noise=noise), "block1"),
        PartsAppearanceDecomposition(3, 4, max_iter=3, tol=0, random_state=0),
    ).fit(z)
    editor = LocalEditor.from_pipeline(pipeline)
    image = editor.extractor.generate(z)
    assert torch.equal(editor.edit(z, Edit(0, 0, 0.0)), image)
    assert torch.equal(editor.edit(z, [Edit(0, 1, 2.0), Edit(0, 1, -2.0)]), image)


def test_numpy_in_numpy_out(editor, z):
    result = editor.edit(z.numpy(), Edit(1, 2, 3.0))
    assert isinstance(result, np.ndarray)
    assert_near(result, editor.edit(z, Edit(1, 2, 3.0)))


def test_fitted_on_numpy_edits_tensors(pipeline, z):
    extractor = pipeline[0]
    # "adam" magnifies roundings least, so that two fits agree.
    panda = PartsAppearanceDecomposition(
        3, 4, solver="adam", max_iter=30, tol=0, random_state=0
    )
    twin = clone(panda).fit(extractor.transform(z))
    panda.fit(extractor.transform(z.numpy()))
    assert isinstance(panda.parts_, np.ndarray)
    torch.testing.assert_close(
        LocalEditor(extractor, panda).edit(z, Edit(1, 2, 3.0)),
        LocalEditor(extractor, twin).edit(z, Edit(1, 2, 3.0)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_an_edit_is_local(z):
    """Nothing changes beyond the part and the receptive field of later layers."""
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1").fit(z)
    part = torch.zeros(2, 4, 4)
    part[0, 0, 0] = part[1, 3, 3] = 1.0
    panda = PartsAppearanceDecomposition(
        init=(torch.eye(5), part), solver="pgd", max_iter=1, learning_rate=1e-30, tol=0
    ).fit(extractor.transform(z))
    change = LocalEditor(extractor, panda).edit(z, Edit(0, 0, 5.0))
    change = (change - extractor.generate(z)).abs().amax(dim=(0, 1))
    # One position is 2 x 2 pixels, and the convolution reaches one pixel further; but
    # fast convolutions (Winograd's) mix the rounding errors of neighbours.
    assert change[:3, :3].min() > 1e-3
    assert change[3:].max() < 1e-5 and change[:, 3:].max() < 1e-5


def test_channels_last_layers(z):
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(6, 20)
            self.tokens = torch.nn.Unflatten(1, (4, 5))

        def forward(self, z):
            return self.tokens(self.inner(z))

    network = Last()
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(network, "tokens"),
        PartsAppearanceDecomposition(2, 3, channel_axis=-1, max_iter=5, tol=0),
    ).fit(z)
    editor = LocalEditor.from_pipeline(pipeline)
    change = editor.edit(z, Edit(0, 1, 2.0, "alpha")) - editor.extractor.generate(z)
    part = pipeline[-1].parts_[1]
    part = (part - part.min()) / (part.max() - part.min())
    expected = 2 * part[:, None] * pipeline[-1].appearances_[0]
    torch.testing.assert_close(change, expected.expand(9, -1, -1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments, kind, match",
    [
        ((4, 0, 1.0), ValueError, "appearance must be from 0 to 3, got 4"),
        ((-1, 0, 1.0), ValueError, "appearance must be from 0 to 3"),
        ((0, 3, 1.0), ValueError, "part must be from 0 to 2, got 3"),
        ((0.5, 0, 1.0), TypeError, "appearance must be an int"),
        ((True, 0, 1.0), TypeError, "appearance must be an int"),
        ((0, 0, np.nan), ValueError, "strength must be a finite number"),
        ((0, 0, "3"), TypeError, "strength must be a number"),
    ],
)
def test_bad_edits(editor, z, arguments, kind, match):
    with pytest.raises(kind, match=match):
        editor.edit(z, Edit(*arguments))


def test_edits_are_shown_by_what_was_chosen():
    assert repr(Edit(variation=0, part=3)) == "Edit(part=3, strength=1.0, variation=0)"
    edit = Edit(np.ones(3), [1, 2], -2.0, "alpha", name="smile")
    assert repr(edit) == (
        "Edit(appearance=<array of shape (3,)>, part=(1, 2), strength=-2.0, "
        "unit='alpha', name='smile')"
    )


def test_things_that_are_not_edits(editor, z):
    with pytest.raises(TypeError, match=r"each of edits must be an Edit, got .*tuple"):
        editor.edit(z, [(0, 0, 1.0)])


def test_a_constant_part_is_an_error(pipeline, z):
    start = torch.eye(5), torch.ones(1, 4, 4)
    panda = PartsAppearanceDecomposition(
        init=start, solver="pgd", max_iter=1, learning_rate=1e-30, tol=0
    ).fit(pipeline[0].transform(z))
    with pytest.raises(ValueError, match="Part 0 is constant"):
        LocalEditor(pipeline[0], panda).edit(z, Edit(0, 0, 1.0))


def test_what_an_editor_is_made_of(pipeline, z):
    extractor, panda = pipeline[0], pipeline[1]
    with pytest.raises(TypeError, match="must be a GeneratorFeatureExtractor"):
        LocalEditor(panda, extractor)
    with pytest.raises(NotFittedError):
        LocalEditor(extractor, PartsAppearanceDecomposition())
    other = GeneratorFeatureExtractor(extractor.generator, "block2").fit(z)
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\).* fitted on \(5, 4, 4\)"):
        LocalEditor(other, panda)
    with pytest.raises(TypeError, match="pipeline must be a Pipeline"):
        LocalEditor.from_pipeline(extractor)
    between = make_pipeline(extractor, FunctionTransformer(), panda)
    with pytest.raises(ValueError, match="directly after"):
        LocalEditor.from_pipeline(between)


def rms(mask, change):
    """Root mean square of a change (n, c, h, w) in a mask ([n,] h, w), slowly."""
    mask = np.broadcast_to(np.asarray(mask, float), change.shape[:1] + change.shape[2:])
    squares = (mask[:, None] * change) ** 2
    sizes = change.shape[1] * (mask**2).sum(axis=(1, 2))
    return np.sqrt(squares.sum(axis=(1, 2, 3)) / sizes)


class TestTargets:
    def test_each_image_changes_by_the_target(self, editor, z):
        mask = np.zeros((8, 8))
        mask[2:6, 1:5] = 1
        plain = editor.extractor.generate(z)
        for target in (0.01, 0.3):
            edited = editor.edit(z, Edit(1, mask, 1.0), target_change=target)
            change = (edited - plain).numpy()
            np.testing.assert_allclose(rms(mask, change), target, rtol=0.011)

    @pytest.mark.usefixtures("refining_briefly")
    @pytest.mark.parametrize("refine", [False, True])
    def test_strengths_found_are_those_of_the_edit(self, editor, z, refine):
        edits = [Edit(1, 2, -2.0), Edit(0, [0, 1], 0.5, "std")]
        factors = editor.find_strengths(z, edits, 0.1, refine=refine)
        assert factors.shape == (9,) and bool((factors > 0).all())
        scaled = [Edit(1, 2, -2 * factors), Edit(0, [0, 1], 0.5 * factors, "std")]
        torch.testing.assert_close(
            editor.edit(z, scaled, refine=refine),
            editor.edit(z, edits, refine=refine, target_change=0.1),
            atol=1e-3 if refine else 1e-5,  # of refined parts
            rtol=1e-4,
        )

    def test_the_change_may_be_measured_elsewhere(self, editor, z):
        region = torch.zeros(9, 8, 8)
        region[:, 4:, 4:] = 1
        region[0] = 1
        edited = editor.edit(z, Edit(1, 2), target_change=0.05, region=region)
        change = (edited - editor.extractor.generate(z)).numpy()
        np.testing.assert_allclose(rms(region, change), 0.05, rtol=0.011)

    def test_out_of_reach(self, z):
        class Saturating(TinyGenerator):
            def forward(self, z):
                return super().forward(z).tanh()

        pipeline = make_pipeline(
            GeneratorFeatureExtractor(Saturating(), "block1"),
            PartsAppearanceDecomposition(3, 4, max_iter=5, tol=0, random_state=0),
        ).fit(z)
        editor = LocalEditor.from_pipeline(pipeline)
        with pytest.warns(ConvergenceWarning, match="9 of 9 images do not reach"):
            factors = editor.find_strengths(z, Edit(0, 0), 5.0)
        assert bool(factors.isfinite().all())

    def test_numpy_in_numpy_out(self, editor, z):
        factors = editor.find_strengths(z.numpy(), Edit(1, 2), 0.1)
        assert isinstance(factors, np.ndarray)
        images = editor.edit(z.numpy(), Edit(1, 2), target_change=0.1)
        assert isinstance(images, np.ndarray)

    @pytest.mark.parametrize(
        "edits, options, kind, match",
        [
            (Edit(0, 0), {"target_change": 0}, ValueError, "above 0, got 0"),
            (Edit(0, 0), {"target_change": np.nan}, ValueError, "finite"),
            (Edit(0, 0), {"target_change": "1"}, TypeError, "must be a number"),
            (Edit(0, 0, 0.0), {"target_change": 1}, ValueError, "none of them may"),
            ([], {"target_change": 1}, ValueError, "at least one Edit"),
            (Edit(0, 0), {"region": np.ones((8, 8))}, ValueError, "target_change"),
            (
                Edit(0, 0),
                {"target_change": 1, "region": np.ones((4, 4))},
                ValueError,
                r"images' shape \(8, 8\)",
            ),
        ],
    )
    def test_bad_targets(self, editor, z, edits, options, kind, match):
        with pytest.raises(kind, match=match):
            editor.edit(z, edits, **options)


class TestRefinedEdits:
    @pytest.mark.usefixtures("refining_briefly")
    def test_refined_parts_are_used(self, editor, z, by_hand):
        panda, features = editor.decomposition, editor.extractor.transform(z)
        parts = panda.refine(features)[:, [0, 2]].sum(dim=1)
        scaled = torch.stack([unit_scaled(part) for part in parts])
        change = 2.0 * panda.appearances_[1][:, None, None] * scaled[:, None]
        mask = torch.zeros(4, 4)
        mask[1, 2] = 0.5
        change += panda.appearances_[0][:, None, None] * mask
        edits = [Edit(1, [0, 2], 2.0, "alpha"), Edit(0, mask, 1.0, "alpha")]
        edited = editor.edit(z, edits, refine=True)
        expected = by_hand(editor, z, change)
        torch.testing.assert_close(edited, expected, atol=1e-3, rtol=1e-4)
        unrefined = editor.edit(z, edits)
        assert (unrefined - expected).abs().max() > 0.05

    def test_nothing_to_refine(self, editor, z):
        with pytest.raises(ValueError, match="no edit is at one"):
            editor.edit(z, Edit(0, torch.eye(4)), refine=True)

    def test_no_strength_is_the_same_image(self, editor, z):
        plain = editor.extractor.generate(z)
        assert torch.equal(editor.edit(z, Edit(0, 0, 0.0), refine=True), plain)

    def test_a_part_that_vanishes(self, editor, z, monkeypatch):
        """The sample is left as it is, with a warning."""
        monkeypatch.setattr(
            "panda_sklearn.editing._changes.refine_parts",
            lambda maps, factors, max_iter: torch.zeros(len(maps), 3, 16),
        )
        with pytest.warns(UserWarning, match="constant in 4 of 4 samples"):
            edited = editor.edit(z[:4], Edit(0, 1, 3.0), refine=True)
        torch.testing.assert_close(edited, editor.extractor.generate(z[:4]))


class TestRemoval:
    def test_the_mask_is_the_thresholded_saliency_at_image_size(self, editor, z):
        features = editor.extractor.transform(z)
        panda = editor.decomposition
        mean, smooth = panda.saliency_mean_[1], panda.saliency(features, size=8)[:, 1]
        blocks = panda.saliency(features)[:, 1].repeat_interleave(2, 1)
        blocks = blocks.repeat_interleave(2, 2)
        assert_thresholded(editor.mask(z, 1), smooth, mean)
        assert_thresholded(editor.mask(z, 1, threshold=0.1), smooth, 0.1)
        assert_thresholded(editor.mask(z, 1, upsample_first=False), blocks, mean)
        assert isinstance(editor.mask(z.numpy(), 1), np.ndarray)

    def test_removed_pixels(self, editor, z):
        panda, plain = editor.decomposition, editor.extractor.generate(z)
        saliency = panda.saliency(editor.extractor.transform(z), size=8)[:, 0]
        clear = torch.from_numpy(decided(saliency, panda.saliency_mean_[0]))
        mask = saliency >= panda.saliency_mean_[0]
        assert 0 < mask.float().mean() < 1
        for fill in (0.5, [0.1, 0.2, 0.3]):
            removed = editor.remove_pixels(z, 0, fill=fill)
            color = torch.tensor(fill).expand(3)[:, None]
            for n, image in enumerate(removed):
                inside, outside = mask[n] & clear[n], ~mask[n] & clear[n]
                torch.testing.assert_close(image[:, outside], plain[n][:, outside])
                found = image[:, inside]
                torch.testing.assert_close(found, color.expand_as(found))

    def test_removal_adds_the_appearance_where_it_is_not(self, editor, z):
        features = editor.extractor.transform(z)
        mask = ~editor.decomposition.localize(features, 1)
        torch.testing.assert_close(
            editor.remove(z, 1), editor.edit(z, Edit(1, mask, 3.0, "std"))
        )
        torch.testing.assert_close(
            editor.remove(z, 1, part=2, strength=5.0, unit="alpha"),
            editor.edit(z, Edit(1, 2, 5.0, "alpha")),
        )
        everywhere = editor.remove(z, 1, threshold=-1e9)
        torch.testing.assert_close(everywhere, editor.extractor.generate(z))

    @pytest.mark.usefixtures("refining_briefly")
    def test_latents_with_names_of_columns(self, pipeline, z):
        """The names are checked once, without a warning that they are missing."""
        frame = pd.DataFrame(z.numpy(), columns=[f"z{k}" for k in range(6)])
        # "adam" magnifies roundings least, so that two fits agree.
        pipeline = clone(pipeline).set_params(
            partsappearancedecomposition__solver="adam"
        )
        editor, plain = (
            LocalEditor(extractor, panda)
            for extractor, panda in (
                clone(pipeline).fit(frame),
                clone(pipeline).fit(z),
            )
        )
        for images, expected in (
            (editor.remove(frame, 1), plain.remove(z, 1)),
            (editor.remove_pixels(frame, 1), plain.remove_pixels(z, 1)),
            (editor.mask(frame, 1), plain.mask(z, 1)),
            (
                editor.edit(frame, Edit(1, 2), refine=True, target_change=0.1),
                plain.edit(z, Edit(1, 2), refine=True, target_change=0.1),
            ),
        ):
            # Refinement magnifies rounding errors of single precision, which also
            # decide on which side of the threshold near positions are.
            close = np.isclose(images, expected, atol=1e-3)
            assert close.mean() > 0.95

    @pytest.mark.parametrize("fill", [[1, 2], np.nan, np.ones((3, 1))])
    def test_bad_fill(self, editor, z, fill):
        with pytest.raises(ValueError, match="fill must be a finite number"):
            editor.remove_pixels(z, 0, fill=fill)

    def test_bad_removals(self, editor, z):
        with pytest.raises(ValueError, match="give its index"):
            editor.remove(z, torch.ones(5))
        with pytest.raises(ValueError, match="give its index"):
            editor.mask(z, np.ones(5))
        with pytest.raises(ValueError, match="from 0 to 3, got 4"):
            editor.mask(z, 4)
        with pytest.raises(ValueError, match="threshold must be"):
            editor.mask(z, 0, threshold="median")


class TestMasks:
    def test_layer_and_image_sizes(self, editor, z, by_hand):
        vector = torch.randn(5, generator=torch.Generator().manual_seed(1))
        drawn = torch.zeros(8, 8)
        drawn[:2, 2:5] = 1  # a position is 2 x 2 pixels
        mask = torch.zeros(4, 4)
        mask[0, 1], mask[0, 2] = 1, 0.5
        expected = by_hand(editor, z, 4.0 * vector[:, None, None] * mask)
        for part in (mask, drawn, drawn.bool(), drawn.numpy(), drawn.to(torch.uint8)):
            edited = editor.edit(z, Edit(vector.numpy(), part, 4.0, "alpha"))
            torch.testing.assert_close(edited, expected)

    def test_one_for_each_sample(self, editor, z, by_hand):
        masks = torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(2))
        strengths = torch.linspace(-2, 2, 9)
        vector = editor.decomposition.appearances_[3]
        change = strengths[:, None, None] * masks
        expected = by_hand(editor, z, vector[:, None, None] * change[:, None])
        edited = editor.edit(z, Edit(3, masks, strengths, "alpha"))
        torch.testing.assert_close(edited, expected)
        big = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
        edited = editor.edit(z, Edit(3, big, strengths, "alpha"))
        torch.testing.assert_close(edited, expected)

    def test_a_mask_of_ones_is_everywhere(self, editor, z, by_hand):
        vector = editor.decomposition.appearances_[0][:, None, None]
        edited = editor.edit(z, Edit(0, np.ones((4, 4)), unit="alpha"))
        torch.testing.assert_close(edited, by_hand(editor, z, vector))

    def test_several_parts_are_summed_then_scaled(self, editor, z, by_hand):
        panda = editor.decomposition
        part = unit_scaled(panda.parts_[0] + panda.parts_[2])
        expected = by_hand(editor, z, panda.appearances_[1][:, None, None] * part)
        for several in ([0, 2], (2, 0), np.array([0, 2]), range(0, 3, 2)):
            edited = editor.edit(z, Edit(1, several, unit="alpha"))
            torch.testing.assert_close(edited, expected)
        assert Edit(1, [0, 2]) == Edit(1, (0, 2)) != Edit(1, (0, 1))
        assert hash(Edit(1, [0, 2])) == hash(Edit(1, (0, 2)))

    @pytest.mark.parametrize(
        "part, match",
        [
            (np.full((4, 4), 2.0), "values from 2 to 2.*scale_part"),
            (-np.eye(4), "values from -1 to"),
            (np.zeros((4, 4)), "mask of zeros"),
            (np.full((4, 4), np.nan), "contains NaN"),
            (np.ones((5, 4)), r"spatial shape, \(4, 4\), or of the images', \(8, 8\)"),
            (np.ones((3, 8, 8)), "for 9, got one for each of 3"),
            (np.ones((1, 9, 4, 4)), "A mask must be of"),
            ([], "one part at least|empty mask"),
            ([0, 0], "each part once"),
            ([0, 3], "part must be from 0 to 2, got 3"),
            ([[1, 0], [1]], "part must be an int, a sequence of ints, or a mask"),
        ],
    )
    def test_bad_parts(self, editor, z, part, match):
        with pytest.raises(ValueError, match=match):
            editor.edit(z, Edit(0, part))

    def test_a_learnt_part_is_refused_as_a_mask(self, editor, z):
        """As a mask it would be weaker than by its index."""
        panda = editor.decomposition
        part = panda.parts_[1]
        assert part.max() < 1
        for same in (part, part.double().numpy()):
            with pytest.raises(ValueError, match=r"parts_\[1\].*Give its index, 1"):
                editor.edit(z, Edit(0, same))
        torch.testing.assert_close(
            editor.edit(z, Edit(0, scale_part(part))), editor.edit(z, Edit(0, 1))
        )

    @pytest.mark.parametrize("part", ["mouth", None, 1.5, {1}])
    def test_parts_of_unknown_kinds(self, editor, z, part):
        with pytest.raises(TypeError, match="part must be"):
            editor.edit(z, Edit(0, part))

    @pytest.mark.parametrize(
        "appearance, match",
        [
            (np.ones(4), "vector of the 5 channels, got one of shape"),
            (np.ones((5, 1)), "vector of shape"),
            ([1.0, np.inf, 0, 0, 0], "contains infinity"),
        ],
    )
    def test_bad_vectors(self, editor, z, appearance, match):
        with pytest.raises(ValueError, match=match):
            editor.edit(z, Edit(appearance, 0))

    def test_bad_strengths(self, editor, z):
        for strength in (np.full(9, np.nan), torch.full((9,), np.inf)):
            with pytest.raises(ValueError, match="strength contains"):
                Edit(0, 0, strength)
        with pytest.raises(ValueError, match="for 9, got one for each of 3"):
            editor.edit(z, Edit(0, 0, np.ones(3)))
        with pytest.raises(ValueError, match=r"shape \(n_samples,\)"):
            Edit(0, 0, np.ones((3, 3)))
        with pytest.raises(ValueError, match="unit must be 'std' or 'alpha'"):
            Edit(0, 0, 1.0, "sigma")


class TestStandardDeviations:
    def test_of_the_saliency_in_the_training_data(self, editor, z):
        panda = editor.decomposition
        saliency = panda.saliency(editor.extractor.transform(z))
        std = float(saliency[:, 2].std(correction=0))
        torch.testing.assert_close(
            editor.edit(z, Edit(2, 1, -1.5, "std")),
            editor.edit(z, Edit(2, 1, -1.5 * std, "alpha")),
        )
        strengths = torch.linspace(0, 2, 9)
        torch.testing.assert_close(
            editor.edit(z, Edit(2, 1, strengths, "std")),
            editor.edit(z, Edit(2, 1, strengths * std, "alpha")),
        )

    def test_of_combinations_of_appearances(self, editor, z):
        panda = editor.decomposition
        vector = panda.appearances_[0] - 2 * panda.appearances_[3]
        features = editor.extractor.transform(z)
        std = float(torch.einsum("c,nchw->nhw", vector, features).std(correction=0))
        torch.testing.assert_close(
            editor.edit(z, Edit(vector, 1, 1.5, "std")),
            editor.edit(z, Edit(vector, 1, 1.5 * std, "alpha")),
            rtol=1e-4,
            atol=1e-4,
        )

    def test_it_is_not_known_of_other_vectors(self, editor, z):
        appearances = editor.decomposition.appearances_.double()
        other = torch.linalg.svd(appearances).Vh[-1]  # orthogonal to all four
        with pytest.raises(ValueError, match="100% of this vector lies outside"):
            editor.edit(z, Edit(other, 1, 1.5, "std"))
