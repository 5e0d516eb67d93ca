"""The table of pairs."""

import numpy as np
import pandas as pd
import pytest
import torch

from panda_sklearn import Edit, GeneratorFeatureExtractor, LocalEditor
from panda_sklearn.metrics import roi_ratio
from panda_sklearn.utils.resizing import resize
from tests.allocations import LargestResult
from tests.editing.conftest import unit_scaled
from tests.networks import TinyGenerator


def slowly(editor, z, j, k, strength, unit):
    """Effect, ROIR and consistency of one pair, one sample at a time."""
    plain = editor.extractor.generate(z)
    change = (editor.edit(z, Edit(j, k, strength, unit)) - plain).double()
    part = unit_scaled(editor.decomposition.parts_[k])
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


@pytest.mark.parametrize("batch_size", [2, 4, 9, 40])
def test_each_row_is_what_the_edit_does(pipeline, z, batch_size):
    extractor = GeneratorFeatureExtractor(
        pipeline[0].generator, "block1", batch_size=batch_size
    ).fit(z)
    editor = LocalEditor(extractor, pipeline[1])
    table = editor.rank_edits(z, strength=1.5, unit="alpha")
    frame = pd.DataFrame(table)
    assert list(frame) == [
        *("appearance", "variation", "part"),
        *("effect", "roi_ratio", "consistency"),
    ]
    assert (frame.variation == -1).all()
    assert len(frame) == 12 and not frame.duplicated(["appearance", "part"]).any()
    assert frame.roi_ratio.is_monotonic_increasing
    for row in frame.itertuples():
        expected = slowly(editor, z, row.appearance, row.part, 1.5, "alpha")
        np.testing.assert_allclose(row[4:], expected, rtol=1e-4)


def test_some_pairs_and_other_orders(editor, z):
    options = {"appearances": [2, 0], "parts": np.array([1])}
    for sort_by in ("effect", "consistency"):
        table = editor.rank_edits(z.numpy(), sort_by=sort_by, **options)
        assert sorted(table["appearance"]) == [0, 2] and set(table["part"]) == {1}
        assert (np.diff(table[sort_by]) <= 0).all()
    std = editor.rank_edits(z, strength=2.0, **options)
    expected = slowly(editor, z, int(std["appearance"][0]), 1, 2.0, "std")
    np.testing.assert_allclose(std["effect"][0], expected[0], rtol=1e-4)
    alone = editor.rank_edits(z[:1], **options)
    assert np.isnan(alone["consistency"]).all() and (alone["effect"] > 0).all()


def test_no_more_images_at_a_time_than_a_batch(pipeline, z):
    """However many pairs and samples there are."""
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
        ({"strength": np.ones(9)}, ValueError, "the same for all samples"),
    ],
)
def test_bad_input(editor, z, options, kind, match):
    with pytest.raises(kind, match=match):
        editor.rank_edits(z, **options)


def test_an_edit_without_effect(pipeline, z):
    """What nothing reads: no ratio and no consistency, and it is last."""

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
