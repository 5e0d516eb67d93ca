"""The table of edits that were tried."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing._ranking import _score
from panda_sklearn.metrics import outside_psnr, outside_ssim, roi_ratio
from panda_sklearn.utils.resizing import resize
from tests.allocations import LargestResult
from tests.editing.conftest import unit_scaled
from tests.networks import TinyGenerator

# The columns that describe an edit.
SAID = "appearance", "part", "strength"


def slowly(editor, z, edit):
    """Effect, ROIR and consistency of one edit, one sample at a time."""
    plain = editor.extractor.generate(z)
    change = (editor.edit(z, edit) - plain).double()
    part = unit_scaled(editor.decomposition.parts_[edit.part])
    mask = resize(part[None, None], (8, 8))[0, 0].double()
    inside = [mask * one for one in change]
    size = (3 * mask.square().sum()).sqrt()
    effect = np.mean([float(one.norm() / size) for one in inside])
    cosines = [
        float((inside[a] * inside[b]).sum() / inside[a].norm() / inside[b].norm())
        for a in range(len(z))
        for b in range(len(z))
        if a != b
    ]
    return effect, roi_ratio(mask, plain, plain + change), np.mean(cosines)


def distance_of(editor, z, edit):
    """Mean distance of the edited activations' coefficients."""
    panda, seen = editor.decomposition, []
    change = editor._change([edit], None)
    for n in range(len(z)):
        X = editor.extractor.transform(z[n : n + 1])
        seen.append(change.applied(z, slice(None), None)(X))
    return float(panda.part_distances(torch.cat(seen))[:, edit.part].mean())


@pytest.mark.parametrize("batch_size", [2, 4, 9, 40])
def test_each_row_is_what_the_edit_does(pipeline, z, batch_size):
    extractor = GeneratorFeatureExtractor(
        pipeline[0].generator, "block1", batch_size=batch_size
    ).fit(z)
    editor = LocalEditor(extractor, pipeline[1])
    table = editor.rank_edits(
        z, parts=[0, 2], strength=[1.5, 0.5, 1.5], unit="alpha", sort_by="roi_ratio"
    )
    frame = pd.DataFrame(table)
    assert list(frame) == [
        *("edit", "appearance", "variation", "part", "strength", "sign"),
        *("effect", "roi_ratio", "consistency", "distance", "score"),
    ]
    assert (frame.variation == -1).all()
    assert len(frame) == 4 * 2 * 2 * 2  # appearances, parts, strengths, signs
    assert not frame.duplicated(["appearance", "part", "strength"]).any()
    assert set(frame.strength) == {1.5, -1.5, 0.5, -0.5}
    assert (frame.sign == np.sign(frame.strength)).all()
    assert frame.roi_ratio.is_monotonic_increasing
    for row in frame.itertuples():
        edit = Edit(row.appearance, row.part, row.strength, "alpha")
        assert row.edit == edit
        expected = slowly(editor, z, edit)
        found = row.effect, row.roi_ratio, row.consistency
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        np.testing.assert_allclose(
            row.distance, distance_of(editor, z, edit), rtol=1e-4
        )
        np.testing.assert_allclose(row.score, row.consistency / max(row.distance, 1))


def test_consistent_natural_edits_come_first(editor, z):
    table = editor.rank_edits(z, variations=[0, 1])
    assert (np.diff(table["score"]) <= 0).all()
    assert len(table["edit"]) == 2 * 3 * 2 * 2
    edit = table["edit"][0]
    assert edit.part == table["part"][0] and edit.variation == table["variation"][0]
    editor.edit(z, edit)


def test_similarity_outside(editor, z):
    """It is measured on clipped images."""
    shown = (-0.4, 0.4)
    table = editor.rank_edits(
        z, appearances=[1], parts=[2], strength=2.0, value_range=shown
    )
    for n, edit in enumerate(table["edit"]):
        plain, edited = (
            images.clamp(*shown)
            for images in (editor.extractor.generate(z), editor.edit(z, edit))
        )
        part = unit_scaled(editor.decomposition.parts_[2])
        mask = resize(part[None, None], (8, 8))[0, 0]
        for name, function in (("ssim", outside_ssim), ("psnr", outside_psnr)):
            expected = function(mask, plain, edited, value_range=shown)
            np.testing.assert_allclose(table[name][n], expected, rtol=1e-4)
        np.testing.assert_allclose(
            table["roi_ratio"][n], roi_ratio(mask, plain, edited), rtol=1e-4
        )


@pytest.mark.parametrize("batch_size", [3, 7, 40])
def test_networks_that_draw_noise(pipeline, z, batch_size):
    """Noise that depends on the place in a batch does not count as a change."""
    extractor = GeneratorFeatureExtractor(
        TinyGenerator(noise=0.5), "block2", batch_size=batch_size
    ).fit(z)
    panda = PartsAppearanceDecomposition(2, 2, max_iter=5, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    table = editor.rank_edits(z[:3], strength=0.01, unit="alpha")
    quiet = LocalEditor(
        GeneratorFeatureExtractor(TinyGenerator(), "block2").fit(z), panda
    ).rank_edits(z[:3], strength=0.01, unit="alpha")
    assert table["effect"].max() < 3 * quiet["effect"].max()


def test_scores():
    table = {
        "consistency": np.array([0.5, 0.5, -0.2, -0.2]),
        "distance": np.array([0.5, 2.0, 1.0, 10.0]),
        "effect": np.ones(4),
    }
    np.testing.assert_allclose(_score(table, alone=False), [0.5, 0.25, -0.2, -2.0])
    np.testing.assert_allclose(_score(table, alone=True), [1.0, 0.5, 1.0, 0.1])


def test_files_without_covariances_give_no_distance(pipeline, z):
    panda = copy.copy(pipeline[1])
    del panda.coefficient_covariance_
    table = LocalEditor(pipeline[0], panda).rank_edits(z, parts=[1])
    assert np.isnan(table["distance"]).all()
    np.testing.assert_array_equal(table["score"], table["consistency"])


def test_some_pairs_and_other_orders(editor, z):
    options = {"appearances": [2, 0], "parts": np.array([1]), "strength": 2.0}
    for sort_by in ("effect", "consistency"):
        table = editor.rank_edits(z.numpy(), sort_by=sort_by, **options)
        assert sorted(table["appearance"]) == [0, 0, 2, 2]
        assert set(table["part"]) == {1}
        assert (np.diff(table[sort_by]) <= 0).all()
    std = editor.rank_edits(z, **options)
    expected = slowly(editor, z, Edit(*(std[name][0] for name in SAID)))
    np.testing.assert_allclose(std["effect"][0], expected[0], rtol=1e-4)
    alone = editor.rank_edits(z[:1], **options)
    assert np.isnan(alone["consistency"]).all() and (alone["effect"] > 0).all()
    np.testing.assert_allclose(alone["score"], 1 / np.maximum(alone["distance"], 1))
    assert (np.diff(alone["distance"]) >= 0).all()


def test_no_more_images_at_a_time_than_a_batch(pipeline, z):
    """Memory does not grow with the number of edits and samples."""
    sizes = []

    class Watched(TinyGenerator):
        def forward(self, z):
            sizes.append(len(z))
            return super().forward(z)

    extractor = GeneratorFeatureExtractor(Watched(), "block1", batch_size=4).fit(z)
    editor = LocalEditor(extractor, pipeline[1])
    largest = []
    for n in (4, 40):
        latents = z[:1].repeat(n, 1)
        with LargestResult() as seen:
            editor.rank_edits(latents)
        largest.append(seen.numel)
    assert max(sizes) <= 4
    # The widest tensor beside the latents does not grow tenfold with the samples.
    assert largest[1] <= max(largest[0], 40 * 6)


@pytest.mark.parametrize(
    "options, kind, match",
    [
        ({"sort_by": "beauty"}, ValueError, "sort_by must be one of"),
        ({"appearances": [4]}, ValueError, "appearances must be from 0 to 3, got 4"),
        ({"parts": [0.5]}, TypeError, "parts must be an int"),
        ({"parts": "all"}, TypeError, "parts must be a sequence of ints"),
        ({"parts": []}, ValueError, "parts is empty"),
        ({"strength": np.nan}, ValueError, "strength must be a finite number"),
        ({"strength": [1.0, -2.0]}, ValueError, "strength must be .* above 0, got -2"),
        ({"strength": []}, ValueError, "strength is empty"),
        ({"value_range": (1, -1)}, ValueError, "value_range must be two numbers"),
    ],
)
def test_bad_input(editor, z, options, kind, match):
    with pytest.raises(kind, match=match):
        editor.rank_edits(z, **options)


def test_an_edit_without_effect(pipeline, z):
    """If nothing reads the layer, ratio and consistency are NaN."""

    class Deaf(TinyGenerator):
        def forward(self, z):
            self.block1(torch.zeros(len(z), 5, 4, 4))
            return torch.ones(len(z), 3, 8, 8)

    editor = LocalEditor(
        GeneratorFeatureExtractor(Deaf(), "block1").fit(z), pipeline[1]
    )
    table = editor.rank_edits(z)
    assert (table["effect"] == 0).all()
    assert np.isnan(table["roi_ratio"]).all() and np.isnan(table["consistency"]).all()
