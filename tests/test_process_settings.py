"""The process's autocast, default device and default type do not reach our arithmetic.

Calls inside and outside are otherwise identical, so results are compared by bits.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

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
from panda_sklearn.editing import EditedGenerator
from panda_sklearn.inspection import EditDisplay
from panda_sklearn.metrics import (
    frechet_distance,
    heldout_reconstruction,
    roi_ratio,
    sliced_wasserstein_distance,
    stability,
)

X = torch.from_numpy(
    make_parts_appearances(
        40, 3, 4, n_channels=6, spatial_shape=(4, 5), snr_db=10, random_state=0
    )[0]
).float()


class Elementwise(nn.Module):
    """Latents (N, 120) -> maps (N, 6, 4, 5) -> images; autocast leaves all of it."""

    latent_size = 120

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.maps = nn.Identity()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 6)[:, None, None])
        self.dtype = dtype

    def forward(self, z):
        maps = self.maps((z.reshape(-1, 6, 4, 5) * self.weight).to(self.dtype)).float()
        return torch.tanh(maps[:, :3] + maps[:, 3:] ** 2)


def panda(**options):
    given = {"n_parts": 3, "n_appearances": 4, "max_iter": 15, "tol": 0, **options}
    return PartsAppearanceDecomposition(random_state=0, **given)


def editor_of(dtype=torch.float32):
    extractor = GeneratorFeatureExtractor(Elementwise(dtype), "maps", batch_size=3)
    return LocalEditor(extractor.fit(X.flatten(1)), panda().fit(X))


FITTED, EDITOR, Z = panda().fit(X), editor_of(), X[:7].flatten(1)
EDITS = [Edit(1, 2, 3.0), Edit(0, [0, 1], -1.5, "std")]
MASK = torch.eye(4, 5)
NETWORK = EDITOR.extractor.generator


def state(fitted):
    return [fitted.parts_, fitted.appearances_, fitted.saliency_covariance_]


CALLS = {
    "fit, spg": lambda: state(panda().fit(X)),
    "fit, spg, all appearances": lambda: state(panda(n_appearances=6).fit(X)),
    "fit, unconstrained": lambda: state(panda(nonnegative=False).fit(X)),
    "fit, random": lambda: state(panda(init="random", n_init=2).fit(X)),
    "fit, pgd": lambda: state(panda(solver="pgd", batch_size=7).fit(X)),
    "fit, adam": lambda: state(panda(solver="adam").fit(X)),
    "fit, numpy": lambda: state(panda().fit(X.numpy())),
    "partial_fit": lambda: state(panda().partial_fit(X[:20]).partial_fit(X[20:])),
    "transform": lambda: FITTED.transform(X),
    "inverse_transform": lambda: FITTED.inverse_transform(FITTED.transform(X)),
    "score": lambda: FITTED.score(X),
    "saliency": lambda: FITTED.saliency(X, size=(8, 8)),
    "localize": lambda: FITTED.localize(X, 1, ("quantile", 0.3), size=9),
    "refine": lambda: FITTED.refine(X),
    "reconstruction_errors": lambda: FITTED.reconstruction_errors(X),
    "heldout_reconstruction": lambda: heldout_reconstruction(FITTED, X),
    "stability": lambda: stability(FITTED, X[:20]),
    "edit": lambda: EDITOR.edit(Z, EDITS),
    "edit, refined": lambda: EDITOR.edit(Z, EDITS, refine=True),
    "edit, at a target": lambda: EDITOR.edit(
        Z, EDITS, refine=True, target_change=0.1, region=MASK
    ),
    "edit, a drawn vector": lambda: EDITOR.edit(
        Z, Edit(FITTED.appearances_[1] * 2, MASK, 1.0, "std")
    ),
    "remove": lambda: EDITOR.remove(Z, 1),
    "mask": lambda: EDITOR.mask(Z, 1),
    "remove_pixels": lambda: EDITOR.remove_pixels(Z, 1, fill=[0.1, 0.2, 0.3]),
    "rank_edits": lambda: list(EDITOR.rank_edits(Z).values()),
    "EditedGenerator": lambda: EditedGenerator(EDITOR, EDITS, refine=True)(Z).detach(),
    "roi_ratio": lambda: roi_ratio(MASK, X, X**2),
    "sliced_wasserstein_distance": lambda: sliced_wasserstein_distance(
        X, X**2, random_state=0
    ),
    "frechet_distance": lambda: frechet_distance(
        X.flatten(1)[:, :9], X.flatten(1)[:, 9:18]
    ),
    "load_face_generator": lambda: list(load_face_generator().state_dict().values()),
    "sample_latents": lambda: sample_latents(NETWORK, 3, random_state=0),
}


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to half": lambda: torch.autocast("cpu", torch.float16),
    "default device": default_device,
    "default type double": lambda: default_type(torch.float64),
    "default type bfloat16": lambda: default_type(torch.bfloat16),
}


def assert_same(one, other):
    if isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.device == other.device
        assert torch.equal(one, other)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("call", CALLS)
def test_results_are_as_outside(call):
    expected = CALLS[call]()
    for name, setting in SETTINGS.items():
        with setting():
            found = CALLS[call]()
        try:
            assert_same(found, expected)
        except AssertionError as error:
            raise AssertionError(f"{call} under {name}") from error


def test_autocast_and_gradients_are_on_again_and_reach_the_network():
    seen = []
    network = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (6, 1, 1)))
    extractor = GeneratorFeatureExtractor(network, "1")
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor.fit_transform(torch.ones(3, 4))
        panda(n_parts=1).fit(features.expand(3, 6, 4, 5) + X[:3])
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
    assert seen == [(True, True)]
    assert features.dtype == torch.bfloat16  # the borrowed network's own business


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", FLOATS)
def test_layers_of_every_float_type_are_edited(dtype):
    """As in single precision, rounded on the way in and out of the layer."""
    editor, like = editor_of(dtype), EDITOR
    # Half precision keeps 11 bits, bfloat16 8; a refinement magnifies what is lost, and
    # so does a fit that ends before it has converged.
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}.get(dtype, 3e-3)
    for options in ({}, {"refine": True}):
        images = editor.edit(Z, EDITS, **options)
        assert images.dtype == torch.float32
        expected = like.edit(Z, EDITS, **options)
        assert (images - expected).abs().mean() < tolerance * expected.abs().mean()
        edited = EditedGenerator(editor, EDITS, **options)
        with torch.no_grad():
            found = edited(Z)
        assert (found - images).abs().max() < 1e-3 + tolerance
    assert torch.equal(editor.edit(Z, Edit(1, 2, 0.0)), editor.extractor.generate(Z))
    targeted = editor.edit(Z, EDITS, refine=True, target_change=0.1)
    assert targeted.isfinite().all()
    assert np.isfinite(editor.rank_edits(Z)["effect"]).all()
    editor.remove(Z, 1)
    editor.remove_pixels(Z, 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_maps_images_and_masks_of_every_float_type(dtype):
    maps = X.to(dtype)
    single = maps.double().float() if dtype != torch.float64 else maps
    fitted = panda().fit(maps)
    expected = panda().fit(single)
    assert_same(state(fitted), state(expected))
    assert_same(fitted.transform(maps), expected.transform(single))
    images = maps[:2, :3]
    display = EditDisplay.from_images(images, images + 1, value_range=(-9, 9))
    assert np.isfinite(display.after).all()
    display.figure_.clear()
    assert roi_ratio(MASK.to(dtype), images, images + 1) > 0
    EDITOR.edit(Z, Edit(1, MASK.to(dtype), 2.0))


KINDS = {
    "big-endian": lambda z: z.numpy().astype(">f8"),
    "long double": lambda z: z.numpy().astype(np.longdouble),
    "half": lambda z: z.numpy().astype(np.float16),
    "Fortran": lambda z: np.asfortranarray(z.numpy()),
    "reversed": lambda z: z.numpy()[::-1, ::-1][::-1, ::-1],
    "float8": lambda z: z.to(torch.float8_e4m3fn),
    "bfloat16": lambda z: z.to(torch.bfloat16),
    "integers": lambda z: z.numpy().astype(np.int16),
    "unsigned": lambda z: z.abs().numpy().astype(np.uint32),
    "booleans": lambda z: z > 0,
}


def to_single(values):
    """What they are in single precision, as a new tensor."""
    if isinstance(values, torch.Tensor):
        return values.to(torch.float32)
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_latents_of_other_types(kind):
    given = KINDS[kind](2 * X)
    single = to_single(given)
    # Other memory layouts may go through other kernels.
    near = {"rtol": 1e-5, "atol": 1e-5}
    found = to_single(FITTED.transform(given))
    torch.testing.assert_close(found, FITTED.transform(single), **near)
    latents, extractor = given.reshape(40, -1), EDITOR.extractor
    found = to_single(extractor.transform(latents))
    torch.testing.assert_close(found, extractor.transform(single.flatten(1)), **near)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_what_cannot_be_computed_with_is_refused_alike():
    latents = torch.quantize_per_tensor(Z, 0.1, 0, torch.qint8)
    extractor = EDITOR.extractor
    for call in (extractor.fit, extractor.transform, panda().fit, FITTED.transform):
        with pytest.raises(TypeError, match=r"quantized.*dequantize"):
            call(latents)
        with pytest.raises(TypeError, match="meta"):
            call(Z.to("meta"))
        with pytest.raises(TypeError, match="nested"):
            call(torch.nested.nested_tensor([Z[0], Z[1]], layout=torch.jagged))


def test_integers_where_floats_were_fitted_and_the_other_way_round():
    tokens = torch.arange(6).reshape(2, 3)
    network = nn.Sequential(nn.Embedding(6, 4), nn.Identity())
    extractor = GeneratorFeatureExtractor(network, "1").fit(tokens)
    assert extractor.transform(tokens.numpy().astype(np.uint16)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"must be integers.*fitted on"):
        extractor.transform(tokens.float())
    with pytest.raises(ValueError, match=r"int64 .*pass floats"):
        GeneratorFeatureExtractor(nn.Linear(3, 4), "").fit(tokens)


def test_read_only_arrays_are_shared_without_a_warning():
    """Filters of warnings belong to the whole process: none is changed, none needed."""
    given = X.numpy().copy()
    given.flags.writeable = False
    expected = FITTED.transform(given.copy())
    np.testing.assert_allclose(FITTED.transform(given), expected, rtol=1e-5, atol=1e-6)
    latents = given.reshape(40, -1)
    EDITOR.extractor.transform(latents)
    assert not given.flags.writeable


def test_inputs_stay_as_they_are_if_the_network_writes_into_them():
    class Writes(nn.Module):
        def forward(self, z):
            return z.mul_(2)

    latents = torch.ones(3, 4)
    assert GeneratorFeatureExtractor(Writes(), "").fit_transform(latents).sum() == 24
    assert torch.equal(latents, torch.ones(3, 4))
