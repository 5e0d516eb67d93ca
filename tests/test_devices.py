"""Every public method on tensors that are on another device.

On an emulated CUDA device everywhere, on a real one where there is one.
"""

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.editing import (
    EditedGenerator,
    _directions,
    invert,
    load_edits,
    save_edits,
    split_part,
)
from panda_sklearn.generators import list_layers
from panda_sklearn.inspection import (
    EditDisplay,
    EditGalleryDisplay,
    PartsDisplay,
    SaliencyDisplay,
    VariationsDisplay,
)
from panda_sklearn.memory import TensorMemory
from panda_sklearn.metrics import (
    heldout_reconstruction,
    match_factors,
    parts_overlap,
    roi_ratio,
    stability,
)
from tests.emulated_cuda import emulated_cuda, host_copies
from tests.networks import TinyGenerator

X = make_parts_appearances(
    20, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
)[0]

# "adam" magnifies roundings least, so that fits in single precision agree.
STEADY = {"solver": "adam", "max_iter": 5, "tol": 0, "random_state": 0}


@contextlib.contextmanager
def real_cuda():
    with pytest.MonkeyPatch.context() as patch:
        # Convolutions in TensorFloat-32 have three digits.
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield torch.device("cuda", 0)


@pytest.fixture(
    params=[emulated_cuda, pytest.param(real_cuda, marks=pytest.mark.gpu)],
    ids=["emulated", "real"],
)
def cuda(request):
    with request.param() as device:
        yield device


def test_the_emulation_catches_mistakes():
    with emulated_cuda() as device:
        on = torch.ones(3, 3, device=device)
        assert on.is_cuda and on.device == device
        assert (on @ on).device == device
        assert on.cpu().device.type == "cpu" and on.sum().item() == 9
        for mistake in (
            lambda: on @ torch.eye(3),
            lambda: torch.cat([on, torch.ones(3, 3)]),
            lambda: torch.einsum("ij,jk", torch.eye(3), on),
            lambda: on + torch.ones(3),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mistake()
        with pytest.raises(TypeError, match="numpy"):
            on.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(on)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "adam"},
        {"solver": "pgd"},
        {"solver": "pgd", "batch_size": 6},
        {"init": "random", "n_init": 2},
        {"nonnegative": False},
    ],
    ids=str,
)
def test_decomposition(cuda, options):
    options = {"max_iter": 20, "tol": 0, "random_state": 0, **options}
    panda = PartsAppearanceDecomposition(3, 4, **options)
    expected = panda.fit(X)
    numbers = {
        "transform": expected.transform(X),
        "saliency": expected.saliency(X),
        "localize": expected.localize(X, 0),
        "refine": expected.refine(X, max_iter=5),
        "maps at another size": expected.saliency(X, size=(8, 9)),
        "mask": expected.localize(X, 0, ("quantile", 0.7), size=(8, 9)),
        "errors": expected.reconstruction_errors(X, expected.refine(X, max_iter=5)),
        "saliency_std_": expected.saliency_std_,
        "covariance": expected.coefficient_covariance_,
        "variations": expected.variations([0, 2], 2, given="others")[1],
        "inverse_transform": expected.inverse_transform(expected.transform(X)),
        "score": expected.score(X),
    }
    on = torch.from_numpy(X).to(cuda)
    panda.fit(on)
    results = {
        "transform": panda.transform(on),
        "saliency": panda.saliency(on),
        "localize": panda.localize(on, 0),
        "refine": panda.refine(on, max_iter=5),
        "maps at another size": panda.saliency(on, size=(8, 9)),
        "mask": panda.localize(on, 0, ("quantile", 0.7), size=(8, 9)),
        "errors": panda.reconstruction_errors(on, panda.refine(on, max_iter=5)),
        "saliency_std_": panda.saliency_std_,
        "covariance": panda.coefficient_covariance_,
        "variations": panda.variations([0, 2], 2, given="others")[1],
        "inverse_transform": panda.inverse_transform(panda.transform(on)),
    }
    for name in ("parts_", "appearances_", "saliency_mean_"):
        assert getattr(panda, name).device == cuda
    for name, result in results.items():
        assert result.device == cuda, name
        # Twenty iterations magnify roundings to about 1e-8, and then refine's do.
        np.testing.assert_allclose(result.cpu().numpy(), numbers[name], atol=1e-5)
    assert panda.score(on) == pytest.approx(numbers["score"])
    # Fitted there, it also serves arrays of the host.
    np.testing.assert_allclose(panda.transform(X), numbers["transform"], atol=1e-5)
    frame = panda.set_output(transform="pandas").transform(on)
    np.testing.assert_allclose(frame, numbers["transform"], atol=1e-5)
    other = clone(expected).fit(X)
    other.parts_ = other.parts_[[2, 0, 1]]
    aligned = panda.align_to(other)
    assert aligned.parts_.device == aligned.coefficient_mean_.device == cuda
    np.testing.assert_allclose(aligned.parts_.cpu().numpy(), other.parts_, atol=1e-5)


def test_learning_from_a_stream(cuda):
    halves = X[:15], X[15:]
    panda = PartsAppearanceDecomposition(3, 4, random_state=0)
    for half in halves:
        panda.partial_fit(half)
    expected, covariance = panda.parts_, panda.coefficient_covariance_
    panda = PartsAppearanceDecomposition(3, 4, random_state=0)
    for half in halves:
        panda.partial_fit(torch.from_numpy(half).to(cuda))
    assert panda.parts_.device == cuda
    np.testing.assert_allclose(panda.parts_.cpu().numpy(), expected, atol=1e-5)
    assert panda.coefficient_covariance_.device == cuda
    found = panda.coefficient_covariance_.cpu().numpy()
    np.testing.assert_allclose(found, covariance, atol=1e-5)


def test_device_parameter_moves_numpy_work(cuda, monkeypatch):
    seen = set()
    from panda_sklearn import decomposition

    for name, solver in list(decomposition.SOLVERS.items()):

        def watched(data, *args, run=solver.run, **options):
            seen.add(data.device)
            return run(data, *args, **options)

        record = dataclasses.replace(solver, run=watched)
        monkeypatch.setitem(decomposition.SOLVERS, name, record)
    for name in ("pgd", "adam"):
        PartsAppearanceDecomposition(
            3, 4, solver=name, max_iter=5, tol=0, device="cuda"
        ).fit(X)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=5, tol=0, device="cuda").fit(X)
    assert seen == {cuda}
    panda.partial_fit(X)
    assert isinstance(panda.parts_, np.ndarray)
    assert isinstance(panda.parts_, np.ndarray)
    assert isinstance(panda.transform(X), np.ndarray)


def test_extractor_and_editor(cuda):
    network = TinyGenerator()
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    panda = PartsAppearanceDecomposition(3, 4, **STEADY)

    def run(z, network):
        pipeline = make_pipeline(GeneratorFeatureExtractor(network, "block1"), panda)
        coefficients = pipeline.fit_transform(z)
        editor = LocalEditor.from_pipeline(pipeline)
        return coefficients, editor.edit(z, Edit(1, 2, 3.0))

    expected = run(z, network)
    network.to(cuda)
    assert list_layers(network, z)[0].shape[0] == 6
    for result, value in zip(run(z.to(cuda), network), expected, strict=True):
        assert result.device == cuda
        torch.testing.assert_close(result.cpu(), value, atol=1e-4, rtol=1e-4)
    # Latents of the host come back to the host.
    for result, value in zip(run(z, network), expected, strict=True):
        assert result.device.type == "cpu"
        torch.testing.assert_close(result, value, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("refining_briefly")
def test_all_ways_of_editing(cuda):
    """Latents on the device or on the host, whichever side the rest is on."""
    network = TinyGenerator()
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(1))
    region = np.eye(8)

    def run(editor, z, device):
        parts = torch.as_tensor(editor.decomposition.parts_)
        vector = editor.decomposition.appearances_[1]
        edits = [
            Edit(vector, [0, 1], 0.5, "std"),
            Edit(0, split_part(parts[2])[0], torch.linspace(-1, 1, 6).to(device)),
            Edit(2, masks.to(device), 0.3),
            Edit(2, region, 0.3),
        ]
        yield editor.edit(z, edits)
        yield editor.edit(z, edits[0], refine=True)
        options = {"target_change": 0.1, "region": region, "refine": True}
        yield editor.edit(z, edits[0], **options)
        yield editor.find_strengths(z, edits[0], 0.1).to(torch.float32)
        yield editor.mask(z, 1)
        yield editor.remove(z, 1)
        yield editor.remove_pixels(z, 1, fill=[0.1, 0.2, 0.3])
        if z.device == device:
            yield EditedGenerator(editor, edits[0], refine=True)(z).detach()
        yield roi_ratio(region, editor.extractor.generate(z), editor.edit(z, edits))
        yield editor.rank_edits(z)["effect"]
        yield editor.rank_edits(z, variations=[0], parts=[1])["effect"]
        yield editor.edit(z, Edit(variation=0, part=region, strength=0.5))

    extractor = GeneratorFeatureExtractor(network, "block1").fit(z)
    X = extractor.transform(z)
    panda = PartsAppearanceDecomposition(3, 4, **STEADY)
    editor = LocalEditor(extractor, panda.fit(X))
    expected = list(run(editor, z, z.device))
    network.to(cuda)
    there = LocalEditor(extractor, clone(panda).fit(X.to(cuda)))
    for result, value in zip(run(there, z.to(cuda), cuda), expected, strict=True):
        if isinstance(result, torch.Tensor):
            assert result.device == cuda
            result = result.cpu()
        # A refinement magnifies rounding errors of single precision.
        np.testing.assert_allclose(result, value, atol=5e-3)
    # Latents and factors of the host, a network on the device.
    del expected[7]  # the module runs where its buffers are
    for result, value in zip(run(editor, z, cuda), expected, strict=True):
        np.testing.assert_allclose(result, value, atol=5e-3)


@pytest.mark.parametrize("formed", [True, False])
def test_directions(cuda, monkeypatch, formed):
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    if not formed:
        monkeypatch.setattr(_directions, "MOST_CHANNELS", 1)
    found = []
    for device in ("cpu", cuda):
        generator = TinyGenerator().to(device)
        latents = z.to(device)
        extractor = GeneratorFeatureExtractor(generator, "block1", batch_size=4)
        panda = PartsAppearanceDecomposition(2, 3, **STEADY)
        editor = LocalEditor(extractor, panda.fit(extractor.fit_transform(latents)))
        for kind in ("exact", "differences"):
            each = editor.find_directions(latents[:2], 0, 2, derivatives=kind)
            assert each.device == latents.device
            found.append(each.cpu())
    for each in found[1:]:
        # By differences, over kinks; and where products stop.
        torch.testing.assert_close(each, found[0], rtol=0, atol=0.1)


def test_inversion(cuda):
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", cuda):
        generator = TinyGenerator().to(device)
        latents = z.to(device)
        extractor = GeneratorFeatureExtractor(generator, "block1").fit(latents)
        images = extractor.generate(latents)
        each = invert(extractor, images, n_steps=40, prior=0.0, random_state=0)
        assert each.latents.device == each.differences.device == latents.device
        found.append(each)
        assert each.residuals.cpu().max() < 0.05
    torch.testing.assert_close(found[1].images.cpu(), found[0].images, rtol=0, atol=0.3)


def test_extractor_borrows_a_network_for_its_device(cuda):
    network = TinyGenerator()
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    places = set()
    network.block1.register_forward_hook(lambda m, a, o: places.add(o.device))
    extractor = GeneratorFeatureExtractor(network, "block1", device=cuda).fit(z)
    features = extractor.transform(z)
    assert places == {cuda}
    assert features.device.type == "cpu"
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    torch.testing.assert_close(
        features, network.by_hand(z)[0].detach(), atol=1e-5, rtol=0
    )


def test_grid_search_and_displays(cuda, tmp_path):
    generator = load_face_generator().to(cuda)
    latents = sample_latents(generator, 12, random_state=0)
    assert latents.device == cuda
    panda = PartsAppearanceDecomposition(2, 4, max_iter=5, tol=0, random_state=0)
    pipeline = make_pipeline(GeneratorFeatureExtractor(generator, "block8"), panda)
    grid = {"partsappearancedecomposition__n_parts": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(latents)
    best = search.best_estimator_
    images = best[0].generate(latents[:2])
    PartsDisplay.from_estimator(best[1], images)
    SaliencyDisplay.from_estimator(best[1], best[0].transform(latents[:2]), images)
    editor = LocalEditor.from_pipeline(best)
    edits = [Edit(0, 0, 1.0), Edit(variation=0, part=0, name="first")]
    EditDisplay.from_editor(editor, latents[:2], edits)
    EditGalleryDisplay.from_editor(editor, latents[:2], edits)
    VariationsDisplay.from_editor(editor, latents[:1])
    save_edits(tmp_path / "edits", edits, best[1])
    assert load_edits(tmp_path / "edits", best[1]) == edits
    assert editor.edit(latents[:2], load_edits(tmp_path / "edits")).device == cuda


def test_metrics_and_scorers(cuda):
    panda = PartsAppearanceDecomposition(3, 4, random_state=0)
    scorers = {
        "positions": heldout_reconstruction,
        "both": functools.partial(heldout_reconstruction, held_out="both"),
        "stability": stability,
    }
    panda.set_params(n_appearances=3).fit(X)
    expected = {name: scorer(panda, X) for name, scorer in scorers.items()}
    overlap = parts_overlap(panda.parts_)
    on = torch.from_numpy(X).to(cuda)
    panda.fit(on)
    for name, scorer in scorers.items():
        assert scorer(panda, on) == pytest.approx(expected[name], abs=1e-5), name
    assert parts_overlap(panda.parts_) == pytest.approx(overlap)
    assert match_factors(panda.parts_, panda.parts_)[2] == pytest.approx(1)


def test_a_cache(cuda, tmp_path):
    network = TinyGenerator().to(cuda)
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(cuda)
    pipeline = make_pipeline(
        GeneratorFeatureExtractor(network, "block1"),
        PartsAppearanceDecomposition(2, 3, **STEADY),
        memory=TensorMemory(tmp_path),
    )
    expected = clone(pipeline).set_params(memory=None).fit(z).transform(z)
    for _ in range(2):
        fitted = clone(pipeline).fit(z)
        found = fitted.transform(z)
        assert found.device == cuda and fitted[-1].parts_.device == cuda
        # What comes from the cache lies elsewhere in memory, and is rounded otherwise.
        torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["spg", "pgd", "adam"])
def test_no_samples_go_to_the_host(solver):
    """What crosses is numbers that decide something, and factors at most."""
    many = np.concatenate([X] * 10)  # 200 samples of 6 x 20
    with emulated_cuda() as device:
        on = torch.from_numpy(many).to(device)
        panda = PartsAppearanceDecomposition(
            3, 4, solver=solver, max_iter=10, tol=0, random_state=0
        )
        host_copies.clear()
        panda.fit(on)
        if solver == "spg":
            panda.partial_fit(on)
        T = panda.transform(on)
        panda.inverse_transform(T)
        panda.coefficients(on)
        panda.score(on)
        panda.saliency(on)
        panda.localize(on, 0)
        panda.refine(on, max_iter=5)
        heldout_reconstruction(panda, on)
        stability(panda, on)
        assert max(host_copies, default=0) <= 3 * 20, sorted(host_copies)[-5:]
        # The count itself works.
        T.cpu()
        assert host_copies[-1] == T.numel()


def test_no_activations_of_a_network_go_to_the_host():
    with emulated_cuda() as device:
        network = TinyGenerator().to(device)
        z = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(device)
        panda = PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0)
        pipeline = make_pipeline(GeneratorFeatureExtractor(network, "block1"), panda)
        host_copies.clear()
        pipeline.fit(z)
        pipeline[0].generate(z, pipeline[0].transform(z))
        LocalEditor.from_pipeline(pipeline).edit(z, Edit(1, 1, 3.0))
        assert max(host_copies, default=0) <= 2 * 16, sorted(host_copies)[-5:]
