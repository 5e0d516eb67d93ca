"""Local edits."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from tests.networks import TinyGenerator


@pytest.fixture(scope="module")
def z():
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipeline(z):
    return make_pipeline(
        GeneratorFeatureExtractor(TinyGenerator(), "block1", batch_size=4),
        PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=0),
    ).fit(z)


@pytest.fixture(scope="module")
def editor(pipeline):
    return LocalEditor.from_pipeline(pipeline)


def by_hand(editor, z, edits):
    """Z + sum of alpha a_j p_k', and the rest of the network run from there."""
    appearances = torch.as_tensor(editor.decomposition.appearances_)
    parts = torch.as_tensor(editor.decomposition.parts_)
    change = 0
    for j, k, alpha in edits:
        part = (parts[k] - parts[k].min()) / (parts[k].max() - parts[k].min())
        change = change + alpha * appearances[j][:, None, None] * part
    return editor.extractor.generator.by_hand(z, lambda features: features + change)[1]


def test_an_edit_is_the_rest_of_the_network_run_from_the_changed_activations(editor, z):
    image = editor.extractor.generate(z)
    edited = editor.edit(z, Edit(1, 2, 3.0))
    assert (edited - image).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(edited, by_hand(editor, z, [(1, 2, 3.0)]))
        torch.testing.assert_close(
            editor.edit(z, [Edit(1, 2, 3.0), Edit(0, 1, -2)]),
            by_hand(editor, z, [(1, 2, 3.0), (0, 1, -2)]),
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
    assert torch.equal(editor.edit(z, []), image)
    assert torch.equal(editor.edit(z, [Edit(0, 1, 2.0), Edit(0, 1, -2.0)]), image)


def test_numpy_in_numpy_out(editor, z):
    result = editor.edit(z.numpy(), Edit(1, 2, 3.0))
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, editor.edit(z, Edit(1, 2, 3.0)))


def test_fitted_on_numpy_edits_tensors(pipeline, z):
    extractor = pipeline[0]
    panda = PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=0)
    panda.fit(extractor.transform(z.numpy()))
    assert isinstance(panda.parts_, np.ndarray)
    torch.testing.assert_close(
        LocalEditor(extractor, panda).edit(z, Edit(1, 2, 3.0)),
        LocalEditor.from_pipeline(pipeline).edit(z, Edit(1, 2, 3.0)),
    )


def test_an_edit_is_local(z):
    """Beyond the part and the receptive field of what follows nothing changes."""
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1").fit(z)
    part = torch.zeros(2, 4, 4)
    part[0, 0, 0] = part[1, 3, 3] = 1.0
    panda = PartsAppearanceDecomposition(
        init=(torch.eye(5), part), solver="pgd", max_iter=1, learning_rate=1e-30, tol=0
    ).fit(extractor.transform(z))
    change = LocalEditor(extractor, panda).edit(z, Edit(0, 0, 5.0))
    change = (change - extractor.generate(z)).abs().amax(dim=(0, 1))
    # One position is 2 x 2 pixels, and the convolution reaches one pixel further.
    assert change[:3, :3].min() > 0
    assert change[3:].max() == 0 and change[:, 3:].max() == 0


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
    change = editor.edit(z, Edit(0, 1, 2.0)) - editor.extractor.generate(z)
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
        ((0, 0, np.nan), ValueError, "strength must be finite"),
        ((0, 0, "3"), TypeError, "strength must be a number"),
    ],
)
def test_bad_edits(editor, z, arguments, kind, match):
    with pytest.raises(kind, match=match):
        editor.edit(z, Edit(*arguments))


def test_things_that_are_no_edits(editor, z):
    with pytest.raises(TypeError, match="Expected an Edit, got one of type tuple"):
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
    with pytest.raises(TypeError, match="Expected a GeneratorFeatureExtractor"):
        LocalEditor(panda, extractor)
    with pytest.raises(NotFittedError):
        LocalEditor(extractor, PartsAppearanceDecomposition())
    other = GeneratorFeatureExtractor(extractor.generator, "block2").fit(z)
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\).* fitted on \(5, 4, 4\)"):
        LocalEditor(other, panda)
    with pytest.raises(TypeError, match="Expected a Pipeline"):
        LocalEditor.from_pipeline(extractor)
    between = make_pipeline(extractor, FunctionTransformer(), panda)
    with pytest.raises(ValueError, match="directly after"):
        LocalEditor.from_pipeline(between)
