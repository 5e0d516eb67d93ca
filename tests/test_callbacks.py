"""Callbacks of scikit-learn, where it has them, are told of a fit's tasks."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.datasets import make_parts_appearances
from panda_sklearn.utils.callbacks import OF_CALLBACKS
from tests.nearness import assert_near

sklearn_callback = pytest.importorskip(
    "sklearn.callback", reason="scikit-learn has callbacks from 1.9 on"
)
ProgressBar = sklearn_callback.ProgressBar
ScoringMonitor = sklearn_callback.ScoringMonitor

OPTIONS = {
    "spg": {},
    "spg, free parts": {"nonnegative": False},
    "pgd": {"solver": "pgd"},
    "pgd, batches": {"solver": "pgd", "batch_size": 7},
    "adam": {"solver": "adam"},
    "adam, batches": {"solver": "adam", "batch_size": 7},
    "three starts": {"solver": "adam", "n_init": 3, "init": "random"},
}


class Recorder:
    """Keeps what it is told; may stop or fail at the end of tasks of a name."""

    def __init__(self, stop=(), fail=None, wants=True):
        self.stop, self.fail = stop, fail
        self.told, self.estimators, self.open = [], {}, []
        if not wants:
            self.on_fit_task_end = self.end_without_estimator

    def setup(self, estimator, context):
        self.told.append("setup")

    def teardown(self, estimator, context):
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.open.append(context)
        self.told.append(("begin", context.task_name, context.task_id))
        self.X, self.y = X, y

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        path = context.task_name, getattr(context.parent, "task_id", None)
        self.estimators.setdefault(path, []).append(fitted_estimator)
        return self.end_without_estimator(estimator, context)

    def end_without_estimator(self, estimator, context):
        assert self.open.pop() is context
        self.told.append(("end", context.task_name, context.task_id))
        if context.task_name == self.fail:
            raise RuntimeError("the callback failed")
        return context.task_name in self.stop


@pytest.fixture
def X():
    return make_parts_appearances(
        40, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
    )[0]


@pytest.fixture
def many():
    """More samples than "spg" keeps in memory, so that it makes passes."""
    return make_parts_appearances(
        300, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=3, random_state=0
    )[0]


def new(**options):
    options = {"n_parts": 3, "n_appearances": 4, "max_iter": 6, "tol": 0} | options
    return PartsAppearanceDecomposition(random_state=0, **options)


def state(panda):
    return {k: v for k, v in vars(panda).items() if k not in OF_CALLBACKS}


def assert_same(one, other):
    """The same attributes, to the last bit."""
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_estimators_of_iterations(X, options):
    """Each is what a fit that ended there would be; none changes the fit."""
    recorder = Recorder()
    watched = new(**options).set_callbacks(recorder).fit(X)
    plain = new(**options).fit(X)
    assert_same(watched, plain)
    assert recorder.told[0] == "setup" and recorder.told[-1] == "teardown"
    assert recorder.open == []
    starts = {"start"} if "n_init" in options else set()
    assert {name for name, _ in recorder.estimators} == {"fit", "iteration"} | starts
    if starts:
        assert len(recorder.estimators["start", 0]) == 3
        assert_same(recorder.estimators["start", 0][-1], plain)
    assert_same(recorder.estimators["fit", None][0], plain)
    iterations = recorder.estimators["iteration", 0]
    assert len(iterations) == plain.n_iter_ >= 2
    short = new(**options).set_params(n_init="auto", max_iter=2).fit(X)
    second = iterations[1].set_params(n_init="auto", max_iter=2)
    assert_same(second, short)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, iter])
def test_passes_are_the_fits_own(many, nonnegative, kind):
    class Batches:
        def __iter__(self):
            return iter([many[:120], many[120:]])

    data = Batches() if kind is iter else kind(many)
    watched, plain = (new(nonnegative=nonnegative) for _ in range(2))
    recorder = Recorder()
    watched.set_callbacks(recorder).fit(data)
    plain.fit(data)
    assert_same(watched, plain)
    last = recorder.estimators["iteration", 0][-1]
    assert_near(last.parts_, plain.parts_, 1e-12)
    assert last.n_passes_ >= plain.n_passes_


def test_nothing_is_computed_for_callbacks_that_want_nothing(X, monkeypatch):
    monkeypatch.setattr("panda_sklearn._learning.attributes_of_fit", None)
    recorder = Recorder(wants=False)
    new().set_callbacks(recorder).fit(X)
    ended = [each[1] for each in recorder.told if each[0] == "end"]
    assert ended == 6 * ["iteration"] + ["fit"]


def test_what_callbacks_are_given(X):
    """X as it came, even where it could be called."""

    class Callable:
        def __iter__(self):
            return iter([X])

        def __call__(self):
            raise AssertionError

    data, y = Callable(), np.arange(40)
    recorder = Recorder()
    new().set_callbacks(recorder).fit(data, y)
    assert recorder.X is data and recorder.y is y


@pytest.mark.parametrize(
    "stop, n_iterations, n_starts",
    [(["iteration"], 3, 3), (["start"], 6, 1), (["iteration", "start"], 1, 1)],
)
def test_callbacks_can_stop(X, stop, n_iterations, n_starts):
    recorder = Recorder(stop)
    options = OPTIONS["three starts"] | {"tol": 1e-9}
    with warnings.catch_warnings():
        if "iteration" not in stop:
            warnings.simplefilter("ignore")
        panda = new(**options).set_callbacks(recorder).fit(X)
    ended = [each[1] for each in recorder.told if each[0] == "end"]
    assert ended.count("iteration") == n_iterations
    assert ended.count("start") == n_starts and ended.count("fit") == 1
    assert panda.n_iter_ == n_iterations // n_starts


@pytest.mark.parametrize("fail", ["iteration", "fit"])
@pytest.mark.parametrize("fitted", [False, True])
def test_a_callback_that_fails_leaves_nothing_behind(X, fail, fitted):
    panda = new()
    if fitted:
        panda.partial_fit(X)
        panda.layer_ = "conv"
    recorder = Recorder(fail=fail)
    panda.set_callbacks(recorder)
    before = dict(vars(panda))
    with pytest.raises(RuntimeError, match="the callback failed"):
        panda.fit(X)
    assert recorder.told[-1] == "teardown"
    assert vars(panda).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(panda).items())
    panda.set_callbacks().fit(X)
    assert OF_CALLBACKS.isdisjoint(vars(panda))


def test_scoring_monitor(many):
    monitor = ScoringMonitor(scoring={"score": PartsAppearanceDecomposition.score})
    panda = new().set_callbacks(monitor).fit(many, np.zeros(len(many)))
    log = monitor.get_logs().data
    of_fit, *scores = (row["score"] for row in log)
    assert len(scores) == panda.n_iter_ > 1
    assert np.all(np.diff(scores) >= -1e-12) and scores[-1] > scores[0]
    assert of_fit == panda.score(many)
    assert scores[-1] == pytest.approx(of_fit, rel=1e-12)


def test_progress_bars(X, capsys, monkeypatch):
    """In a fit with several starts, a pipeline and a search."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    new(**OPTIONS["three starts"]).set_callbacks(ProgressBar()).fit(X)
    shown = capsys.readouterr().out
    assert "PartsAppearanceDecomposition - fit" in shown and "100%" in shown
    assert "PartsAppearanceDecomposition - start #2" in shown
    y = np.arange(40) % 2
    pipeline = make_pipeline(new(), LogisticRegression(C=1e-3, max_iter=1000))
    pipeline.set_callbacks(ProgressBar()).fit(X, y)
    shown = capsys.readouterr().out
    assert "PartsAppearanceDecomposition - fit #0" in shown
    search = GridSearchCV(new(), {"n_parts": [2, 3]}, cv=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    shown = capsys.readouterr().out
    assert shown.count("PartsAppearanceDecomposition - fit") >= 5


def test_searches_agree_with_and_without(X):
    searches = [GridSearchCV(new(), {"n_parts": [2, 3]}, cv=2) for _ in range(2)]
    plain, watched = searches
    plain.fit(X)
    watched.estimator.set_callbacks(Recorder())
    watched.fit(X)
    assert_same(plain.best_estimator_, watched.best_estimator_)
    scores = (each.cv_results_["mean_test_score"] for each in searches)
    np.testing.assert_array_equal(*scores)


def test_copies_and_files(X, tmp_path):
    """Clones and pickles keep the callbacks, files do not."""
    recorder = Recorder()
    panda = new().set_callbacks(recorder).fit(X)
    assert clone(panda)._skl_callbacks == [recorder]
    for estimator in (panda, recorder.estimators["iteration", 0][-1]):
        estimator.save(tmp_path / "panda.safetensors")
        loaded = PartsAppearanceDecomposition.load(tmp_path / "panda.safetensors")
        assert OF_CALLBACKS.isdisjoint(vars(loaded))
        assert_near(loaded.parts_, panda.parts_, 1e-12)
    file = io.BytesIO()
    pickle.dump(new().set_callbacks(ScoringMonitor(scoring="r2")).fit(X), file)
    file.seek(0)
    assert_same(pickle.load(file), panda)


def test_partial_fit_has_no_tasks(X):
    recorder = Recorder()
    new().set_callbacks(recorder).partial_fit(X).partial_fit(X)
    assert recorder.told == []


def test_a_new_fit_forgets_before_it_is_told(X):
    recorder = Recorder()
    panda = new().partial_fit(X)
    panda.layer_ = "conv"
    panda.set_callbacks(recorder).fit(X)
    for estimator in recorder.estimators["iteration", 0]:
        assert state(estimator).keys() == state(panda).keys()
