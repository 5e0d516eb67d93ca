"""A generator with edits built in."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.editing import EditedGenerator
from tests.networks import TinyGenerator

EDITS = [Edit(1, 2, 3.0), Edit(0, [0, 1], -1.5, "std")]


@pytest.fixture()
def precise(z):
    generator = TinyGenerator().double()
    z = z.double()
    extractor = GeneratorFeatureExtractor(generator, "block1").fit(z)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=9, tol=0, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.transform(z)))


@pytest.mark.usefixtures("refining_briefly")
@pytest.mark.parametrize("refine", [False, True])
def test_its_images_are_the_editors(precise, z, refine):
    latents = z.double()
    edited = EditedGenerator(precise, EDITS, refine=refine)
    expected = precise.edit(latents, EDITS, refine=refine)
    with torch.no_grad():
        torch.testing.assert_close(edited(latents), expected, rtol=1e-6, atol=1e-6)
        plain = EditedGenerator(precise, EDITS)(latents)
    assert ((plain - expected).abs().max() > 1e-3) == refine


def test_masks_are_drawn_at_image_size(editor, z):
    drawn = Edit(2, torch.eye(8).bool(), 2.0)
    with torch.no_grad():
        torch.testing.assert_close(
            EditedGenerator(editor, drawn)(z), editor.edit(z, drawn)
        )


def test_no_strength_is_the_same_image(editor, z):
    edited = EditedGenerator(editor, Edit(1, 2, 0.0))
    with torch.no_grad():  # zeros are added, so later layers may round differently
        torch.testing.assert_close(edited(z), editor.extractor.generator(z))


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_gradients_reach_latents_and_strengths(precise, z, strength):
    edits = [Edit(1, 2, strength), Edit(0, 1, 0.5, "std")]
    edited = EditedGenerator(precise, edits, learn_strengths=True)
    latents = z[:2].double().requires_grad_()

    def run(latents, strengths):
        return torch.func.functional_call(edited, {"strengths": strengths}, (latents,))

    assert torch.autograd.gradcheck(run, (latents, edited.strengths))
    edited(latents).square().sum().backward()
    assert latents.grad.norm() > 0 and bool((edited.strengths.grad != 0).all())


def test_strengths_are_learnt_only_if_asked(editor, z):
    assert not EditedGenerator(editor, EDITS).strengths.requires_grad
    assert EditedGenerator(editor, EDITS, learn_strengths=True).strengths.requires_grad


def test_gradients_reach_vectors_and_masks(precise, z):
    edits = [Edit(1, 2, 1.5), Edit(variation=0, part=1, strength=0.5)]
    edited = EditedGenerator(precise, edits, learn_vectors=True, learn_masks=True)
    assert edited.vectors.shape == (2, 5) and edited.masks.shape == (2, 16)
    latents = z[:2].double()

    def run(vectors, masks):
        values = {"vectors": vectors, "masks": masks}
        return torch.func.functional_call(edited, values, (latents,))

    assert torch.autograd.gradcheck(run, (edited.vectors, edited.masks))
    assert not edited.strengths.requires_grad


def test_gradients_reach_latents_through_moved_ones(precise, z):
    edit = Edit(latent=torch.ones(6), part=1, strength=0.3)
    edited = EditedGenerator(precise, edit, learn_strengths=True, learn_masks=True)
    latents = z[:2].double().requires_grad_()

    def run(latents, strengths, masks):
        values = {"strengths": strengths, "masks": masks}
        return torch.func.functional_call(edited, values, (latents,))

    given = latents, edited.strengths, edited.masks
    assert torch.autograd.gradcheck(run, given)


def test_noise_is_the_same_at_moved_latents(z):
    generator = TinyGenerator(noise=0.5)
    extractor = GeneratorFeatureExtractor(generator, "block2").fit(z)
    panda = PartsAppearanceDecomposition(2, 2, max_iter=5, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    edit = Edit(latent=torch.full((6,), 1e-6), part=0)
    edited = EditedGenerator(editor, edit)
    assert edited.vectors.shape == (0, 4)
    images = []
    with torch.random.fork_rng(), torch.no_grad():
        for run in (generator, edited):
            torch.manual_seed(0)
            images.append(run(z))
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)


def test_what_is_learnt_are_parameters_of_its_own(editor, z):
    """Gradients would not reach an array of an edit."""
    vector = torch.ones(5, requires_grad=True)
    mask = torch.full((4, 4), 0.5, requires_grad=True)
    strength = torch.ones(9, requires_grad=True)
    for edit, name in (
        (Edit(vector, 0, unit="alpha"), "appearance"),
        (Edit(0, mask), "part"),
        (Edit(0, 0, strength), "strength"),
    ):
        with pytest.raises(ValueError, match=f"{name} of an edit requires gradients"):
            EditedGenerator(editor, edit)
    with pytest.raises(ValueError, match="no edit has one"):
        EditedGenerator(editor, Edit(latent=torch.ones(6), part=0), learn_vectors=True)
    with pytest.raises(ValueError, match="do not use theirs"):
        EditedGenerator(
            editor, Edit(coefficients=torch.ones(4, 3), part=0), learn_masks=True
        )
    with pytest.raises(ValueError, match="does not go with refine"):
        EditedGenerator(editor, EDITS, refine=True, learn_masks=True)


def test_a_strength_is_found_by_descent(precise, z):
    """The strength of an edit is recovered from its images."""
    z = z.double()
    target = precise.edit(z, Edit(1, 2, 1.7))
    edited = EditedGenerator(precise, Edit(1, 2, 0.0), learn_strengths=True)
    optimizer = torch.optim.LBFGS([edited.strengths], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (edited(z) - target).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert float(edited.strengths.detach()) == pytest.approx(1.7, abs=1e-4)


def test_it_is_a_module_like_any_other(pipeline, z):
    generator = TinyGenerator()
    # Torch cannot pickle whole modules with this parametrization.
    nn.utils.parametrize.remove_parametrizations(generator.dense, "weight")
    editor = LocalEditor(
        GeneratorFeatureExtractor(generator, "block1").fit(z), pipeline[1]
    )
    edited = EditedGenerator(editor, EDITS)
    assert edited.generator is editor.extractor.generator
    assert not edited.training
    state = edited.state_dict()
    assert {"strengths", "vectors", "masks", "scales"} < set(state)
    stronger = EditedGenerator(editor, [Edit(1, 2, 9.0), EDITS[1]])
    with torch.no_grad():
        expected = edited(z)
        assert (stronger(z) - expected).abs().max() > 0.01
        stronger.load_state_dict(state)
        torch.testing.assert_close(stronger(z), expected)
        for twin in (copy.deepcopy(edited), pickle.loads(pickle.dumps(edited))):
            assert twin.generator is not edited.generator
            torch.testing.assert_close(twin(z), expected)
        buffer = io.BytesIO()
        torch.save(edited, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.load(buffer, weights_only=False)(z), expected)
        doubled = copy.deepcopy(edited).double()
        torch.testing.assert_close(doubled(z.double()).float(), expected)


def test_it_leaves_no_hooks(editor, z):
    generator = editor.extractor.generator
    edited = EditedGenerator(editor, EDITS)

    def hooks():
        return sum(len(m._forward_hooks) for m in generator.modules())

    before = hooks()
    edited(z)
    with pytest.raises(RuntimeError):
        edited(z[:, :3])
    assert hooks() == before


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_and_traced(editor, z):
    with torch.no_grad():
        edited = EditedGenerator(editor, EDITS)
        expected = edited(z)
        compiled = torch.compile(edited, backend="eager")
        torch.testing.assert_close(compiled(z), expected)
        traced = torch.jit.trace(edited, z[:2], check_trace=False)
        torch.testing.assert_close(traced(z), expected)


def test_a_compiled_generator_is_edited(z):
    generator = TinyGenerator()
    generator.compile(backend="eager")
    extractor = GeneratorFeatureExtractor(generator, "block1").fit(z)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=9, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    with torch.no_grad():
        generator(z)  # compiled before the hook is there
        torch.testing.assert_close(
            EditedGenerator(editor, EDITS)(z), editor.edit(z, EDITS)
        )


def test_forward_functions_are_used(z):
    def forward(generator, latents):
        return 2 * generator(latents)

    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1", forward=forward)
    extractor.fit(z)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=9, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    with torch.no_grad():
        torch.testing.assert_close(
            EditedGenerator(editor, EDITS)(z), editor.edit(z, EDITS)
        )


def test_bad_input(editor, z):
    with pytest.raises(TypeError, match="editor must be a LocalEditor"):
        EditedGenerator(editor.extractor, EDITS)
    with pytest.raises(ValueError, match="at least one Edit"):
        EditedGenerator(editor, [])
    with pytest.raises(ValueError, match="the same for all samples"):
        EditedGenerator(editor, Edit(0, 0, torch.ones(9)))
    with pytest.raises(ValueError, match="the same for all samples"):
        EditedGenerator(editor, Edit(0, torch.ones(9, 4, 4)))


class Checkpointed(nn.Module):
    """Latents (N, 6) -> images (N, 3, 4, 4), part of it under a context."""

    def __init__(self, context):
        super().__init__()
        self.context = context
        self.dense = nn.Linear(6, 5 * 16)
        self.maps, self.to_rgb = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 3, 1)

    def block(self, x):
        return torch.tanh(self.to_rgb(torch.tanh(self.maps(x))))

    def forward(self, z):
        return self.context(self.block, self.dense(z).reshape(-1, 5, 4, 4))


def without_gradients(function, x):
    with torch.no_grad():
        return function(x)


@pytest.mark.parametrize(
    "context",
    [
        lambda function, x: checkpoint(function, x, use_reentrant=True),
        lambda function, x: checkpoint(function, x, use_reentrant=False),
        lambda function, x: checkpoint_sequential(
            [function, torch.relu], 2, x, use_reentrant=False
        ),
        without_gradients,
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_layers_that_run_again_in_the_backward_pass(context, z):
    """The edit would be missing there, and gradients silently wrong."""
    network = Checkpointed(context)
    extractor = GeneratorFeatureExtractor(network, "maps").fit(z)
    panda = PartsAppearanceDecomposition(2, 3, max_iter=5, tol=0, random_state=0)
    editor = LocalEditor(extractor, panda.fit(extractor.transform(z)))
    edited = EditedGenerator(editor, Edit(1, 0, 2.0), learn_strengths=True)
    latents = z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="'maps' runs under activation checkpoint"):
        edited(latents)
    assert not network.maps._forward_hooks
    with torch.no_grad():
        torch.testing.assert_close(edited(z), editor.edit(z, Edit(1, 0, 2.0)))


def test_hooks_of_saved_tensors_around_the_call_are_allowed(precise, z):
    edited = EditedGenerator(precise, EDITS, learn_strengths=True)
    gradients = []
    for context in (contextlib.nullcontext(), torch.autograd.graph.save_on_cpu()):
        edited.strengths.grad = None
        with context:
            edited(z.double()).sum().backward()
        gradients.append(edited.strengths.grad)
    torch.testing.assert_close(*gradients)
