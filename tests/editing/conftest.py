"""A tiny generator, an editor of it, and edits by hand."""

import pytest
import torch
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from tests.networks import TinyGenerator


@pytest.fixture(scope="session")
def z():
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def pipeline(z):
    return make_pipeline(
        GeneratorFeatureExtractor(TinyGenerator(), "block1", batch_size=4),
        PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=0),
    ).fit(z)


@pytest.fixture(scope="session")
def editor(pipeline):
    return LocalEditor.from_pipeline(pipeline)


@pytest.fixture(scope="session")
def by_hand():
    """The forward pass cut in two, with ``change`` (.., C, h, w) added at the cut."""

    def run(editor, z, change):
        generator = editor.extractor.generator
        with torch.no_grad():
            return generator.by_hand(z, lambda features: features + change)[1]

    return run


def unit_scaled(part):
    return (part - part.min()) / (part.max() - part.min())
