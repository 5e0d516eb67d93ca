"""GeneratorFeatureExtractor as users call it."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.generators import StyleGAN2, list_layers
from tests.networks import Containers, TinyGenerator, TinyTransformer


@pytest.fixture
def network():
    return TinyGenerator()


@pytest.fixture
def z():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


def make_extractor(network, layer="block1", **options):
    return GeneratorFeatureExtractor(network, layer, **{"batch_size": 3, **options})


def test_transform_is_the_layer_s_output(network, z):
    expected, images = network.by_hand(z)
    extractor = make_extractor(network).fit(z)
    features = extractor.transform(z)
    assert type(features) is torch.Tensor and not features.requires_grad
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(extractor.generate(z), images)
    assert extractor.feature_shape_ == (5, 4, 4)
    assert extractor.n_features_in_ == 6


def test_numpy_in_numpy_out(network, z):
    extractor = make_extractor(network).fit(z)
    latents = z.numpy().astype("float64")  # cast to the network's single precision
    for result, expected in (
        (extractor.transform(latents), extractor.transform(z)),
        (extractor.generate(latents), extractor.generate(z)),
    ):
        assert isinstance(result, np.ndarray) and result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_generate_with_features_runs_on_from_them(network, z):
    extractor = make_extractor(network).fit(z)
    features = extractor.transform(z)
    # A copy of the features may lie elsewhere in memory, for which kernels differ.
    torch.testing.assert_close(
        extractor.generate(z, features=features), extractor.generate(z)
    )
    expected = network.by_hand(z, lambda x: 3 - x)[1]
    torch.testing.assert_close(extractor.generate(z, features=3 - features), expected)
    torch.testing.assert_close(
        extractor.generate(z, features=lambda x: 3 - x), expected
    )
    torch.testing.assert_close(
        extractor.generate(z, features=(3 - features).double().numpy()), expected
    )


def test_batch_size_does_not_matter(network, z):
    whole, single = (
        make_extractor(network, batch_size=size).fit(z).transform(z) for size in (7, 1)
    )
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)


def test_noise_is_the_same_with_and_without_an_edit(z):
    extractor = make_extractor(TinyGenerator(noise=1.0)).fit(z)
    before = torch.get_rng_state()
    images = extractor.generate(z)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)  # whatever the user draws in between
    assert torch.equal(extractor.generate(z, features=lambda x: x), images)
    # The same in each batch, up to rounding: batches lie at other places in memory.
    twice = extractor.generate(torch.cat([z[:3], z[:3]]))
    torch.testing.assert_close(twice, torch.cat([images[:3], images[:3]]))
    noiseless = make_extractor(TinyGenerator()).fit(z).generate(z)
    assert (noiseless - images).abs().max() > 0.1


def test_forward_says_how_to_call(network, z):
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def sample(self, z, scale):
            return {"image": self.inner(scale * z)}

    def forward(generator, latents):
        return generator.sample(latents, scale=0.5)["image"]

    extractor = make_extractor(Conditional(), "inner.block1", forward=forward).fit(z)
    expected, images = network.by_hand(0.5 * z)
    torch.testing.assert_close(extractor.transform(z), expected)
    torch.testing.assert_close(extractor.generate(z), images)


def test_tap_select_and_call(network, z):
    image_input = make_extractor(network, "to_rgb2", tap="input").fit(z)
    assert image_input.feature_shape_ == (4, 8, 8)
    second = make_extractor(network, "norm", call=1).fit(z)
    assert second.transform(z).shape == (7, 5, 4, 4)
    with pytest.raises(ValueError, match="say which with call"):
        make_extractor(network, "norm").fit(z)
    containers = Containers()
    chosen = make_extractor(containers, "pair", select=1).fit(z)
    torch.testing.assert_close(chosen.transform(z), 3 * z[:, :, None])
    with pytest.raises(ValueError, match="say which with select"):
        make_extractor(containers, "pair").fit(z)
    with pytest.raises(TypeError, match=r"^select='name' of layer 'named' is of type"):
        make_extractor(containers, "named", select="name").fit(z)


def test_networks_that_are_no_generators():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    images = torch.rand(5, 3, 8, 8)
    network(images)
    extractor = make_extractor(network, "0").fit(images)
    with torch.no_grad():
        torch.testing.assert_close(extractor.transform(images), network[0](images))
    assert extractor.latent_shape_ == (3, 8, 8)
    tokens = nn.Sequential(nn.Embedding(10, 4), nn.Conv1d(5, 2, 1))
    labels = np.arange(10).reshape(2, 5)  # integers stay integers
    assert make_extractor(tokens, "0").fit(labels).transform(labels).shape == (2, 5, 4)


def test_the_network_is_left_as_it_was(network, z):
    network.train()
    network.block1.eval()
    network.block2.requires_grad_(False)
    modes = [m.training for m in network.modules()]
    grads = [p.requires_grad for p in network.parameters()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    pointers = [p.data_ptr() for p in network.parameters()]
    extractor = make_extractor(network).fit(z)
    extractor.generate(z, features=extractor.transform(z))
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == grads
    assert [p.data_ptr() for p in network.parameters()] == pointers
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in state.items())
    assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("method", ["transform", "generate"])
def test_the_network_is_left_as_it_was_after_ctrl_c(network, z, method):
    extractor = make_extractor(network.train()).fit(z)
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = network.block1.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:  # and with it the traceback
        getattr(extractor, method)(z)
    assert all(m.training for m in network.modules()) and torch.is_grad_enabled()
    handle.remove()
    assert not network.block1._forward_hooks and kept is not None


def test_result_and_one_batch_are_all_that_is_held(z):
    """While a batch is computed, no earlier batch is alive besides the result."""
    alive, outputs = [], []

    class Counting(nn.Identity):
        def forward(self, x):
            gc.collect()
            alive.append(sum(output() is not None for output in outputs))
            y = x[:, :, None] * 1
            # Its memory: other tensors may share it when y itself is gone.
            outputs.append(weakref.ref(y.untyped_storage()))
            return y

    network = nn.Sequential(Counting())
    extractor = make_extractor(network, "0", batch_size=1).fit(z[:2])
    for method in (extractor.transform, extractor.generate):
        alive.clear()
        outputs.clear()
        method(z)
        assert len(alive) == 7 and max(alive) == 0


def test_clones_share_the_network(network, z):
    def forward(generator, latents):
        return generator(latents)

    extractor = make_extractor(network, forward=forward, verbose=0).fit(z)
    twin = clone(extractor)
    assert twin.generator is network and twin.forward is forward
    assert twin.get_params() == extractor.get_params()
    with pytest.raises(NotFittedError):
        twin.transform(z)
    in_pipeline = clone(make_pipeline(extractor, PartsAppearanceDecomposition()))
    assert in_pipeline[0].generator is network


def test_pickles(z):
    plain = nn.Sequential(nn.Linear(6, 4))  # spectral norm does not pickle
    extractor = make_extractor(plain, "0").fit(z)
    copy = pickle.loads(pickle.dumps(extractor))
    assert torch.equal(copy.generator[0].weight, plain[0].weight)
    torch.testing.assert_close(copy.transform(z), extractor.transform(z))


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_pipelines_and_grid_search(network, as_input):
    latents = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    y = (latents[:, 0] > 0).numpy()
    panda = PartsAppearanceDecomposition(3, 4, max_iter=30, tol=0, random_state=0)
    pipeline = make_pipeline(make_extractor(network), panda, LogisticRegression())
    pipeline.fit(as_input(latents), y)
    assert pipeline.score(as_input(latents), y) > 0.7
    assert list(pipeline[:-1].get_feature_names_out()[:2]) == [
        "appearance0_part0",
        "appearance0_part1",
    ]
    grid = {
        "generatorfeatureextractor__layer": ["block1", "block2"],
        "partsappearancedecomposition__n_parts": [1, 2],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise")
    assert search.fit(as_input(latents), y).best_score_ > 0.6


@pytest.mark.parametrize("how", ["set_output", "config"])
def test_pandas_output_of_a_pipeline(network, z, how):
    from sklearn import config_context

    panda = PartsAppearanceDecomposition(3, 4, max_iter=3, tol=0)
    pipeline = make_pipeline(make_extractor(network), panda)
    if how == "set_output":
        frame = pipeline.set_output(transform="pandas").fit_transform(z)
    else:
        with config_context(transform_output="pandas"):
            frame = pipeline.fit_transform(z)
    assert frame.shape == (7, 12) and frame.columns[0] == "appearance0_part0"


def test_progress(network, z, capsys):
    make_extractor(network, verbose=1).fit(z).transform(z)
    assert "activations: 100%" in capsys.readouterr().err
    make_extractor(network).fit(z).transform(z)
    assert capsys.readouterr().err == ""


def test_networks_in_half_precision(network, z):
    extractor = make_extractor(network.bfloat16()).fit(z)
    assert extractor.transform(z).dtype == torch.bfloat16
    assert extractor.transform(z.numpy()).dtype == np.float32


def test_networks_on_two_devices(network, z):
    network.unused.to("meta")  # a layer that does not run
    extractor = make_extractor(network).fit(z)
    torch.testing.assert_close(extractor.transform(z), network.by_hand(z)[0].detach())
    assert list_layers(network, z)


def test_list_layers(network, z):
    network.train()
    layers = {layer.name: layer for layer in list_layers(network, z[:2])}
    assert layers["block1"][1:5] == ("Conv2d", (2, 5, 4, 4), 1, None)
    assert layers["norm"].n_calls == 2
    assert "unused" not in layers
    assert network.training and not network.block1._forward_hooks
    assert GeneratorFeatureExtractor.list_layers(network, z.numpy()[:2])
    containers = [(layer.name, layer.select) for layer in list_layers(Containers(), z)]
    assert containers == [
        ("pair", 0),
        ("pair", 1),
        ("named", "maps"),
        ("pieces", 0),
        ("pieces", 1),
        ("loner", None),
    ]


@pytest.mark.parametrize(
    "options, kind, match",
    [
        ({"layer": "block3"}, ValueError, "no layer 'block3'. Nearest names: block"),
        ({"layer": "unused"}, ValueError, "'unused' never ran"),
        ({"layer": 1}, ValueError, "'layer'"),
        ({"tap": "middle"}, ValueError, "'tap'"),
        ({"batch_size": 0}, ValueError, "'batch_size'"),
        ({"call": -1}, ValueError, "'call'"),
        ({"device": "gpu"}, ValueError, "device='gpu' cannot be used here"),
        ({"forward": 3}, ValueError, "'forward'"),
        ({"forward": StyleGAN2}, TypeError, r"is the class StyleGAN2.*StyleGAN2\(\)"),
        ({"forward": StyleGAN2()}, TypeError, "^TinyGenerator is not written as"),
        ({"generator": "G"}, ValueError, "'generator'"),
        ({"layer": "norm", "call": 2}, ValueError, "call=2"),
        ({"channel_axis": 2}, ValueError, "'channel_axis'"),
        ({"n_prefix_tokens": -1}, ValueError, "'n_prefix_tokens'"),
        ({"n_prefix_tokens": 1}, ValueError, "set channel_axis=-1"),
        ({"token_grid": (2, 2)}, ValueError, "set channel_axis=-1"),
        ({"token_grid": (2, 0), "channel_axis": -1}, ValueError, "at least 1, got 0"),
        ({"token_grid": (), "channel_axis": -1}, ValueError, "one, two or three sizes"),
        ({"n_prefix_tokens": 1, "channel_axis": -1}, ValueError, "with tokens expects"),
        ({"layer": "dense", "channel_axis": -1}, ValueError, "channel_axis=-1 expects"),
        ({"select": 0}, ValueError, "leave select at None"),
    ],
)
def test_bad_options(network, z, options, kind, match):
    extractor = make_extractor(**{"network": network}).set_params(**options)
    with pytest.raises(kind, match=match):
        extractor.fit(z)
    assert not any(m._forward_hooks for m in network.modules())


def test_bad_latents(network, z):
    extractor = make_extractor(network)
    with pytest.raises(ValueError, match=r"latents of shape \(2, 5\).*pass forward"):
        extractor.fit(z[:, :5])
    with pytest.raises(ValueError, match=r"tuple of arrays of shapes \(7, 6\), \(7,\)"):
        extractor.fit((z, np.arange(7)))
    with pytest.raises(NotFittedError):
        extractor.transform(z)
    conditional = make_extractor(network, forward=lambda g, z, c: g(z))
    with pytest.raises(ValueError, match=r"TypeError.*Check their shape.$"):
        conditional.fit(z)
    with pytest.raises(ValueError, match=r"could not be run .*pass forward.$"):
        list_layers(network, z[:, :5])
    extractor.fit(z)
    with pytest.raises(ValueError, match="Check their shape"):
        extractor.fit(z[:, :5])
    assert extractor.transform(z).shape == (7, 5, 4, 4)  # the old fit still stands
    with pytest.raises(ValueError, match="expecting 6 features"):
        extractor.transform(z[:, :5])
    with pytest.raises(ValueError, match=r"contains NaN, first at X\[0, 0\]"):
        extractor.transform(z * np.nan)
    with pytest.raises(ValueError, match="0 sample"):
        extractor.transform(z[:0])
    with pytest.raises(ValueError, match="expecting"):
        extractor.generate(z[:, None])


def test_bad_features(network, z):
    extractor = make_extractor(network).fit(z)
    features = extractor.transform(z)
    for bad in (features[:3], features[:, :4], features[0]):
        with pytest.raises(ValueError, match=r"features must be of shape \(7, 5, 4, 4"):
            extractor.generate(z, features=bad)
    with pytest.raises(ValueError, match="omplex"):
        extractor.generate(z, features=features * 1j)
    with pytest.raises(ValueError, match="Input features contains NaN"):
        extractor.generate(z, features=features * np.nan)


def test_layers_whose_first_axis_is_not_the_samples(z):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = nn.Linear(1, 6)

        def forward(self, z):
            return z + self.constant(torch.ones(1, 1))

    with pytest.raises(ValueError, match="first axis is not the samples"):
        make_extractor(Odd(), "constant").fit(z)


def test_images_that_are_no_tensor(z):
    extractor = make_extractor(nn.Sequential(Containers.Pair()), "0", select=0).fit(z)
    with pytest.raises(TypeError, match="Pass a forward"):
        extractor.generate(z)


def test_a_layer_that_changes_its_shape_after_fit(z):
    network = nn.Sequential(nn.Linear(6, 4))
    extractor = make_extractor(network, "0").fit(z)
    network[0] = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="Fit it again"):
        extractor.transform(z)


def test_networks_that_give_another_number_of_samples(z):
    network = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    one_image = make_extractor(
        network, "0", forward=lambda g, z: g(z)[:1], batch_size=7
    ).fit(z)
    with pytest.raises(ValueError, match=r"images of shape \(1, 2\) for 7 samples"):
        one_image.generate(z)
    constant = make_extractor(
        network, "0", forward=lambda g, z: g(z[:1]).expand(len(z), -1), batch_size=7
    ).fit(z[:1])
    with pytest.raises(ValueError, match=r"activations of shape \(1, 4\) for 7"):
        constant.transform(z)


# Channels last and tokens


def test_channels_last(network, z):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Identity()

        def forward(self, z):
            x = network.block1(z[:, :5, None, None].expand(-1, -1, 4, 3))
            x = self.turn(x.permute(0, 2, 3, 1))
            return network.to_rgb1(x.permute(0, 3, 1, 2))

    last = Last()
    as_it_is = make_extractor(last, "turn").fit(z).transform(z)
    extractor = make_extractor(last, "turn", channel_axis=-1).fit(z)
    features = extractor.transform(z)
    assert features.shape == (7, 5, 4, 3) and extractor.feature_shape_ == (5, 4, 3)
    torch.testing.assert_close(features, as_it_is.permute(0, 3, 1, 2))
    assert list(extractor.get_feature_names_out())[-1] == "channel4"
    images = extractor.generate(z)
    torch.testing.assert_close(extractor.generate(z, features=features), images)
    with torch.no_grad():
        expected = network.to_rgb1(features + 2)
    torch.testing.assert_close(extractor.generate(z, features=features + 2), expected)


@pytest.fixture
def transformer():
    return TinyTransformer()


@pytest.fixture
def pictures():
    return torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_prefix_tokens_are_left_out_and_left_alone(transformer, pictures):
    """Class token and register: 2 of 8 tokens, the others on a grid of 2 x 3."""
    tokens, scores = transformer.by_hand(pictures)
    for grid, spatial in ((None, (6,)), ((2, 3), (2, 3)), ([1, 2, 3], (1, 2, 3))):
        extractor = make_extractor(
            transformer, "block", channel_axis=-1, n_prefix_tokens=2, token_grid=grid
        ).fit(pictures)
        features = extractor.transform(pictures)
        assert features.shape == (5, 8, *spatial)
        expected = tokens[:, 2:].movedim(-1, 1).reshape(features.shape)
        torch.testing.assert_close(features, expected)
        plain = extractor.generate(pictures)
        torch.testing.assert_close(plain, scores)
        torch.testing.assert_close(
            extractor.generate(pictures, features=features), plain
        )
        edited = extractor.generate(pictures, features=lambda x: 2 * x)

        def double(tokens):
            return torch.cat([tokens[:, :2], 2 * tokens[:, 2:]], dim=1)

        expected = transformer.by_hand(pictures, double)[1]
        torch.testing.assert_close(edited, expected)
        assert not torch.allclose(edited, plain, atol=1e-3)


def test_editor_of_a_transformer(transformer, pictures):
    pipeline = make_pipeline(
        make_extractor(
            transformer,
            "block",
            channel_axis=-1,
            n_prefix_tokens=2,
            token_grid=(2, 3),
        ),
        PartsAppearanceDecomposition(2, 3, max_iter=20, tol=0, random_state=0),
    ).fit(pictures)
    panda = pipeline[-1]
    assert panda.parts_.shape == (2, 2, 3) and panda.appearances_.shape == (3, 8)
    editor = LocalEditor.from_pipeline(pipeline)
    plain = editor.edit(pictures, Edit(0, 1, 0.0))
    assert torch.equal(plain, pipeline[0].generate(pictures))
    part = panda.parts_[1]
    part = (part - part.min()) / (part.max() - part.min())
    added = 4 * part.reshape(-1, 1) * panda.appearances_[0]
    expected = transformer.by_hand(
        pictures, lambda x: torch.cat([x[:, :2], x[:, 2:] + added], dim=1)
    )[1]
    torch.testing.assert_close(
        editor.edit(pictures, Edit(0, 1, 4.0, "alpha")), expected
    )


@pytest.mark.parametrize(
    "options, match",
    [
        ({"n_prefix_tokens": 8}, "leaves none of 8 tokens"),
        (
            {"n_prefix_tokens": 1, "token_grid": (2, 3)},
            r"room for 6 tokens, but there are 7 after the first n_prefix_tokens=1",
        ),
        ({"token_grid": (3, 3)}, "room for 9 tokens, but there are 8"),
    ],
)
def test_tokens_that_do_not_fit(transformer, pictures, options, match):
    extractor = make_extractor(transformer, "block", channel_axis=-1, **options)
    with pytest.raises(ValueError, match=match):
        extractor.fit(pictures)


class Mirrored(dict):
    """A dict whose items are attributes, too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


def test_features_stay_and_reach_whoever_reads_an_attribute():
    class Block(nn.Conv2d):
        def forward(self, x):
            return Mirrored(maps=super().forward(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(3, 5, 1)

        def forward(self, x):
            return self.block(x).maps.relu_()  # writes into its input

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    extractor = GeneratorFeatureExtractor(Network(), "block", select="maps").fit(x)
    features = -torch.ones_like(extractor.transform(x))
    assert not extractor.generate(x, features).any()
    assert (features == -1).all()
    assert not extractor.generate(x, lambda maps: features).any()
    assert (features == -1).all()
