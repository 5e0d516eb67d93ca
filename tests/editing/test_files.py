"""Edits in files, and factors aligned to those of another fit."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from panda_sklearn import Edit, LocalEditor, PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.editing import load_edits, save_edits
from panda_sklearn.metrics import match_factors


def some_edits(n_samples):
    """Edits of all kinds, with all types of numbers."""
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    drawn = np.zeros((8, 8), dtype=bool)
    drawn[:3] = True
    each = (
        mask.expand(n_samples, 4, 4) * torch.linspace(0.1, 1, n_samples)[:, None, None]
    )
    vector = torch.randn(5, generator=torch.Generator().manual_seed(2))
    return [
        Edit(1, 2, 3.0, name="smile"),
        Edit(variation=0, part=[0, 2], strength=-1.5),
        Edit(variation=1, part=drawn, strength=2.0, given="others", name="brows"),
        Edit(vector, mask, 0.5, "alpha"),
        Edit(0, each, np.linspace(-1, 1, n_samples)),
        Edit(3, drawn, torch.linspace(0, 2, n_samples), name="é"),
        Edit(2, mask.bfloat16(), torch.linspace(0, 2, n_samples).half()),
    ]


def test_they_do_the_same_with_and_without_the_factors(editor, z, tmp_path):
    edits = some_edits(len(z))
    save_edits(tmp_path / "edits", edits, editor.decomposition)
    for loaded in (
        load_edits(tmp_path / "edits"),
        load_edits(tmp_path / "edits", editor.decomposition),
    ):
        assert [edit.name for edit in loaded] == [edit.name for edit in edits]
        for edit, again in zip(edits, loaded, strict=True):
            np.testing.assert_array_equal(edit.strength, again.strength)
            torch.testing.assert_close(
                editor.edit(z, again), editor.edit(z, edit), rtol=1e-4, atol=1e-5
            )


def test_with_the_factors_they_are_as_they_were_saved(editor, z, tmp_path):
    edits = some_edits(len(z))
    save_edits(tmp_path / "edits", edits, editor.decomposition)
    editor.decomposition.save(tmp_path / "factors")
    factors = PartsAppearanceDecomposition.load(tmp_path / "factors")
    again = load_edits(tmp_path / "edits", factors)
    assert again[:3] == edits[:3]
    assert again[1].part == (0, 2) and again[2].given == "others"
    (one,) = load_edits(saved_one(tmp_path, edits[0], factors))
    assert isinstance(one, Edit) and one.unit == "alpha" and one.strength == 3.0


def saved_one(folder, edit, panda):
    save_edits(folder / "one", edit, panda)
    return folder / "one"


def test_they_outlive_a_refit(editor, z, tmp_path):
    """As vectors; the new fit is refused as their decomposition."""
    path = saved_one(tmp_path, Edit(1, 2, 3.0), editor.decomposition)
    features = editor.extractor.transform(z)
    refit = PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=5)
    refit.fit(features)
    (edit,) = load_edits(path)
    torch.testing.assert_close(
        LocalEditor(editor.extractor, refit).edit(z, edit),
        editor.edit(z, Edit(1, 2, 3.0)),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"of another fit.*load them without one"):
        load_edits(path, refit)


@pytest.mark.parametrize("of", ["layer", "network"])
def test_edits_of_another_layer_or_network(editor, tmp_path, of):
    panda = editor.decomposition
    saved = []
    for value in ("one", "two"):
        panda.save(tmp_path / value, **{of: value})
        saved.append(PartsAppearanceDecomposition.load(tmp_path / value))
    path = saved_one(tmp_path, Edit(1, 2), saved[0])
    assert len(load_edits(path, saved[0])) == 1
    assert len(load_edits(path, panda)) == 1  # which does not know its network
    with pytest.raises(ValueError, match=f"the {of} .*'one', and .* of 'two'"):
        load_edits(path, saved[1])


def test_edits_of_other_maps(editor, tmp_path):
    path = saved_one(tmp_path, Edit(1, 2), editor.decomposition)
    other = PartsAppearanceDecomposition(2, 2, max_iter=2, tol=0).fit(
        np.ones((3, 5, 2))
    )
    with pytest.raises(ValueError, match=r"activations of shape \(5, 4, 4\)"):
        load_edits(path, other)


def test_what_cannot_be_saved(editor, tmp_path):
    panda = editor.decomposition
    for edits, error, match in (
        ([], ValueError, "edits is empty"),
        ("smile", TypeError, "edits must be an Edit"),
        (Edit(7, 0), ValueError, "appearance must be from 0 to 3"),
    ):
        with pytest.raises(error, match=match):
            save_edits(tmp_path / "edits", edits, panda)
    with pytest.raises(TypeError, match="decomposition must be"):
        save_edits(tmp_path / "edits", Edit(0, 0), editor)
    assert not (tmp_path / "edits").exists()
    with pytest.raises(FileNotFoundError):
        save_edits(tmp_path / "no" / "edits", Edit(0, 0), panda)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"kind": "PartsAppearanceDecomposition"}, "LocalEdits"),
        ({"format_version": "4"}, "format version '4'"),
        ({"edits": '{"edits": [{"said": {}}]}'}, "cannot be read"),
        ({"edits": "{}"}, "cannot be read"),
        ({"of": '{"more": 1}'}, "more"),
    ],
)
def test_bad_files(editor, tmp_path, change, match):
    path = saved_one(tmp_path, Edit(1, 2), editor.decomposition)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | change)
    with pytest.raises(ValueError, match=match):
        load_edits(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_edits(tmp_path / "none")
    (tmp_path / "text").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="safetensors"):
        load_edits(tmp_path / "text")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_aligned_factors(kind, stream):
    """They get the other's order and signs; all else is as before."""
    X = make_parts_appearances(
        40, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=20, random_state=0
    )[0]
    X = kind(X)
    panda = PartsAppearanceDecomposition(3, 4, random_state=0)
    panda = panda.partial_fit(X) if stream else panda.fit(X)
    other = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    order, flips, parts = [2, 0, 3, 1], [1, -1, -1, 1], [1, 2, 0]
    signs = kind(np.array(flips, dtype=float))
    other.appearances_ = other.appearances_[order] * signs[:, None]
    other.parts_ = other.parts_[parts]
    L, before = panda.coefficients(X), panda.inverse_transform(panda.transform(X))
    assert panda.align_to(other) is panda
    assert type(panda.parts_) is type(X)
    for name in ("parts_", "appearances_"):
        rows, columns, cosines = match_factors(
            getattr(panda, name), getattr(other, name)
        )
        np.testing.assert_array_equal(rows, columns)
        assert min(cosines) > 0.9
    after = panda.coefficients(X)
    np.testing.assert_allclose(
        after, np.asarray(L)[:, order][:, :, parts] * np.array(flips)[:, None]
    )
    np.testing.assert_allclose(panda.inverse_transform(panda.transform(X)), before)
    saliency = panda.saliency(X)
    np.testing.assert_allclose(
        panda.saliency_mean_, np.asarray(saliency).mean((0, 2, 3)), atol=1e-9
    )
    rows = np.moveaxis(np.asarray(saliency), 1, -1).reshape(-1, 4)
    np.testing.assert_allclose(
        panda.saliency_covariance_, np.cov(rows.T, bias=True), atol=1e-9
    )
    after = np.asarray(after)
    np.testing.assert_allclose(panda.coefficient_mean_, after.mean(axis=0), atol=1e-9)
    of_sum = after.sum(axis=2) - after.sum(axis=2).mean(axis=0)
    for k in range(3):
        away = after[:, :, k] - after[:, :, k].mean(axis=0)
        own, cross = away.T @ away / 40, away.T @ of_sum / 40
        for found, expected in (
            (panda.coefficient_covariance_[k], own),
            (panda.coefficient_cross_covariance_[k], cross),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-9)
        if stream:
            kept = panda._coefficients
            np.testing.assert_allclose(kept.own[k] / 40, own, atol=1e-9)
            np.testing.assert_allclose(kept.cross[k] / 40, cross, atol=1e-9)
            np.testing.assert_allclose(
                kept.mean[k], after.mean(axis=0)[:, k], atol=1e-9
            )


def test_parts_that_may_be_negative_keep_their_sign():
    X = np.random.default_rng(0).standard_normal((20, 6, 4, 5))
    panda = PartsAppearanceDecomposition(3, 4, nonnegative=False).fit(X)
    other = PartsAppearanceDecomposition(3, 4, nonnegative=False).fit(X)
    parts = panda.parts_.copy()
    other.parts_ = -other.parts_[[2, 0, 1]]
    np.testing.assert_array_equal(panda.align_to(other).parts_, parts[[2, 0, 1]])


def test_what_cannot_be_aligned():
    X = np.random.default_rng(0).standard_normal((20, 6, 4, 5))
    panda = PartsAppearanceDecomposition(3, 4, random_state=0).fit(X)
    with pytest.raises(TypeError, match="other must be"):
        panda.align_to(X)
    more = PartsAppearanceDecomposition(2, 4, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"parts_ of shape \(3, 4, 5\)"):
        panda.align_to(more)
