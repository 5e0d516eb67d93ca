"""Displays: what they compute and what they leave on the axes."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.inspection import (
    EditDisplay,
    EditGalleryDisplay,
    EditMatrixDisplay,
    PartsDisplay,
    RefinementDisplay,
    SaliencyDisplay,
    StrengthsDisplay,
    VariationsDisplay,
)
from panda_sklearn.inspection._images import as_array
from tests.nearness import decided
from tests.networks import TinyGenerator


@pytest.fixture(scope="module")
def z():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline(z):
    return make_pipeline(
        GeneratorFeatureExtractor(TinyGenerator(), "block1"),
        PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=0),
    ).fit(z)


def drawn(ax):
    return np.asarray(ax.get_images()[0].get_array())


def test_parts_alone(pipeline):
    display = PartsDisplay.from_estimator(pipeline[-1])
    assert display.axes_.shape == (1, 3)
    for part, ax in zip(pipeline[-1].parts_.numpy(), display.axes_[0], strict=True):
        expected = (part - part.min()) / (part.max() - part.min())
        np.testing.assert_allclose(drawn(ax), expected, atol=1e-6)


def test_parts_over_images(pipeline, z):
    images = pipeline[0].generate(z[:2])
    display = PartsDisplay.from_estimator(pipeline[-1], images)
    assert display.axes_.shape == (2, 4)
    assert [ax.get_title() for ax in display.axes_[0]] == [
        "image",
        "part 0",
        "part 1",
        "part 2",
    ]
    picture = drawn(display.axes_[1, 0])
    np.testing.assert_allclose(
        picture, ((images[1] + 1) / 2).clamp(0, 1).permute(1, 2, 0), atol=1e-6
    )
    over = drawn(display.axes_[1, 2])
    assert over.shape == (8, 8, 3) and over.min() >= 0 and over.max() <= 1
    part = display.parts[1]
    peak, bottom = (
        np.unravel_index(f(part), part.shape) for f in (np.argmax, np.argmin)
    )
    # Colours where the part is, grey where it is not (corners are not interpolated).
    spread = np.ptp(over, axis=-1)[::7, ::7]
    corners = part[::3, ::3]
    assert spread[corners < 0.01].max(initial=0) < 0.05
    assert peak != bottom


def test_saliency(pipeline, z):
    extractor, panda = pipeline
    X, images = extractor.transform(z), extractor.generate(z)
    display = SaliencyDisplay.from_estimator(panda, X, images, appearances=[2, 0])
    assert display.axes_.shape == (3, 5)
    np.testing.assert_allclose(
        display.saliency, panda.saliency(X).numpy()[:, [2, 0]], atol=1e-6
    )
    assert display.axes_[1, 0].get_ylabel() == "appearance 2"
    low, high = display.axes_[1, 0].get_images()[0].get_clim()
    assert (low + high) / 2 == pytest.approx(float(panda.saliency_mean_[2]))
    assert SaliencyDisplay.from_estimator(panda, X).axes_.shape == (4, 5)
    two = PartsAppearanceDecomposition(2, 2, max_iter=3, tol=0).fit(X)
    assert SaliencyDisplay.from_estimator(two, X).axes_.shape == (2, 5)


def test_edits(pipeline, z):
    editor = LocalEditor.from_pipeline(pipeline)
    display = EditDisplay.from_editor(editor, z, Edit(1, 2, 3.0))
    assert display.axes_.shape == (3, 5)
    assert display.change.shape == (5, 8, 8) and display.change.max() > 0
    difference = display.after[0] - display.before[0]
    np.testing.assert_allclose(
        drawn(display.axes_[2, 0]), np.sqrt((difference**2).mean(axis=-1))
    )
    unedited = EditDisplay.from_editor(editor, z, Edit(1, 2, 0.0))
    assert unedited.change.max() == 0


def test_given_axes_are_drawn_on(pipeline):
    figure, axes = plt.subplots(1, 3)
    display = PartsDisplay.from_estimator(pipeline[-1], axes=axes)
    assert display.figure_ is figure
    with pytest.raises(ValueError, match="1 x 3 axes of matplotlib, got 2"):
        display.plot(axes=axes[:2])


def test_what_cannot_be_drawn(pipeline, z):
    panda = pipeline[-1]
    with pytest.raises(ValueError, match=r"\(n_samples, 1 or 3, height, width\)"):
        PartsDisplay.from_estimator(panda, -torch.ones(2, 4, 8, 8))
    eight_bit = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"pass value_range=\(0, 255\)"):
        PartsDisplay.from_estimator(panda, eight_bit)
    with pytest.raises(TypeError, match="or a Pipeline with one"):
        PartsDisplay.from_estimator(make_pipeline(pipeline[0]))
    PartsDisplay.from_estimator(panda, eight_bit, value_range=(0, 255))
    X = pipeline[0].transform(z)
    with pytest.raises(ValueError, match="expected 5, got 2"):
        SaliencyDisplay.from_estimator(panda, X, -torch.ones(2, 3, 8, 8))
    with pytest.raises(ValueError, match="appearances must be from 0 to 3"):
        SaliencyDisplay.from_estimator(panda, X, appearances=[4])


class TestValuesOfBlackAndWhite:
    """``value_range`` is found by the images, if it is not given."""

    images = np.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)

    @pytest.fixture
    def editor(self, pipeline):
        """An editor whose images are in [0, 1]."""
        network = TinyGenerator()
        forward = OfUnitImages()
        extractor = GeneratorFeatureExtractor(network, "block1", forward=forward)
        return LocalEditor(extractor.fit(torch.zeros(1, 6)), pipeline[-1])

    def test_from_0_to_1(self, pipeline):
        with pytest.warns(UserWarning, match="Give value_range"):
            display = PartsDisplay.from_estimator(pipeline[-1], self.images)
        np.testing.assert_allclose(display.pictures, np.moveaxis(self.images, 1, -1))

    def test_what_is_given_counts(self, pipeline):
        display = PartsDisplay.from_estimator(
            pipeline[-1], self.images, value_range=(-1, 1)
        )
        assert display.pictures.min() == 0.5

    def test_others_are_from_minus_1(self, pipeline):
        for images in (2 * self.images - 1, self.images - 0.01, self.images + 0.01):
            display = PartsDisplay.from_estimator(pipeline[-1], images)
            expected = np.moveaxis((images + 1) / 2, 1, -1).clip(0, 1)
            np.testing.assert_allclose(display.pictures, expected)

    @pytest.mark.parametrize("target_change", [None, 0.05])
    def test_of_edits_it_is_that_of_the_unedited(self, editor, z, target_change):
        edit = Edit(1, 2)
        with pytest.warns(UserWarning, match="Give value_range"):
            display = EditDisplay.from_editor(
                editor, z[:2], edit, target_change=target_change
            )
        images = editor.extractor.generate(z[:2])
        how = {"target_change": target_change, "value_range": (0, 1)}
        edited = editor.edit(z[:2], edit, **(how if target_change else {}))
        for found, expected in ((display.before, images), (display.after, edited)):
            np.testing.assert_allclose(
                found, as_array(expected).clip(0, 1).transpose(0, 2, 3, 1), atol=1e-6
            )
        with pytest.warns(UserWarning, match="Give value_range"):
            strip = StrengthsDisplay.from_editor(editor, z[:2], edit, [0])
        np.testing.assert_allclose(strip.pictures[:, 0], display.before, atol=1e-6)


class OfUnitImages:
    """Calls a network so that its images are in [0, 1]."""

    def __call__(self, generator, latents):
        return torch.sigmoid(generator(latents))


def fitted(*spatial):
    """A decomposition of maps of this size, and the maps."""
    X = np.random.default_rng(0).standard_normal((4, 5, *spatial))
    panda = PartsAppearanceDecomposition(3, 3, max_iter=5, tol=0, random_state=0)
    return panda.fit(X), X


class TestOtherNumbersOfAxes:
    def test_curves_of_parts(self):
        panda, _ = fitted(9)
        display = PartsDisplay.from_estimator(panda)
        assert display.axes_.shape == (3, 1) and display.parts.shape == (3, 9)
        for ax, part in zip(display.axes_[:, 0], display.parts, strict=True):
            assert part.min() == 0 and part.max() == 1
            np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), part)

    def test_sections_of_parts(self):
        panda, _ = fitted(3, 4, 5)
        display = PartsDisplay.from_estimator(panda)
        assert display.axes_.shape == (3, 3)
        part = display.parts[1]
        i, j, k = np.unravel_index(part.argmax(), part.shape)
        for ax, expected, at in zip(
            display.axes_[:, 1],
            (part[i], part[:, j], part[..., k]),
            (i, j, k),
            strict=True,
        ):
            np.testing.assert_array_equal(drawn(ax), expected)
            assert ax.get_xlabel() == f"at {at}"

    def test_curves_of_saliency(self):
        panda, X = fitted(9)
        display = SaliencyDisplay.from_estimator(panda, X, appearances=[2, 0])
        assert display.axes_.shape == (2, 4)
        curve, mean = (line.get_ydata() for line in display.axes_[1, 3].get_lines())
        np.testing.assert_allclose(curve, panda.saliency(X)[3, 0])
        np.testing.assert_allclose(mean, panda.saliency_mean_[0])
        limits = {ax.get_ylim() for ax in display.axes_[0]}
        assert len(limits) == 1  # of one appearance all are comparable

    def test_sections_of_saliency(self):
        panda, X = fitted(3, 4, 5)
        display = SaliencyDisplay.from_estimator(panda, X, appearances=[2, 0])
        assert display.axes_.shape == (6, 4)
        volume = panda.saliency(X)[3, 0]
        i, j, _ = np.unravel_index(volume.argmax(), volume.shape)
        np.testing.assert_allclose(drawn(display.axes_[3, 3]), volume[i])
        np.testing.assert_allclose(drawn(display.axes_[4, 3]), volume[:, j])

    @pytest.mark.parametrize("spatial", [(9,), (3, 4, 5)])
    def test_images_need_two(self, spatial):
        panda, X = fitted(*spatial)
        images = -np.ones((4, 3, 8, 8))
        for call in (
            lambda: PartsDisplay.from_estimator(panda, images),
            lambda: SaliencyDisplay.from_estimator(panda, X, images),
            lambda: RefinementDisplay.from_estimator(panda, X, images),
        ):
            with pytest.raises(ValueError, match="two spatial axes"):
                call()


@pytest.mark.usefixtures("refining_briefly")
def test_pipelines_are_given_what_they_take(pipeline, z):
    extractor, panda = pipeline
    X, images = extractor.transform(z), extractor.generate(z)
    parts = [PartsDisplay.from_estimator(each, images) for each in (pipeline, panda)]
    np.testing.assert_array_equal(parts[0].parts, parts[1].parts)
    for display in (SaliencyDisplay, RefinementDisplay):
        ours = display.from_estimator(pipeline, z, images)
        theirs = display.from_estimator(panda, X, images)
        for name, array in vars(theirs).items():
            if isinstance(array, np.ndarray) and array.dtype != object:
                np.testing.assert_allclose(getattr(ours, name), array, atol=1e-6)
    without = make_pipeline("passthrough", panda)
    display = SaliencyDisplay.from_estimator(without, X)
    np.testing.assert_allclose(display.saliency, panda.saliency(X)[:, :4], atol=1e-6)


def picture_of(images, n=0):
    return ((images[n] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def test_saliency_with_masks(pipeline, z):
    extractor, panda = pipeline
    X, images = extractor.transform(z), extractor.generate(z)
    display = SaliencyDisplay.from_estimator(
        panda, X, images, appearances=[2, 0], masks=True
    )
    assert display.axes_.shape == (5, 5)
    saliency, mean = panda.saliency(X, size=8)[3, 2].numpy(), panda.saliency_mean_[2]
    mask, clear = saliency >= float(mean), decided(saliency, mean)
    shown, inside, outside = drawn(display.axes_[2, 3]), mask & clear, ~mask & clear
    np.testing.assert_allclose(shown[inside], picture_of(images, 3)[inside], atol=1e-5)
    assert 0 < mask.mean() < 1 and (shown[outside] == 1).all()
    with pytest.raises(ValueError, match="needs images"):
        SaliencyDisplay.from_estimator(panda, X, masks=True)


@pytest.mark.usefixtures("refining_briefly")
def test_refinement(pipeline, z):
    extractor, panda = pipeline
    X, images = extractor.transform(z), extractor.generate(z)
    display = RefinementDisplay.from_estimator(panda, X, images, parts=[0, 2])
    assert display.axes_.shape == (3, 5)
    before = panda.reconstruction_errors(X)
    after = panda.reconstruction_errors(X, panda.refine(X))
    np.testing.assert_allclose(display.falls, 1 - after / before, atol=1e-4)
    assert (display.falls > 0).all()
    labels = [ax.get_xlabel() for ax in display.axes_[2]]
    assert labels == [f"error {-fall:+.0%}" for fall in display.falls]
    assert display.refined.shape == (5, 2, 4, 4)
    assert not np.allclose(drawn(display.axes_[1, 0]), drawn(display.axes_[2, 0]))
    texts = [text.get_text() for text in display.figure_.legends[0].get_texts()]
    assert texts == ["part 0", "part 2"]
    with pytest.raises(ValueError, match="expected 5, got 2"):
        RefinementDisplay.from_estimator(panda, X, images[:2])
    with pytest.raises(ValueError, match="parts must be from 0 to 2"):
        RefinementDisplay.from_estimator(panda, X, images, parts=[3])


def test_more_parts_than_named_colors(z):
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1").fit(z)
    X = extractor.transform(z)
    panda = PartsAppearanceDecomposition(12, 4, max_iter=3, tol=0).fit(X)
    display = RefinementDisplay.from_estimator(panda, X, extractor.generate(z))
    colors = {
        patch.get_facecolor() for patch in display.figure_.legends[0].get_patches()
    }
    assert len(colors) == 12


def test_strips_of_strengths(pipeline, z):
    editor = LocalEditor.from_pipeline(pipeline)
    edit = Edit(1, 2, 1.0, "std")
    display = StrengthsDisplay.from_editor(editor, z[:2], edit, [-2, 0, 1.5])
    assert display.axes_.shape == (2, 3)
    titles = [ax.get_title() for ax in display.axes_[0]]
    assert titles == ["-2 std", "0", "+1.5 std"]
    edited = editor.edit(z[:2], Edit(1, 2, 1.5, "std"))
    # Strengths and pairs are tried in batches of other sizes, which round otherwise.
    np.testing.assert_allclose(
        drawn(display.axes_[1, 2]), picture_of(edited, 1), atol=1e-5
    )
    plain = editor.extractor.generate(z[:2])
    np.testing.assert_allclose(drawn(display.axes_[0, 1]), picture_of(plain), atol=1e-5)
    with pytest.raises(ValueError, match="one number at least"):
        StrengthsDisplay.from_editor(editor, z, edit, [])
    with pytest.raises(TypeError, match="edit must be an Edit"):
        StrengthsDisplay.from_editor(editor, z, [edit], [1.0])


def test_matrix_of_pairs(pipeline, z):
    editor = LocalEditor.from_pipeline(pipeline)
    display = EditMatrixDisplay.from_editor(
        editor, z[:1], appearances=[3, 1], parts=range(3), strength=2.0
    )
    assert display.axes_.shape == (2, 4)
    edited = editor.edit(z[:1], Edit(1, 2, 2.0, "std"))
    np.testing.assert_allclose(
        drawn(display.axes_[1, 3]), picture_of(edited), atol=1e-5
    )
    assert display.axes_[0, 0].get_ylabel() == "appearance 3"
    assert display.axes_[0, 3].get_title() == "part 2"
    with pytest.raises(ValueError, match=r"Pass latents\[:1\]"):
        EditMatrixDisplay.from_editor(editor, z, appearances=[0], parts=[0])
    with pytest.raises(ValueError, match="appearances is empty"):
        EditMatrixDisplay.from_editor(editor, z[:1], appearances=[], parts=[0])


@pytest.mark.parametrize("given", [None, "others"])
def test_variations_in_both_directions(pipeline, z, given):
    editor = LocalEditor.from_pipeline(pipeline)
    display = VariationsDisplay.from_editor(
        editor, z[:1], parts=[2, 0], variations=[1, 0], strength=1.5, given=given
    )
    assert display.axes_.shape == (2, 5)
    for column, strength in ((3, -1.5), (4, 1.5)):
        edit = Edit(variation=0, part=2, strength=strength, given=given)
        np.testing.assert_allclose(
            drawn(display.axes_[0, column]),
            picture_of(editor.edit(z[:1], edit)),
            atol=1e-5,
        )
    assert display.axes_[1, 0].get_ylabel() == "part 0"
    assert display.axes_[0, 2].get_title() == "1: +1.5 std"
    everything = VariationsDisplay.from_editor(editor, z[:1])
    assert everything.axes_.shape == (3, 7)
    with pytest.raises(ValueError, match=r"Pass latents\[:1\]"):
        VariationsDisplay.from_editor(editor, z)


def test_a_gallery_of_edits(pipeline, z):
    editor = LocalEditor.from_pipeline(pipeline)
    mask = np.eye(4)
    edits = [
        Edit(1, 2, 2.0, name="smile"),
        Edit(variation=1, part=[0, 2], strength=-1.5),
        Edit(np.ones(5), mask, np.linspace(0.1, 1, 3), "alpha"),
    ]
    display = EditGalleryDisplay.from_editor(editor, z[:3], edits, target_change=0.1)
    assert display.axes_.shape == (4, 3)
    plain = editor.extractor.generate(z[:3])
    np.testing.assert_allclose(
        drawn(display.axes_[0, 2]), picture_of(plain, 2), atol=1e-5
    )
    for row, edit in zip(display.axes_[1:], edits, strict=True):
        edited = editor.edit(z[:3], edit, target_change=0.1, value_range=(-1, 1))
        np.testing.assert_allclose(drawn(row[1]), picture_of(edited, 1), atol=1e-5)
    assert [row[0].get_ylabel() for row in display.axes_] == [
        "image",
        "smile",
        "variation 1, parts (0, 2)\n-1.5 std",
        "a vector, a mask\neach its own",
    ]


@pytest.mark.usefixtures("refining_briefly")
def test_edits_made_elsewhere_and_options(pipeline, z):
    editor = LocalEditor.from_pipeline(pipeline)
    images = editor.extractor.generate(z)
    removed = editor.remove_pixels(z, 0)
    display = EditDisplay.from_images(images, removed)
    np.testing.assert_allclose(
        drawn(display.axes_[1, 2]), picture_of(removed, 2), atol=1e-6
    )
    with pytest.raises(ValueError, match="the same shape"):
        EditDisplay.from_images(images, removed[:2])
    edit = Edit(1, 2)
    display = EditDisplay.from_editor(editor, z, edit, refine=True, target_change=0.1)
    edited = editor.edit(z, edit, refine=True, target_change=0.1, value_range=(-1, 1))
    # A refinement magnifies rounding errors of single precision.
    np.testing.assert_allclose(
        drawn(display.axes_[1, 4]), picture_of(edited, 4), atol=1e-3
    )
