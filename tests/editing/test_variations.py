"""Variations of parts: what they are, and edits along them."""

import numpy as np
import pytest
import torch

from panda_sklearn import Edit, PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.editing import EditedGenerator
from panda_sklearn.editing._changes import change_of
from panda_sklearn.editing._lookup import Sizes
from tests.editing.test_ranking import slowly

N, R_C, R_S = 60, 4, 3
X = make_parts_appearances(
    N, R_S, R_C, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
)[0]


def fitted(**options):
    options = {"random_state": 0, **options}
    return PartsAppearanceDecomposition(R_S, R_C, **options).fit(X)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nonnegative": False},
        {"solver": "pgd", "max_iter": 50, "tol": 0},
        {"solver": "adam", "max_iter": 50, "tol": 0},
    ],
)
def test_they_are_how_coefficients_vary(options):
    panda = fitted(**options)
    L = panda.coefficients(X)
    np.testing.assert_allclose(panda.coefficient_mean_, L.mean(axis=0), atol=1e-9)
    of_sum = L.sum(axis=2) - L.sum(axis=2).mean(axis=0)
    for k in range(R_S):
        away = L[:, :, k] - L[:, :, k].mean(axis=0)
        for name, other in (("covariance_", away), ("cross_covariance_", of_sum)):
            np.testing.assert_allclose(
                getattr(panda, f"coefficient_{name}")[k], away.T @ other / N, atol=1e-9
            )
        vectors, stds = panda.variations(k)
        assert vectors.shape == (R_C, 6) and (np.diff(stds) <= 0).all()
        scores = away @ panda.appearances_ @ vectors.T
        np.testing.assert_allclose(
            scores.T @ scores / N, np.diag(stds**2), atol=1e-9 * stds[0] ** 2
        )
        first, _ = panda.variations(k, 2)
        np.testing.assert_array_equal(first, vectors[:2])
        # Only what the other parts explain is removed.
        alone = panda.variations(k, given="others")[1]
        assert (alone <= stds * (1 + 1e-9)).all() and alone[0] > 0


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_distances_of_parts(kind):
    """Mahalanobis distances, whose root mean square is 1 on the training samples."""
    panda = PartsAppearanceDecomposition(R_S, R_C, random_state=0).fit(kind(X))
    found = panda.part_distances(kind(X))
    assert type(found) is type(kind(X)) and found.shape == (N, R_S)
    found = np.asarray(found)
    np.testing.assert_allclose((found**2).mean(axis=0), 1)
    L = np.asarray(panda.coefficients(kind(X)))
    for k in range(R_S):
        away = L[:, :, k] - L[:, :, k].mean(axis=0)
        C = away.T @ away / N
        inverse = np.linalg.inv(C + 0.01 * np.trace(C) / R_C * np.eye(R_C))
        squares = np.einsum("ni,ij,nj->n", away, inverse, away)
        expected = np.sqrt(squares / squares.mean())
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-6)


def test_distances_where_nothing_varies():
    alike = np.repeat(X[:1], 3, axis=0)
    panda = PartsAppearanceDecomposition(1, 2, max_iter=3, tol=0, random_state=0)
    panda.fit(alike)
    panda.coefficient_covariance_[:] = 0
    panda.coefficient_mean_ = panda.coefficients(alike)[0]
    assert (panda.part_distances(alike) == 0).all()
    assert np.isinf(panda.part_distances(2 * alike)).all()


def test_distances_that_are_not_known():
    panda = fitted()
    del panda.coefficient_covariance_
    with pytest.raises(ValueError, match="not known"):
        panda.part_distances(X)


def test_the_others_explain_nothing_of_a_single_part():
    panda = PartsAppearanceDecomposition(1, R_C, random_state=0).fit(X)
    for one, other in zip(
        panda.variations(0), panda.variations(0, given="others"), strict=True
    ):
        np.testing.assert_allclose(one, other)


def test_they_have_the_kind_of_the_factors():
    panda = PartsAppearanceDecomposition(R_S, R_C, random_state=0)
    for kind in (torch.float32, torch.float64):
        vectors, stds = panda.fit(torch.from_numpy(X).to(kind)).variations(1)
        assert vectors.dtype == stds.dtype == kind
    vectors, stds = panda.fit(X.astype("float32")).variations(1)
    assert isinstance(vectors, np.ndarray) and stds.dtype == np.float32


def test_several_parts_and_masks():
    panda = fitted()
    covariances = panda.coefficient_covariance_
    A = panda.appearances_.T

    def expected(weights):
        M = A @ np.einsum("k,kij->ij", weights, covariances) @ A.T
        return np.sqrt(np.linalg.eigvalsh(M)[::-1][:R_C])

    np.testing.assert_allclose(panda.variations([0, 2])[1], expected([0.5, 0, 0.5]))
    mask = np.zeros((4, 5))
    mask[1:3, 1:3] = [[1, 0.5], [0.5, 1]]
    P = panda.parts_.reshape(R_S, -1)
    cosines = P @ mask.ravel() / np.linalg.norm(P, axis=1)
    weights = cosines**2 / (cosines**2).sum()
    np.testing.assert_allclose(panda.variations(mask)[1], expected(weights))


def test_streams_and_passes():
    """A stream's are those of earlier coefficients, and nearly those of all samples."""
    panda = PartsAppearanceDecomposition(R_S, R_C, random_state=0)
    for part in np.split(X, 3):
        panda.partial_fit(part)
    L = panda.coefficients(X)
    scale = panda.coefficient_covariance_.max()
    for k in range(R_S):
        expected = np.cov(L[:, :, k].T, bias=True)
        found = panda.coefficient_covariance_[k]
        np.testing.assert_allclose(found, expected, atol=0.02 * scale)
        of_sum = L.sum(axis=2) - L.sum(axis=2).mean(axis=0)
        np.testing.assert_allclose(
            panda.coefficient_cross_covariance_[k],
            (L[:, :, k] - L[:, :, k].mean(axis=0)).T @ of_sum / N,
            atol=0.05 * scale,
        )
    sizes = abs(L).max()
    np.testing.assert_allclose(
        panda.coefficient_mean_, L.mean(axis=0), atol=0.02 * sizes
    )
    again = panda.fit(X)
    assert not hasattr(again, "_coefficients")


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"part": 3}, ValueError, "part must be from 0 to 2, got 3"),
        ({"part": None}, TypeError, "part must be an int"),
        ({"part": np.ones((2, 2))}, ValueError, "layer's spatial shape"),
        ({"part": 0, "n_variations": 5}, ValueError, "exceeds their number, 4"),
        ({"part": 0, "n_variations": 0}, ValueError, "n_variations"),
        ({"part": 0, "given": "all"}, ValueError, "given must be None or 'others'"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        fitted().variations(**arguments)


def test_a_mask_where_no_part_is():
    panda = fitted()
    panda.parts_ = panda.parts_.copy()
    panda.parts_[:, 0, 0] = 0
    mask = np.zeros((4, 5))
    mask[0, 0] = 1
    with pytest.raises(ValueError, match="mask that overlaps no part"):
        panda.variations(mask)


class TestEdits:
    @pytest.mark.parametrize("given", [None, "others"])
    @pytest.mark.parametrize("n", [0, 2])
    def test_a_part_moves_by_standard_deviations(self, editor, z, n, given):
        panda = editor.decomposition
        edit = Edit(variation=n, part=1, strength=-1.5, given=given)
        before = editor.extractor.transform(z)
        change = change_of([edit], panda, Sizes(len(z)))
        after = change.applied(z, slice(0, len(z)), None)(before)
        L, moved = (panda.coefficients(X)[:, :, 1] for X in (before, after))
        vectors, stds = panda.variations(1, given=given)
        along = (moved - L) @ panda.appearances_ @ vectors[n]
        torch.testing.assert_close(along, -1.5 * stds[n].expand(len(z)))

    def test_several_parts_move_by_as_many_on_average(self, editor, z):
        panda = editor.decomposition
        before = editor.extractor.transform(z)
        change = change_of([Edit(variation=0, part=[0, 2])], panda, Sizes(len(z)))
        after = change.applied(z, slice(0, len(z)), None)(before)
        vectors, stds = panda.variations([0, 2])
        moved = panda.coefficients(after) - panda.coefficients(before)
        along = torch.einsum("nrk,rc,c->nk", moved, panda.appearances_, vectors[0])
        torch.testing.assert_close(along[:, [0, 2]].mean(dim=1), stds[0].expand(len(z)))

    def test_it_is_the_vector_added_at_the_part(self, editor, z):
        panda = editor.decomposition
        vectors, _ = panda.variations(2)
        torch.testing.assert_close(
            editor.edit(z, Edit(variation=1, part=2, strength=3.0, unit="alpha")),
            editor.edit(z, Edit(vectors[1], 2, 3.0, "alpha")),
        )

    @pytest.mark.parametrize("size", [4, 8])
    def test_masks_of_the_layer_and_of_images(self, editor, z, size):
        """They are drawn over the same positions."""
        mask = torch.zeros(size, size)
        mask[: size // 2, : size // 2] = 1
        small = torch.zeros(4, 4)
        small[:2, :2] = 1
        expected = editor.edit(z, Edit(variation=0, part=small))
        edited = editor.edit(z, Edit(variation=0, part=mask))
        torch.testing.assert_close(edited, expected)
        each = mask.expand(len(z), size, size)
        with pytest.raises(ValueError, match="a mask for each image"):
            editor.edit(z, Edit(variation=0, part=each))

    def test_everything_that_takes_edits(self, editor, z):
        edit = Edit(variation=0, part=1, strength=2.0)
        edited = editor.edit(z, edit)
        assert (edited - editor.extractor.generate(z)).abs().max() > 0.01
        torch.testing.assert_close(EditedGenerator(editor, edit)(z), edited)
        factors = editor.find_strengths(z, edit, 0.05)
        torch.testing.assert_close(
            editor.edit(z, edit, target_change=0.05),
            editor.edit(z, Edit(variation=0, part=1, strength=2 * factors)),
        )

    def test_rows_of_the_table(self, editor, z):
        options = {"parts": [2, 1], "strength": 2.0}
        table = editor.rank_edits(z, variations=[1, 0], **options)
        assert (table["appearance"] == -1).all() and len(table["part"]) == 8
        both = editor.rank_edits(z, appearances=[3], variations=[1, 0], **options)
        assert len(both["part"]) == 12
        for i in range(8):
            n, k, strength = (table[x][i] for x in ("variation", "part", "strength"))
            edit = Edit(variation=n, part=int(k), strength=strength)
            assert table["edit"][i] == edit
            found = [table[name][i] for name in ("effect", "roi_ratio", "consistency")]
            np.testing.assert_allclose(found, slowly(editor, z, edit), rtol=1e-4)

    def test_equal_edits(self):
        one = Edit(variation=0, part=[1, 2])
        assert one == Edit(variation=0, part=(1, 2)) != Edit(variation=1, part=(1, 2))
        assert one != Edit(variation=0, part=[1, 2], given="others")
        assert hash(one) == hash(Edit(variation=0, part=(1, 2)))

    @pytest.mark.parametrize(
        "options, error, match",
        [
            ({}, ValueError, "Give exactly one of"),
            ({"appearance": 1, "variation": 1}, ValueError, "Give exactly one of"),
            ({"variation": 1.5}, TypeError, "variation must be an int"),
            ({"variation": True}, TypeError, "variation must be an int"),
            ({"appearance": 1, "given": "others"}, ValueError, "goes with a variation"),
            ({"variation": 1, "given": "light"}, ValueError, "None or 'others'"),
        ],
    )
    def test_bad_edits(self, options, error, match):
        with pytest.raises(error, match=match):
            Edit(part=0, **options)

    def test_a_variation_out_of_range(self, editor, z):
        with pytest.raises(ValueError, match="variation must be from 0 to 3, got 4"):
            editor.edit(z, Edit(variation=4, part=0))

    def test_a_part_that_does_not_vary(self, editor, z):
        twice = torch.cat([z[:1], z[:1]])
        panda = PartsAppearanceDecomposition(2, 2, max_iter=3, tol=0, random_state=0)
        panda.fit(editor.extractor.transform(twice))
        with pytest.raises(ValueError, match="a variation that occurs"):
            change_of([Edit(variation=1, part=0)], panda, Sizes(2))
