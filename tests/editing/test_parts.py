"""Functions on parts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from panda_sklearn import Edit
from panda_sklearn.editing import intersect_part, merge_parts, scale_part, split_part

floats = st.floats(0, 100, width=32)
shapes = array_shapes(min_dims=1, max_dims=3, max_side=6)
maps = arrays(np.float32, shapes, elements=floats)


@given(maps)
def test_scaled_parts_have_the_range_0_to_1(part):
    if part.max() == part.min():
        with pytest.raises(ValueError, match="part is constant"):
            scale_part(part)
        return
    mask = scale_part(part)
    assert mask.min() == 0 and mask.max() == 1 and mask.dtype == np.float32
    order = np.argsort(part, axis=None, kind="stable")
    assert (np.diff(mask.ravel()[order]) >= 0).all()


@given(maps, st.floats(0.01, 1))
def test_components_make_up_what_is_above_the_threshold(part, threshold):
    if part.max() == part.min():
        return
    mask = scale_part(part)
    components = split_part(part, threshold=threshold)
    assert len(components) >= 1
    sums = [component.sum() for component in components]
    assert sums == sorted(sums, reverse=True)
    np.testing.assert_array_equal(
        sum(components), np.where(mask >= np.float32(threshold), mask, 0)
    )
    # No position belongs to two.
    assert (sum(component > 0 for component in components) <= 1).all()


def test_one_eye_of_two():
    eyes = torch.zeros(8, 8)
    eyes[2:4, 1:3], eyes[2:4, 5:7] = 0.5, 2.0
    eyes[4, 3] = 1.9  # touches an eye only at a corner
    left_out, right = eyes.clone(), torch.zeros(8, 8)
    right[2:4, 5:7] = 1
    found = split_part(eyes, threshold=0.25)
    assert len(found) == 3
    assert torch.equal(found[0], right)
    assert torch.equal(left_out, eyes)  # the input is unchanged


def test_merging_is_summing_then_scaling():
    one, two = np.eye(3), np.full((3, 3), 0.5)
    two[0, 1] = 3.5
    total = one + two
    expected = (total - 0.5) / (3.5 - 0.5)
    np.testing.assert_allclose(merge_parts(one, two), expected)
    np.testing.assert_allclose(merge_parts(one), one)
    with pytest.raises(ValueError, match="sum of the parts is constant"):
        merge_parts(one, 1 - one)
    with pytest.raises(ValueError, match="of one shape"):
        merge_parts(one, np.eye(4))
    with pytest.raises(ValueError, match="one part at least"):
        merge_parts()


def test_intersecting_is_multiplying_scaled_parts():
    part = np.array([[0.0, 2.0], [4.0, 1.0]])
    mask = np.array([[True, True], [False, False]])
    np.testing.assert_allclose(intersect_part(part, mask), [[0, 0.5], [0, 0]])
    other = np.array([[0.0, 5.0], [10.0, 0.0]])
    np.testing.assert_allclose(intersect_part(part, other), [[0, 0.25], [1, 0]])
    with pytest.raises(ValueError, match="share no position"):
        intersect_part(part, np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="of one shape"):
        intersect_part(part, np.eye(3))


@pytest.mark.parametrize(
    "threshold, kind", [(0, ValueError), (1.5, ValueError), ("0.5", TypeError)]
)
def test_bad_thresholds(threshold, kind):
    with pytest.raises(kind, match="threshold must be a"):
        split_part(np.eye(3), threshold=threshold)


def test_bad_parts():
    with pytest.raises(ValueError, match="contains NaN"):
        scale_part(np.array([0, np.nan]))
    with pytest.raises(ValueError, match="one, two or three spatial axes"):
        scale_part(np.zeros((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="part is constant"):
        split_part(np.ones((3, 3)))


def test_results_can_be_given_to_edits(editor, z):
    parts = editor.decomposition.parts_
    whole = editor.edit(z, Edit(1, [0, 2], 2.0))
    torch.testing.assert_close(
        editor.edit(z, Edit(1, merge_parts(parts[0], parts[2]), 2.0)), whole
    )
    torch.testing.assert_close(
        editor.edit(z, Edit(1, scale_part(parts[1]), 2.0)),
        editor.edit(z, Edit(1, 1, 2.0)),
    )


def test_editing_one_eye_leaves_the_other(editor, z):
    """Nothing changes beyond the receptive field of later layers, but for rounding."""
    eyes = torch.zeros(4, 4)
    eyes[0, 0], eyes[3, 3] = 2.0, 1.5
    one, other = split_part(eyes)
    plain = editor.extractor.generate(z)
    change = (editor.edit(z, Edit(1, one, 5.0)) - plain).abs().amax(dim=(0, 1))
    # One position is 2 x 2 pixels, and the convolution reaches one pixel further; but
    # fast convolutions (Winograd's) mix the rounding errors of neighbours.
    assert change[:3, :3].min() > 1e-3
    assert change[3:].max() < 1e-5 and change[:, 3:].max() < 1e-5
    change = (editor.edit(z, Edit(1, other, 5.0)) - plain).abs().amax(dim=(0, 1))
    assert change[5:, 5:].min() > 1e-3 and change[:5].max() < 1e-5


def test_indices_are_refused_as_parts():
    with pytest.raises(TypeError, match=r"arrays, such as parts_\[1\].*part=\[1, 2\]"):
        merge_parts(1, 2)
