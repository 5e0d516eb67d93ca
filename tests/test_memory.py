"""TensorMemory: hits where it should, misses where it must, and holds no networks."""

import pickle
import subprocess
import sys
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.cluster import FeatureAgglomeration
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.memory import TensorMemory
from tests.nearness import assert_near
from tests.networks import TinyGenerator

# Arrays from the cache lie elsewhere in memory, where kernels may round otherwise.
# "adam" magnifies that least, so that fits to them agree to about 1e-6.
STEADY = {"solver": "adam", "max_iter": 3, "tol": 0, "random_state": 0}
FITTED = 1e-4


class Counting(nn.Module):
    """Counts the samples that pass through it, in a place that copies share."""

    seen: list[int] = []  # noqa: RUF012, on the class so that copies share it

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Conv2d(2, 5, 3, padding=1)
        self.image = nn.Conv2d(5, 3, 1)

    def forward(self, z):
        self.seen.append(len(z))
        return self.image(self.maps(z.reshape(-1, 2, 4, 4)).relu())


@pytest.fixture
def counting():
    Counting.seen.clear()
    with torch.random.fork_rng():
        return Counting()


@pytest.fixture
def memory(tmp_path):
    return TensorMemory(tmp_path / "cache")


@pytest.fixture
def z():
    return torch.randn(30, 32, generator=torch.Generator().manual_seed(0))


NOTED = []  # calls; in a closure they would count as an argument


def double(x, y=None, note=None):
    NOTED.append(note)
    return 2 * x if isinstance(x, torch.Tensor | np.ndarray) else x


class Adder:
    def __init__(self, amount):
        self.amount = amount

    def add(self, x):
        NOTED.append(self.amount)
        return x + self.amount


@pytest.fixture
def calls(memory):
    """Notes of the calls of a function, and its cached version."""
    NOTED.clear()
    return NOTED, memory.cache(double, ignore=["note"])


def make_search(network, memory, **options):
    pipeline = Pipeline(
        [
            ("maps", GeneratorFeatureExtractor(network, "maps", batch_size=64)),
            ("panda", PartsAppearanceDecomposition(**STEADY)),
        ],
        memory=memory,
    )
    grid = {"panda__n_parts": [1, 2, 3, 4], "panda__n_appearances": [1, 2, 3]}
    return GridSearchCV(pipeline, grid, cv=3, error_score="raise", **options)


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_a_search_runs_the_network_once_a_fold(counting, memory, z, as_input):
    """12 settings x 3 folds: 3 training sets, 3 test sets, all samples at the end."""
    search = make_search(counting, memory).fit(as_input(z))
    assert sorted(Counting.seen) == [10, 10, 10, 20, 20, 20, 30]
    expected = make_search(counting, None).fit(as_input(z))
    for key in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(
            search.cv_results_[key], expected.cv_results_[key], atol=FITTED
        )
    assert_near(
        search.best_estimator_[-1].parts_, expected.best_estimator_[-1].parts_, FITTED
    )
    # Again, in new objects.
    Counting.seen.clear()
    make_search(pickle.loads(pickle.dumps(counting)), clone(memory, safe=False)).fit(
        as_input(z)
    )
    assert Counting.seen == []


def test_hooks_that_gather_what_they_see_do_not_make_calls_different(
    counting, memory, z
):
    noted, calls = [], 0

    def note(module, args):
        nonlocal calls
        calls += 1

    counting.register_forward_hook(lambda module, args, out: noted.append(len(out)))
    counting.maps.register_forward_pre_hook(note)
    for _ in range(2):
        make_search(counting, memory).fit(z)
        assert calls == 7


def test_a_network_that_counts_its_calls_is_another_after_each(counting, memory, z):
    counting.calls = 0

    def count(module, args):
        module.calls += 1

    counting.register_forward_pre_hook(count)
    expected = make_search(Counting(), None).fit(z)
    for n in (1, 2):
        search = make_search(counting, memory).fit(z)
        assert counting.calls >= 7 * n
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"],
            expected.cv_results_["mean_test_score"],
            atol=FITTED,
        )


@pytest.mark.slow
def test_processes_share_what_is_cached(memory, z):
    network = nn.Sequential()
    network.maps = nn.Conv2d(2, 5, 3, padding=1)
    extractor = GeneratorFeatureExtractor(
        network, "maps", forward=lambda network, z: network(z.reshape(-1, 2, 4, 4))
    )
    # joblib's workers take functions of a module, but not lambdas.
    extractor.set_params(forward=forward_maps)
    pipeline = make_pipeline(
        extractor,
        PartsAppearanceDecomposition(max_iter=3, tol=0, random_state=0),
        memory=memory,
    )
    grid = {"partsappearancedecomposition__n_parts": [1, 2, 3]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise", n_jobs=2)
    search.fit(z)
    stored = list(memory.location.glob("joblib/**/output.pkl"))
    assert len(stored) == 7
    search.set_params(n_jobs=1).fit(z)
    assert list(memory.location.glob("joblib/**/output.pkl")) == stored


def forward_maps(network, z):
    return network(z.reshape(-1, 2, 4, 4))


def test_a_new_process_finds_the_same_key(tmp_path):
    code = f"""
import torch
from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.memory import TensorMemory
from panda_sklearn.datasets import load_face_generator
def f(x, estimator, network):
    print("computed")
    return x
generator = load_face_generator()
cached = TensorMemory({str(tmp_path)!r}).cache(f)
cached(torch.arange(3.0), GeneratorFeatureExtractor(generator, "block8"), generator)
"""

    def run(hash_seed):
        return subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert run("1") == "computed\n"
    assert run("2") == ""


def test_transformers_from_the_cache_have_the_caller_s_network(memory, z):
    # Spectral norm and a lambda cannot be pickled.
    network = TinyGenerator()
    extractor = GeneratorFeatureExtractor(
        network, "block1", forward=lambda network, z: network(z)
    )
    pipeline = make_pipeline(
        extractor,
        PartsAppearanceDecomposition(2, 2, **STEADY),
        memory=memory,
    )
    first = clone(pipeline).fit(z[:, :6])
    again = clone(pipeline).fit(z[:, :6])
    assert first[0].generator is network and again[0].generator is network
    assert again[0].forward is extractor.forward
    assert_near(again[-1].parts_, first[-1].parts_, FITTED)
    size = sum(f.stat().st_size for f in memory.location.glob("joblib/**/output.pkl"))
    features = 30 * 5 * 4 * 4 * 4
    assert features < size < features + 10_000


def test_what_was_fitted_through_it_is_as_if_fitted_without(counting, memory, z):
    pipeline = make_search(counting, memory).estimator.set_params(panda__n_parts=2)
    cached = clone(pipeline).fit(z)
    cached = clone(pipeline).fit(z)
    plain = clone(pipeline).set_params(memory=None).fit(z)
    for name in ("transform", "score"):
        expected = getattr(plain, name)(z[:4])
        np.testing.assert_allclose(
            getattr(cached, name)(z[:4]), expected, rtol=FITTED, atol=FITTED
        )
    assert "_memory" not in pickle.loads(pickle.dumps(cached))[0].__dict__
    assert "_memory" not in clone(cached)[0].__dict__


def test_unions_of_layers(memory, z):
    network = TinyGenerator()
    union = FeatureUnion(
        [
            (
                layer,
                make_pipeline(
                    GeneratorFeatureExtractor(network, layer),
                    PartsAppearanceDecomposition(2, 2, **STEADY),
                ),
            )
            for layer in ("block1", "block2")
        ]
    )
    pipeline = make_pipeline(union, "passthrough", memory=memory)
    expected = clone(pipeline).fit(z[:, :6]).transform(z[:, :6])
    fitted = clone(pipeline).fit(z[:, :6])
    assert_near(fitted.transform(z[:, :6]), expected, FITTED)
    for _, inner in fitted[0].transformer_list:
        assert inner[0].generator is network


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.maps.weight.data.mul_(1.001),
        lambda network: network.eval(),
        lambda network: network.double(),
        lambda network: setattr(network.maps, "padding", (2, 2)),
        lambda network: network.maps.register_forward_hook(lambda m, a, o: 2 * o),
        lambda network: network.__class__.__bases__,  # nothing
    ],
    ids=["weights", "mode", "dtype", "setting", "hook", "nothing"],
)
def test_a_changed_network_is_another(counting, calls, change, request):
    noted, cached = calls
    cached(1, counting)
    change(counting)
    cached(1, counting)
    unchanged = request.node.callspec.id == "nothing"
    assert len(noted) == (1 if unchanged else 2)


def test_functions_count_by_code_defaults_and_closure(calls):
    noted, cached = calls

    def function(factor, offset):
        return lambda x, offset=offset: factor * x + offset

    one, same, other = (eval(f"lambda x: x + {n}") for n in (1, 1, 2))
    for given in (one, same, other):
        cached(1, given)
    assert len(noted) == 2
    for factor, offset in ((2, 0), (2, 0), (3, 0), (2, 1)):
        cached(1, function(factor, offset))
    assert len(noted) == 5


def test_a_network_made_by_the_function_comes_back_whole(memory):
    cached = memory.cache(lambda n: nn.Linear(n, n))
    made = [cached(3) for _ in range(2)]
    for network in made:
        assert all(isinstance(p, nn.Parameter) for p in network.parameters())
        assert len(list(network.parameters())) == 2
    assert torch.equal(made[0].weight, made[1].weight)


def test_tensors_count_by_their_content(calls):
    noted, cached = calls
    x = torch.arange(6.0)
    for value in (x, x.clone(), torch.arange(12.0)[::2] / 2):
        assert torch.equal(cached(value), 2 * x)
    assert len(noted) == 1
    different = [x.reshape(2, 3), x.double(), x + 1, -x, x.numpy(), x > 2, x[:0]]
    for value in different:
        cached(value)
    assert len(noted) == 1 + len(different)
    cached(x, note="ignored")
    cached(x, None)
    assert len(noted) == 1 + len(different)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6, dtype=torch.int32).reshape(2, 3),
        torch.randn(3, 4).T,
        torch.randn(2).bfloat16(),
        torch.tensor(3.5),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.tensor([1 + 2j, 3j]).conj(),
        torch.ones(2, requires_grad=True),
    ],
    ids=lambda v: f"{v.dtype} {tuple(v.shape)}",
)
def test_results_come_back_as_they_were(memory, value):
    cached = memory.cache(lambda: {"value": (value, "text", np.arange(3))})
    for _ in range(2):
        found, text, array = cached()["value"]
        assert found.dtype == value.dtype and found.requires_grad == value.requires_grad
        assert (
            torch.equal(found, value) and text == "text" and array.tolist() == [0, 1, 2]
        )


def test_results_can_be_written_to(memory):
    cached = memory.cache(lambda: torch.zeros(3))
    cached().add_(1)
    assert cached().add_(1).tolist() == [1, 1, 1]


def test_other_versions_compute_anew(calls, monkeypatch):
    noted, cached = calls
    cached(1)
    monkeypatch.setattr("panda_sklearn.utils.hashing.VERSIONS", ("0", "0"))
    cached(1)
    assert len(noted) == 2


def test_methods_and_their_objects(memory):
    NOTED.clear()
    for amount in (1, 2, 1):
        assert memory.cache(Adder(amount).add)(10) == 10 + amount
    assert NOTED == [1, 2]


def test_threads_wait_for_each_other(memory):
    started = threading.Barrier(4)
    results = []
    NOTED.clear()
    cached = memory.cache(double)

    def work():
        started.wait()
        results.append(cached(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [3] * 4 and len(NOTED) == 1


def test_an_error_is_not_kept(memory):
    noted = []

    def fails_once(x):
        noted.append(x)
        if len(noted) == 1:
            raise ValueError("once")
        return x

    cached = memory.cache(fails_once)
    with pytest.raises(ValueError, match="once"):
        cached(1)
    assert cached(1) == 1


def test_wherever_scikit_learn_takes_a_memory(memory):
    X = np.random.default_rng(0).normal(size=(10, 6))
    plain = FeatureAgglomeration(2).fit_transform(X)
    cached = FeatureAgglomeration(2, memory=memory)
    np.testing.assert_array_equal(cached.fit_transform(X), plain)
    np.testing.assert_array_equal(clone(cached).fit_transform(X), plain)


def test_no_location_no_cache(counting, z):
    pipeline = make_search(counting, TensorMemory(None)).estimator
    pipeline.set_params(panda__n_parts=1).fit(z)
    pipeline.fit(z)
    assert sum(Counting.seen) == 60


def test_verbose_says_what_is_called(memory, capsys):
    cached = TensorMemory(memory.location, verbose=1).cache(double)
    for _ in range(2):
        cached(torch.ones(100))
    assert capsys.readouterr().out == "[TensorMemory] calling double\n"


def test_clear_and_reduce_size(calls, memory):
    noted, cached = calls
    cached(1)
    memory.clear(warn=False)
    assert not list(memory.location.iterdir())
    cached(1)
    assert len(noted) == 2
    cached(2)
    memory.reduce_size(items_limit=1)
    assert len(list(memory.location.glob("joblib/**/output.pkl"))) == 1
    assert repr(memory) == f"TensorMemory(location={memory.location!r})"
    assert isinstance(pickle.loads(pickle.dumps(memory)), TensorMemory)
    assert joblib.hash(memory)


class Locked(TransformerMixin, BaseEstimator):
    """An estimator that cannot be hashed."""

    def __init__(self, lock):
        self.lock = lock


def test_what_cannot_be_hashed_is_said(calls):
    noted, cached = calls
    with pytest.raises(
        TypeError, match=r"cannot be hashed for the cache \(cannot pickle.*memory=None"
    ):
        cached(Locked(threading.Lock()))
    with pytest.raises(TypeError, match="layout"):
        cached(torch.eye(3).to_sparse())
    assert noted == []


def test_ignored_arguments_must_exist(memory):
    with pytest.raises(ValueError, match="ignore must name arguments"):
        memory.cache(lambda x: x, ignore=["y"])


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


def no_pickle(path):
    path.write_bytes(b"no pickle")


def a_pickle_that_raises(path):
    path.write_bytes(b"cpanda_sklearn\nnothing\n.")


def deleted(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage", [cut_off, emptied, no_pickle, a_pickle_that_raises, deleted]
)
def test_a_damaged_result_is_computed_again(calls, memory, damage):
    noted, cached = calls
    x = torch.randn(10, generator=torch.Generator().manual_seed(0))
    cached(x)
    (path,) = memory.location.glob("joblib/**/output.pkl")
    whole = path.read_bytes()
    damage(path)
    for _ in range(2):
        assert torch.equal(cached(x), 2 * x)
    assert len(noted) == 2
    assert path.read_bytes() == whole


def test_results_deleted_at_any_time(memory):
    cached, errors, started = memory.cache(double), [], threading.Barrier(4)

    def call(i):
        assert cached(i % 3) == i % 3

    def work(act):
        started.wait()
        try:
            for i in range(100):
                act(i)
        except Exception as error:
            errors.append(error)

    def clear(i):
        memory.clear(warn=False)

    def reduce_size(i):
        memory.reduce_size(items_limit=0)

    threads = [
        threading.Thread(target=work, args=(act,))
        for act in (call, call, clear, reduce_size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_full_disk(calls, memory, monkeypatch):
    _, cached = calls

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panda_sklearn.utils.files.os.replace", fail)
    with pytest.warns(RuntimeWarning, match=r"could not be kept.*No space left"):
        assert cached(3) == 3
    assert not list(memory.location.rglob("*.part"))


@pytest.mark.parametrize("folder", ["file", "file/within"])
def test_a_folder_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").touch()
    cached = TensorMemory(tmp_path / folder).cache(double)
    with pytest.warns(RuntimeWarning, match=r"could not be kept.*NotADirectoryError"):
        assert cached(3) == 3


def test_a_folder_that_cannot_be_written_to(calls, monkeypatch):
    _, cached = calls

    def fail(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("panda_sklearn.memory.Path.mkdir", fail)
    with pytest.warns(RuntimeWarning, match=r"could not be kept.*Permission denied"):
        assert cached(3) == 3


def test_a_result_that_cannot_be_pickled(memory):
    cached = memory.cache(lambda: (generator for generator in "abc"))
    with pytest.warns(RuntimeWarning, match=r"could not be kept.*cannot pickle"):
        assert list(cached()) == ["a", "b", "c"]
    assert not list(memory.location.rglob("output*"))


@pytest.mark.parametrize("ignore", ["x", 3, [3], [["x"]]], ids=repr)
def test_ignored_arguments_are_a_list_of_names(memory, ignore):
    with pytest.raises(TypeError, match=r"ignore must be a list.*ignore=\['"):
        memory.cache(lambda x: x, ignore=ignore)


@pytest.mark.parametrize("location", [3, True, ["a"], b"a"], ids=repr)
def test_locations_of_other_types(location):
    memory = TensorMemory(location)
    for use in (lambda: memory.cache(double), memory.clear, memory.reduce_size):
        with pytest.raises(TypeError, match="location must be"):
            use()
