"""At home in scikit-learn: its own checks, and its tools around both estimators."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_html_repr
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from tests.nearness import assert_near
from tests.networks import TinyGenerator

DECOMPOSITIONS = [
    PartsAppearanceDecomposition(max_iter=50),
    PartsAppearanceDecomposition(n_parts=1, n_appearances=1, max_iter=50),
    PartsAppearanceDecomposition(solver="adam", max_iter=50),
    PartsAppearanceDecomposition(
        solver="pgd", init="random", batch_size=5, n_init=2, max_iter=50
    ),
    PartsAppearanceDecomposition(nonnegative=False, max_iter=50),
    PartsAppearanceDecomposition(channel_axis=-1, max_iter=50),
]


class AnyWidth(nn.Module):
    """Takes vectors of any width; double precision, as the checks compare to 1e-9."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv1d(1, 3, 1).double()
        self.image = nn.Conv1d(3, 1, 1).double()
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(
                    torch.linspace(-1, 1 + i, parameter.numel()).view_as(parameter)
                )

    def forward(self, x):
        return self.image(self.maps(x[:, None].double()))


EXTRACTORS = [
    GeneratorFeatureExtractor(AnyWidth(), "maps"),
    GeneratorFeatureExtractor(AnyWidth(), "image", tap="input", batch_size=3),
]

# Checks that cannot hold, with the reason.
CANNOT_HOLD = {
    "check_estimators_overwrite_params": (
        "compares joblib's hashes of the network and of its deep copy, which differ "
        "for any torch module"
    ),
}


def expected_failures(estimator):
    extracts = isinstance(estimator, GeneratorFeatureExtractor)
    return CANNOT_HOLD if extracts else {}


@pytest.mark.filterwarnings("ignore")  # the checks set filters of their own
@parametrize_with_checks(
    DECOMPOSITIONS + EXTRACTORS,
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_scikit_learn_checks_are_run():
    """A wrong tag would have every check skipped without a word."""
    for estimator in DECOMPOSITIONS + EXTRACTORS:
        _, parameters = parametrize_with_checks([estimator]).args
        assert len(list(parameters)) > 40


@pytest.fixture
def X():
    return np.random.default_rng(0).random((30, 4, 3, 3))


@pytest.fixture
def z():
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def panda():
    """By the solver that magnifies roundings least, so that two fits agree."""
    return PartsAppearanceDecomposition(
        2, 3, solver="adam", max_iter=5, tol=0, random_state=0
    )


@pytest.mark.parametrize("container", ["pandas", "polars"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_data_frames(X, panda, container, kind):
    pytest.importorskip(container)
    frame = panda.set_output(transform=container).fit_transform(kind(X))
    assert type(frame).__module__.partition(".")[0] == container
    assert list(frame.columns)[:3] == [
        "appearance0_part0",
        "appearance0_part1",
        "appearance1_part0",
    ]
    plain = clone(panda).set_output(transform="default").fit(X).transform(X)
    assert_near(np.asarray(frame), plain, 1e-9)


def test_unions_and_columns(X, z, panda):
    network = TinyGenerator()
    union = FeatureUnion(
        [
            (
                layer,
                make_pipeline(GeneratorFeatureExtractor(network, layer), clone(panda)),
            )
            for layer in ("block1", "block2")
        ]
    )
    coefficients = union.fit_transform(z)
    assert coefficients.shape == (30, 12)
    assert union.get_feature_names_out()[0] == "block1__appearance0_part0"
    rows = np.hstack([X.reshape(30, 36), np.arange(30.0)[:, None]])
    columns = ColumnTransformer(
        [("maps", clone(panda).set_params(map_shape=(4, 3, 3)), slice(0, 36))],
        remainder="passthrough",
    )
    found = columns.fit_transform(rows)
    assert_near(found[:, :-1], clone(panda).fit(X).transform(X), 1e-9)
    assert columns.get_feature_names_out()[-1] == "remainder__x36"


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_metadata_goes_past(z, panda, kind):
    y = (z[:, 0] > 0).numpy()
    weights = np.where(y, 3.0, 1.0)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            GeneratorFeatureExtractor(TinyGenerator(), "block1"),
            panda,
            LogisticRegression().set_fit_request(sample_weight=True),
        )
        heavy = clone(pipeline).fit(kind(z), y, sample_weight=weights)
        plain = clone(pipeline).fit(kind(z), y)
    assert not np.allclose(heavy[-1].coef_, plain[-1].coef_)
    assert_near(heavy[1].parts_, plain[1].parts_, 1e-4)  # not weighted


def test_representations_stay_short(panda):
    network = nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(300)])
    pipeline = make_pipeline(GeneratorFeatureExtractor(network, "0"), panda)
    assert len(repr(pipeline)) < 2_000
    html = estimator_html_repr(pipeline)
    assert "GeneratorFeatureExtractor" in html and len(html) < 100_000


def test_a_search_copies_no_network(z, panda):
    """Every candidate and fold uses the very network that was given."""
    copies = []

    class Precious(TinyGenerator):
        def __deepcopy__(self, memo):
            copies.append(self)
            return self

        def __reduce_ex__(self, protocol):
            copies.append(self)
            return super().__reduce_ex__(protocol)

    network = Precious()
    pipeline = make_pipeline(GeneratorFeatureExtractor(network, "block1"), panda)
    grid = {
        "generatorfeatureextractor__layer": ["block1", "block2"],
        "partsappearancedecomposition__n_parts": [1, 2, 3],
    }
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(z)
    assert copies == [] and search.best_estimator_[0].generator is network


def from_rows(network, z):
    return network(z.reshape(-1, 2, 3, 1))


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_search_over_layers_solvers_and_ranks_from_latents(z, kind, n_jobs):
    network = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Tanh(), nn.Conv2d(5, 4, 1))
    pipeline = Pipeline(
        [
            ("maps", GeneratorFeatureExtractor(network, "0", forward=from_rows)),
            ("panda", PartsAppearanceDecomposition(max_iter=5, tol=0, random_state=0)),
        ]
    )
    choices = {
        "maps__layer": ["0", "1", "2"],
        "panda__solver": ["spg", "pgd", "adam"],
        "panda__n_parts": [1, 2],
        "panda__n_appearances": [1, 2, None],
    }
    search = RandomizedSearchCV(
        pipeline,
        choices,
        n_iter=6,
        cv=2,
        n_jobs=n_jobs,
        random_state=0,
        error_score="raise",
    ).fit(kind(z))
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and search.score(kind(z)) > 0.3
    assert type(search.transform(kind(z))) is type(kind(z))


def test_preprocessing_of_maps(X, panda):
    """Steps of scikit-learn before the decomposition, on flattened maps."""
    pipeline = make_pipeline(
        FunctionTransformer(lambda X: X.reshape(len(X), -1)),
        StandardScaler(with_mean=False),
        panda.set_params(map_shape=(4, 3, 3)),
    )
    T = pipeline.fit_transform(X)
    back = pipeline[1].inverse_transform(panda.inverse_transform(T))
    assert back.shape == (30, 36)


DISPATCH = """
import numpy as np, sklearn, torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from tests.networks import TinyGenerator

z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
y = (z[:, 0] > 0).long()
crossed = []
for name in ("numpy", "__array__", "tolist"):
    def watched(self, *args, name=name, method=getattr(torch.Tensor, name), **kwargs):
        if self.numel() > 40:
            crossed.append((name, tuple(self.shape)))
        return method(self, *args, **kwargs)
    setattr(torch.Tensor, name, watched)
pipeline = make_pipeline(
    GeneratorFeatureExtractor(TinyGenerator(), "block1"),
    PartsAppearanceDecomposition(2, 3, max_iter=20, tol=0, random_state=0),
    StandardScaler(),
    LogisticRegression(),
)
with sklearn.config_context(array_api_dispatch=True):
    pipeline.fit(z, y)
    predicted = pipeline.predict(z)
    assert isinstance(predicted, torch.Tensor)
    assert isinstance(pipeline[-1].coef_, torch.Tensor)
    assert isinstance(pipeline[:2].transform(z), torch.Tensor)
    assert not crossed, crossed
    score = pipeline.score(z, y)
    search = GridSearchCV(
        pipeline, {"partsappearancedecomposition__n_parts": [1, 2]}, cv=2,
        error_score="raise",
    ).fit(z, y)
pipeline.fit(z.numpy(), y.numpy())
assert np.mean(predicted.numpy() == pipeline.predict(z.numpy())) > 0.95
print("dispatched")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("array_api_compat") is None
    and not hasattr(
        __import__("sklearn.externals", fromlist=["x"]), "array_api_compat"
    ),
    reason="this scikit-learn needs array-api-compat for its dispatch",
)
def test_all_the_way_to_a_classifier_in_torch():
    """With dispatch no activations or coefficients become numpy arrays."""
    process = subprocess.run(
        [sys.executable, "-c", DISPATCH],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
    )
    assert process.stdout == "dispatched\n", process.stderr
