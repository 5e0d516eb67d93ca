"""A ``forward`` that takes the numbers of the samples gets the right ones."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing import EditedGenerator, invert
from tests.networks import TinyGenerator

N = 10


@pytest.fixture
def z():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(0))


class Watched:
    """Keeps what it was called with; each sample has a colour of its own."""

    def __init__(self):
        self.calls = []
        self.colors = torch.linspace(0, 1, N)

    def __call__(self, network, latents, rows):
        assert rows.dtype == torch.int64 and rows.shape == (len(latents),)
        self.calls.append((latents.detach().clone(), rows.clone()))
        colors = self.colors[rows].reshape(-1, 1, 1, 1)
        return network(latents) + colors

    def check(self, *tables):
        """Latents were always those of their numbers, of one of some tables."""
        assert self.calls
        for latents, rows in self.calls:
            assert any(torch.allclose(latents, table[rows]) for table in tables)
        self.calls.clear()


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def editor(z, watched):
    extractor = GeneratorFeatureExtractor(
        TinyGenerator(), "block1", forward=watched, batch_size=4
    )
    panda = PartsAppearanceDecomposition(3, 4, max_iter=5, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(z)))


def test_the_extractor(editor, watched, z):
    watched.check(z)
    extractor = editor.extractor
    expected = extractor.transform(z)
    clone(extractor).fit(z)
    assert torch.equal(torch.cat(list(extractor.batches(z))), expected)
    extractor.transform(z, out=np.empty(expected.shape, dtype=np.float32))
    watched.check(z)
    images = extractor.generate(z)
    plain = images - TinyGenerator()(z).detach()
    found = plain.mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, watched.colors, rtol=0, atol=1e-4)
    watched.check(z)


@pytest.mark.parametrize(
    "use",
    [
        lambda editor, z: editor.edit(z, Edit(1, 0, 2.0)),
        lambda editor, z: editor.edit(z, Edit(1, 0, 2.0), refine=True),
        lambda editor, z: editor.edit(z, Edit(1, 0), target_change=0.1),
        lambda editor, z: editor.edit(z, Edit(1, 0), target_change=0.1, refine=True),
        lambda editor, z: editor.find_strengths(z, Edit(1, 0), 0.1),
        lambda editor, z: editor.mask(z, 0),
        lambda editor, z: editor.remove(z, 0),
        lambda editor, z: editor.remove_pixels(z, 0),
        lambda editor, z: editor.rank_edits(z, parts=[0, 1], variations=[0]),
        lambda editor, z: editor.find_directions(z, 0, 1),
        lambda editor, z: editor.find_directions(z, 0, 1, derivatives="differences"),
        lambda editor, z: EditedGenerator(editor, Edit(1, 0))(z),
    ],
)
def test_the_editor(editor, watched, z, use):
    watched.calls.clear()
    use(editor, z)
    watched.check(z)


@pytest.mark.parametrize("mix", [True, False])
def test_transfers(editor, watched, z, mix):
    donors = z.flip(0)
    watched.calls.clear()
    editor.transfer(z, donors, 0, mix=mix)
    watched.check(z, donors)


def test_inversion(editor, watched, z):
    """Each image is sought with the colour of its own number."""
    extractor = editor.extractor
    images = extractor.generate(z[:3])
    watched.calls.clear()
    found = invert(
        extractor, images, n_steps=40, n_starts=2, prior=0.0, samples=z, random_state=0
    )
    assert found.residuals.max() < 0.05
    assert all(int(rows.max()) < 3 for _, rows in watched.calls)


def test_a_forward_without_rows_is_called_as_ever(z):
    seen = []

    def forward(*args, **options):
        seen.append((len(args), options))
        return args[0](args[1])

    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1", forward=forward)
    extractor.fit(z).generate(z)
    assert seen and all(call == (2, {}) for call in seen)
