"""Activations of no generator: classifiers, tokens, sounds, volumes, images."""

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.metrics import match_factors
from tests.nearness import assert_near

# "adam" magnifies roundings least, so that fits in single precision agree.
STEADY = {"solver": "adam", "max_iter": 20, "tol": 0, "random_state": 0}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Classifier(nn.Module):
    """Images -> logits, through convolutions of 1, 2 or 3 spatial axes."""

    def __init__(self, n_axes):
        super().__init__()
        Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_axes - 1]
        self.features = nn.Sequential(Conv(2, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.features(x).flatten(2).mean(dim=2))


class Transformer(nn.Module):
    """Patches (N, 9, 6) -> logits, with a class token before them."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.block = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, patches):
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1)
        return self.head(self.block(tokens)[:, 0])


def without_class_token(tokens):
    return tokens[:, 1:]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    "spatial", [(11,), (5, 6), (3, 4, 3)], ids=["sounds", "images", "volumes"]
)
def test_classifiers(spatial, kind):
    network = seeded(lambda: Classifier(len(spatial)))
    X = kind(randn(20, 2, *spatial))
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(network, "features", batch_size=8),
        PartsAppearanceDecomposition(3, 2, max_iter=20, tol=0, random_state=0),
    )
    assert pipeline.fit_transform(X).shape == (20, 6)
    extractor, panda = pipeline
    features = extractor.transform(X)
    assert features.shape == (20, 5, *spatial) and type(features) is type(X)
    assert panda.parts_.shape == (3, *spatial)
    assert panda.saliency(features).shape == (20, 2, *spatial)
    assert panda.localize(features, 0).shape == (20, *spatial)
    assert panda.refine(features).shape == (20, 3, *spatial)
    assert panda.inverse_transform(panda.transform(features)).shape == features.shape
    # What the head says when it sees the reconstruction.
    logits = extractor.generate(X, panda.inverse_transform(panda.transform(features)))
    assert logits.shape == (20, 4)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_tokens_with_a_class_token_and_channels_last(kind):
    network = seeded(Transformer)
    X = kind(randn(20, 9, 6))
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(network, "block"),
        FunctionTransformer(without_class_token),
        PartsAppearanceDecomposition(3, 4, channel_axis=-1, **STEADY),
    )
    T = pipeline.fit_transform(X)
    panda = pipeline[-1]
    tokens = pipeline[:-1].transform(X)
    assert tokens.shape == (20, 9, 6)
    assert panda.parts_.shape == (3, 9) and panda.appearances_.shape == (4, 6)
    assert panda.inverse_transform(T).shape == tokens.shape
    first = PartsAppearanceDecomposition(3, 4, **STEADY)
    channels_first = np.ascontiguousarray(np.moveaxis(np.asarray(tokens), -1, 1))
    assert_near(first.fit_transform(channels_first), np.asarray(T), 1e-4)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_plain_images_as_maps(n_channels):
    """Blobs of random colours at two places: these are the parts."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:12, :10]
    blobs = np.stack(
        [
            np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 4)
            for r, c in ((3, 3), (8, 6))
        ]
    )
    colours = random.random((40, n_channels, 2))
    images = np.einsum("nck,kij->ncij", colours, blobs)
    rank = {"n_appearances": None} if n_channels == 3 else {"map_shape": (1, 12, 10)}
    panda = PartsAppearanceDecomposition(2, random_state=0, **rank).fit(images)
    assert panda.score(images) > 0.999
    assert match_factors(panda.parts_, blobs)[2].min() > 0.99
