"""PartsAppearanceDecomposition as users call it."""

import sys
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.utils.arrays import as_tensor
from tests.nearness import assert_near, assert_thresholded

# Ten iterations of "spg" magnify the roundings of double precision to about 1e-8.
FITTED = 1e-5


def make_panda(*ranks, **options):
    """A quick estimator: ten iterations, and no wish to converge."""
    return PartsAppearanceDecomposition(
        *ranks, **{"max_iter": 10, "tol": 0, "random_state": 0, **options}
    )


@pytest.fixture(scope="module")
def X():
    return make_parts_appearances(
        30, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
    )[0]


@pytest.fixture(scope="module")
def fitted(X):
    return make_panda(3, 4).fit(X)


# Shapes and layouts


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
def test_kinds_dtypes_and_numbers_of_axes(kind, dtype, spatial):
    X, *_ = make_parts_appearances(
        12, 2, 3, n_channels=5, spatial_shape=spatial, random_state=0
    )
    X = X.astype(dtype)
    if kind == "torch":
        X = torch.from_numpy(X)
    panda = make_panda(2, 3).fit(X)

    def check(result, shape):
        assert type(result) is type(X)
        assert result.dtype == X.dtype
        assert tuple(result.shape) == shape

    check(panda.parts_, (2, *spatial))
    check(panda.appearances_, (3, 5))
    check(panda.saliency_mean_, (3,))
    check(panda.transform(X), (12, 6))
    check(panda.coefficients(X), (12, 3, 2))
    check(panda.inverse_transform(panda.transform(X)), X.shape)
    check(panda.inverse_transform(panda.coefficients(X)), X.shape)
    check(panda.saliency(X), (12, 3, *spatial))
    check(panda.refine(X, max_iter=2), (12, 2, *spatial))
    mask = panda.localize(X, 0)
    assert type(mask) is type(X) and tuple(mask.shape) == (12, *spatial)
    assert mask.dtype == (bool if kind == "numpy" else torch.bool)
    assert panda.map_shape_ == (5, *spatial)
    assert panda.n_features_in_ == 5


def test_every_layout_gives_the_same_fit(X, fitted):
    expected = fitted.transform(X)
    last = make_panda(3, 4, channel_axis=-1)
    X_last = np.moveaxis(X, 1, -1)
    assert_near(last.fit_transform(X_last), expected, FITTED)
    assert last.parts_.shape == (3, 4, 5) and last.map_shape_ == (6, 4, 5)
    assert last.inverse_transform(expected).shape == X_last.shape
    maps = fitted.inverse_transform(expected)
    assert_near(last.inverse_transform(expected), np.moveaxis(maps, 1, -1), FITTED)

    flat = make_panda(3, 4, map_shape=(6, 4, 5))
    X_flat = X.reshape(30, -1)
    assert_near(flat.fit_transform(X_flat), expected, FITTED)
    assert flat.n_features_in_ == 120
    assert_near(flat.inverse_transform(expected), maps.reshape(30, -1), FITTED)


def test_rows_without_a_map_shape_are_maps_of_one_channel(X):
    rows = np.abs(X.reshape(30, -1))
    panda = make_panda().fit(rows)
    assert panda.map_shape_ == (1, 120)
    assert panda.parts_.shape == (8, 120) and panda.appearances_.shape == (1, 1)


def test_default_ranks(X):
    panda = make_panda().fit(X)
    assert panda.parts_.shape[0] == 8 and panda.appearances_.shape[0] == 6
    assert make_panda().fit(X[:, :, :1]).parts_.shape == (5, 1, 5)


@pytest.mark.parametrize("dtype", ["float16", "int32", "uint8"])
def test_other_numbers_become_single_precision(X, dtype):
    X = (10 * X).astype(dtype)
    assert make_panda().fit_transform(X).dtype == np.float32
    assert make_panda().fit_transform(torch.from_numpy(X)).dtype == torch.float32


def test_input_is_left_alone_and_read_only_input_will_do(X):
    locked = X.copy()
    locked.flags.writeable = False
    panda = make_panda(3, 4)
    assert_near(panda.fit_transform(locked), panda.fit_transform(X), FITTED)
    np.testing.assert_array_equal(locked, X)


def test_fitted_on_one_kind_transforms_the_other(X, fitted):
    expected = fitted.transform(X)
    result = fitted.transform(torch.from_numpy(X))
    np.testing.assert_allclose(result.numpy(), expected)
    assert fitted.transform(X.astype("float32")).dtype == np.float32


# What is computed


def test_reconstruction_is_the_model(X, fitted):
    A, P = fitted.appearances_.T, fitted.parts_.reshape(3, -1).T
    Z = X.reshape(30, 6, 20)
    L = A.T @ Z @ P
    np.testing.assert_allclose(fitted.coefficients(X), L)
    np.testing.assert_allclose(fitted.transform(X), L.reshape(30, -1))
    model = (A @ L @ P.T).reshape(X.shape)
    np.testing.assert_allclose(fitted.inverse_transform(L), model)
    errors = np.sum((X - model) ** 2)
    assert fitted.reconstruction_err_ == pytest.approx(errors / 30)
    assert fitted.reconstruction_err_ == fitted.objective_history_[-1]
    assert fitted.score(X) == pytest.approx(1 - errors / np.sum(X**2))


def test_reconstruction_error_is_over_all_samples_with_batches_too(X):
    panda = make_panda(3, 4, solver="pgd", batch_size=7).fit(X)
    errors = np.sum((X - panda.inverse_transform(panda.transform(X))) ** 2)
    assert panda.reconstruction_err_ == pytest.approx(errors / 30)
    assert len(panda.objective_history_) == panda.n_iter_ == 10


def test_score_of_zeros():
    zeros = np.zeros((4, 3, 5))
    panda = make_panda(2).fit(zeros)
    assert panda.score(zeros) == 1.0
    assert np.isfinite(panda.parts_).all()


def test_saliency_and_localize(X, fitted):
    saliency = np.einsum("kc,nchw->nkhw", fitted.appearances_, X)
    np.testing.assert_allclose(fitted.saliency(X), saliency)
    np.testing.assert_allclose(fitted.saliency_mean_, saliency.mean(axis=(0, 2, 3)))
    mean = fitted.saliency_mean_[2]
    assert_thresholded(fitted.localize(X, 2), saliency[:, 2], mean)
    assert_thresholded(fitted.localize(X, 2, threshold=0.1), saliency[:, 2], 0.1)


def test_localize_finds_a_planted_appearance():
    X = np.zeros((1, 4, 6, 6))
    X[0, 0, 1:3, 2:5] = 3.0  # channel 0 is on in a block
    X[0, 1] = 0.5
    panda = make_panda(2, 2, init=(np.eye(4)[:2], np.full((2, 6, 6), 0.01))).fit(X)
    np.testing.assert_array_equal(panda.localize(X, 0), X[:, 0] > 0)


def test_refine_lowers_each_sample_s_error(X):
    panda = make_panda(3, 4, max_iter=200).fit(X)
    A, Z = panda.appearances_.T, X.reshape(30, 6, 20)

    def errors(parts):
        P = parts.reshape(len(parts), 3, 20).swapaxes(1, 2)
        model = A @ (A.T @ Z @ P) @ P.swapaxes(1, 2)
        return ((Z - model) ** 2).sum(axis=(1, 2))

    start = np.broadcast_to(panda.parts_, (30, 3, 4, 5))
    refined = panda.refine(X)
    assert refined.min() >= 0
    assert np.all(errors(refined) <= errors(start) * (1 + 1e-9))
    assert errors(refined).sum() < 0.95 * errors(start).sum()
    np.testing.assert_array_equal(panda.refine(X, max_iter=0), start)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", ["pgd", "adam"])
def test_scale_of_the_data_does_not_matter(X, dtype, solver):
    X = X.astype(dtype)
    small, large = (
        make_panda(3, 4, solver=solver, max_iter=30).fit(X * dtype_scale)
        for dtype_scale in (np.array(1, dtype), np.array(1000, dtype))
    )
    expected = small.inverse_transform(small.transform(X))
    result = large.inverse_transform(large.transform(1000 * X)) / 1000
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    assert np.abs(result - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_that_cannot_be_squared(X, dtype):
    X = X.astype(dtype)
    for scale in (1e-9, 1e9):
        scaled = X * X.dtype.type(scale)
        expected = make_panda(3, 4).fit(X).score(X)
        assert make_panda(3, 4).fit(scaled).score(scaled) == pytest.approx(
            expected, rel=1e-3
        )
    for scale in (1e-18, 1e18) if dtype == "float32" else (1e-180, 1e180):
        with pytest.raises(ValueError, match="Divide X by its largest magnitude"):
            make_panda(3, 4).fit(X * X.dtype.type(scale))


def test_planted_parts_are_found():
    X, parts, _ = make_parts_appearances(100, 3, 5, random_state=0)
    panda = PartsAppearanceDecomposition(3, 5, n_init=3, random_state=0).fit(X)
    assert panda.score(X) > 0.999
    found = panda.parts_.reshape(3, -1)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = parts.reshape(3, -1) @ found.T
    assert sorted(cosines.argmax(axis=1)) == [0, 1, 2]
    assert cosines.max(axis=1).min() > 0.99


def test_n_init_keeps_the_best(X):
    def errors(n_init):
        panda = make_panda(3, 4, solver="pgd", init="random", n_init=n_init)
        return panda.fit(X).reconstruction_err_

    assert errors(5) < errors(1)


def test_given_start(X, fitted):
    on = make_panda(init=(fitted.appearances_, fitted.parts_), max_iter=1).fit(X)
    assert on.parts_.shape == fitted.parts_.shape
    assert on.reconstruction_err_ <= fitted.reconstruction_err_ * (1 + 1e-9)
    torch_start = tuple(map(torch.from_numpy, (fitted.appearances_, fitted.parts_)))
    again = make_panda(init=torch_start, max_iter=1).fit(X)
    assert_near(on.parts_, again.parts_, FITTED)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_random_state(X, batch_size):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (
        make_panda(3, 4, solver="pgd", batch_size=batch_size, random_state=seed)
        .fit(X)
        .parts_
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_convergence_warning_names_max_iter(X):
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        PartsAppearanceDecomposition(3, 4, max_iter=1).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PartsAppearanceDecomposition(3, 4).fit(X)


def test_verbose_shows_progress(X, capsys):
    make_panda(3, 4, solver="pgd", verbose=1, n_init=2).fit(X)
    shown = capsys.readouterr().err
    assert "start 2 of 2" in shown and "10/10" in shown and "objective=" in shown
    panda = make_panda(3, 4, verbose=1).fit(X)
    shown = capsys.readouterr().err
    assert f"{panda.n_iter_}/{panda.n_iter_}" in shown and "objective=" in shown
    make_panda(3, 4).fit(X)
    assert capsys.readouterr().err == ""


def test_arrays_in_odd_layouts(X, fitted):
    expected = fitted.transform(X)
    swapped = X.astype(">f8")
    assert_near(make_panda(3, 4).fit_transform(swapped), expected, FITTED)
    assert make_panda(3, 4).fit_transform(X.tolist()).dtype == np.float64
    backwards = expected[:, ::-1].copy()[:, ::-1]
    maps = fitted.inverse_transform(expected)
    assert_near(fitted.inverse_transform(backwards), maps)
    assert_near(fitted.inverse_transform(expected.astype(">f8")), maps)


def test_read_only_memory_is_shared(X):
    locked = X.copy()
    locked.flags.writeable = False
    assert as_tensor(locked).data_ptr() == locked.ctypes.data


@pytest.mark.parametrize("solver", ["pgd", "adam"])
def test_inside_inference_mode(X, solver):
    with torch.inference_mode():
        tensor = torch.from_numpy(X) * 1
        panda = make_panda(3, 4, solver=solver).fit(tensor)
    assert make_panda(3, 4, solver=solver).fit(tensor).score(tensor) == pytest.approx(
        panda.score(tensor)
    )


def test_gradients_do_not_flow(X):
    tensor = torch.from_numpy(X).requires_grad_()
    panda = make_panda(3, 4).fit(tensor)
    assert not panda.transform(tensor).requires_grad
    assert not panda.parts_.requires_grad


# scikit-learn


def test_feature_names(X, fitted):
    names = fitted.get_feature_names_out()
    assert len(names) == 12
    assert names[0] == "appearance0_part0" and names[5] == "appearance1_part2"
    # The names and the columns are in the same order.
    column = fitted.transform(X)[:, list(names).index("appearance3_part1")]
    assert_near(column, fitted.coefficients(X)[:, 3, 1])


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_grid_search_over_ranks(X, as_input):
    grid = {"n_parts": [1, 3], "n_appearances": [2, 4]}
    search = GridSearchCV(make_panda(max_iter=50), grid, cv=2, error_score="raise")
    search.fit(as_input(X))
    assert search.best_params_ == {"n_parts": 3, "n_appearances": 4}


def test_clone_and_refit_on_other_data(X, fitted):
    again = clone(fitted).fit(X)
    assert_near(again.parts_, fitted.parts_, FITTED)
    again.fit(X[:, :, 0])
    assert again.map_shape_ == (6, 5) and again.n_features_in_ == 6


# Bad input


def error_of(call, kind=ValueError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("value, name", [(np.nan, "NaN"), (np.inf, "infinity")])
def test_says_where_nan_and_infinity_are(X, fitted, kind, value, name):
    bad = X.copy()
    bad[17, 2, 1, 4] = bad[20, 0, 0, 0] = value
    bad = bad if kind == "numpy" else torch.from_numpy(bad)
    for call in (make_panda().fit, fitted.transform, fitted.score, fitted.refine):
        message = error_of(lambda call=call: call(bad))
        assert f"contains {name}, first at X[17, 2, 1, 4]" in message


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_wrong_kinds_of_numbers(X, kind):
    as_input = np.asarray if kind == "numpy" else torch.as_tensor
    assert "omplex" in error_of(lambda: make_panda().fit(as_input(X + 1j)))
    assert "0 sample" in error_of(lambda: make_panda().fit(as_input(X[:0])))
    assert "0 feature" in error_of(lambda: make_panda().fit(as_input(X[:, :0])))
    assert "Reshape" in error_of(lambda: make_panda().fit(as_input(X[0, 0, 0])))
    six_axes = as_input(X[:, :, None, None])
    assert "three spatial axes" in error_of(lambda: make_panda().fit(six_axes))


def test_sparse_input_is_refused(X):
    rows = X.reshape(30, -1)
    for sparse in (scipy.sparse.csr_array(rows), torch.from_numpy(rows).to_sparse()):
        message = error_of(lambda sparse=sparse: make_panda().fit(sparse), TypeError)
        assert "parse" in message


@pytest.mark.parametrize(
    "options, part",
    [
        ({"n_parts": 21}, "n_parts=21 exceeds the number of positions, 20"),
        ({"n_appearances": 7}, "n_appearances=7 exceeds the number of channels, 6"),
        ({"n_parts": 0}, "'n_parts'"),
        ({"n_parts": 2.5}, "'n_parts'"),
        ({"solver": "sgd"}, "'solver'"),
        ({"init": "svd"}, "'init'"),
        ({"learning_rate": 0}, "'learning_rate'"),
        ({"max_iter": 0}, "'max_iter'"),
        ({"tol": -1.0}, "'tol'"),
        ({"batch_size": 0}, "'batch_size'"),
        ({"channel_axis": 2}, "'channel_axis'"),
        ({"device": "gpu"}, "device='gpu' cannot be used here"),
        ({"map_shape": (6, 20)}, "map_shape=(6, 20)"),
        ({"solver": "pgd", "learning_rate": 1e9}, "Lower learning_rate"),
        ({"learning_rate": 0.1}, "solver='spg' has no learning rate"),
        ({"n_init": "many"}, "'n_init'"),
        ({"init": (np.eye(6),)}, "pair (appearances, parts)"),
        ({"init": (np.eye(6)[:, :5], np.ones((2, 4, 5)))}, "(6, 6)"),
        ({"init": (np.eye(6), np.ones((2, 5, 4)))}, "(2, 4, 5)"),
        ({"init": (np.eye(6), -np.ones((2, 4, 5)))}, "non-negative"),
        ({"init": (np.eye(6), np.full((2, 4, 5), np.nan))}, "NaN"),
        ({"init": (1j * np.eye(6), np.ones((2, 4, 5)))}, "omplex"),
        ({"init": (np.eye(6), np.ones((2, 4, 5))), "n_init": 2}, "n_init=1"),
        ({"init": (np.eye(6), np.ones((2, 4, 5))), "n_parts": 3}, "(3, 4, 5)"),
    ],
)
def test_bad_options(X, options, part):
    panda = make_panda(**options)
    assert part in error_of(lambda: panda.fit(X))
    with pytest.raises(NotFittedError):
        panda.transform(X)


def test_a_failed_fit_loses_nothing(X, fitted):
    panda = clone(fitted).fit(X)
    expected = panda.transform(X)
    for bad in (X[:, :2, 0], X[:, :5] * np.nan, X[:, :1]):
        with pytest.raises(ValueError):
            panda.fit(bad)
        np.testing.assert_array_equal(panda.transform(X), expected)


def test_flattened_maps_of_another_width(X):
    rows = X.reshape(30, -1)
    panda = make_panda(map_shape=(6, 4, 4))
    assert "needs 96 columns, but X has 120" in error_of(lambda: panda.fit(rows))
    for bad in ((120,), (-6, -20), (6.0, 20.0), (2, 2, 2, 3, 5)):
        panda = make_panda(map_shape=bad)
        assert "positive ints" in error_of(lambda p=panda: p.fit(rows))
    panda = make_panda(map_shape=(6, 4, 5), channel_axis=-1)
    assert "channels first" in error_of(lambda: panda.fit(rows))


def test_other_shapes_than_in_fit(X, fitted):
    for bad in (X[:, :5], X[:, :, :3], X.reshape(30, -1), X[..., None]):
        for method in ("transform", "saliency", "score", "refine"):
            message = error_of(lambda m=method, b=bad: getattr(fitted, m)(b))
            assert "is expecting" in message
    L = fitted.coefficients(X)
    for bad in (L[:, :3], L.reshape(30, -1)[:, :-1], L[0]):
        message = error_of(lambda b=bad: fitted.inverse_transform(b))
        assert "(n_samples, 12)" in message
    assert "NaN" in error_of(lambda: fitted.inverse_transform(L * np.nan))
    assert "omplex" in error_of(lambda: fitted.inverse_transform(L * 1j))


def test_bad_arguments_of_methods(X, fitted):
    assert "from 0 to 3" in error_of(lambda: fitted.localize(X, 4))
    assert "from 0 to 3" in error_of(lambda: fitted.localize(X, 1.0), TypeError)
    assert "'mean'" in error_of(lambda: fitted.localize(X, 0, threshold="median"))
    assert "finite" in error_of(lambda: fitted.localize(X, 0, threshold=np.nan))
    assert "max_iter" in error_of(lambda: fitted.refine(X, max_iter=-1))


def test_not_fitted(X):
    for method in ("transform", "saliency", "score", "refine", "inverse_transform"):
        with pytest.raises(NotFittedError):
            getattr(make_panda(), method)(X)
    with pytest.raises(NotFittedError):
        make_panda().get_feature_names_out()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_refine_at_any_scale(X, fitted, scale):
    single = X.astype("float32")
    A, Z = fitted.appearances_.T, X.reshape(30, 6, 20)

    def error(parts):
        P = parts.reshape(30, 3, 20).swapaxes(1, 2).astype(float)
        return np.sum((Z - A @ (A.T @ Z @ P) @ P.swapaxes(1, 2)) ** 2, axis=(1, 2))

    before = error(np.broadcast_to(fitted.parts_, (30, 3, 4, 5)))
    plain, scaled = (error(fitted.refine(single * np.float32(c))) for c in (1.0, scale))
    assert np.all(scaled <= before * (1 + 1e-5)) and scaled.sum() < 0.95 * before.sum()
    # A hundred steps magnify roundings of single precision to per cents of errors.
    np.testing.assert_allclose(scaled, plain, rtol=0.2)
    assert scaled.sum() == pytest.approx(plain.sum(), rel=0.03)
    assert np.isfinite(fitted.refine(0 * single)).all()


def test_refine_without_the_constraint_is_finite():
    X = np.random.RandomState(0).randn(5, 1, 6).astype("float32")
    panda = PartsAppearanceDecomposition(6, nonnegative=False, random_state=0).fit(X)
    assert np.isfinite(panda.refine(X, max_iter=300)).all()


def test_integers_of_numpy_as_options(X):
    for solver in ("spg", "pgd"):
        make_panda(np.int64(3), solver=solver, batch_size=np.int64(5)).fit(X)


def test_parts_of_init_that_are_zero_are_drawn_anew(X):
    start = np.eye(6), np.zeros((3, 4, 5))
    panda = PartsAppearanceDecomposition(init=start, random_state=0).fit(X)
    assert panda.parts_.any(axis=(1, 2)).all()
    assert panda.score(X) > 0.8


def test_volumes_of_so_many_positions_that_no_square_of_them_is_formed(monkeypatch):
    solvers = "panda_sklearn.solvers."
    choosing = sys.modules[solvers + "choosing"]
    alternation = sys.modules[solvers + "alternation"]
    monkeypatch.setattr(choosing, "LARGEST_FORMED", 20)
    monkeypatch.setattr(alternation, "is_cheaper_factored", lambda *shape: True)
    X, *_ = make_parts_appearances(
        40, 3, 4, n_channels=6, spatial_shape=(3, 4, 5), snr_db=10, random_state=0
    )
    for n_init in (1, 10):
        panda = PartsAppearanceDecomposition(3, 4, n_init=n_init, random_state=0)
        assert panda.fit(X).score(X) > 0.6


def test_advice_for_flattened_maps_and_single_samples(X, fitted):
    message = error_of(lambda: make_panda(3, 4).fit(X.reshape(30, -1)))
    assert "exceeds the number of channels" in message and "map_shape=" in message
    assert "X[None]" in error_of(lambda: fitted.transform(X[0]))
