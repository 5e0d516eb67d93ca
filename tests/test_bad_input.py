"""Bad input: a clear error before any work, from every public function.

Each argument of each public function is given values of every kind that is none of its
own. It must answer with a TypeError or a ValueError that names the argument, before any
network runs. The rows hold good arguments, and say which of the kinds are good, too.
"""

import functools
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
    editing,
    generators,
    inspection,
    metrics,
)
from panda_sklearn.datasets import (
    load_face_diffusion,
    load_face_edits,
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)
from panda_sklearn.model_selection import OneStandardError
from tests.bad_values import arguments_of, bad_values, counted_passes, verdict
from tests.generators import families
from tests.networks import TinyGenerator

PUBLIC_MODULES = [
    "panda_sklearn",
    "panda_sklearn.datasets",
    "panda_sklearn.editing",
    "panda_sklearn.explorer",
    "panda_sklearn.generators",
    "panda_sklearn.inspection",
    "panda_sklearn.metrics",
    "panda_sklearn.model_selection",
]

# Public names without a row, and why.
NO_ROW = {
    "Inversion": "a record that invert makes",
    "LayerInfo": "a record that list_layers makes",
    "PreparedImages": "a record that LocalEditor.prepare makes",
    "explore": "needs gradio: explorer/test_page.py",
    "PartsAppearanceDecomposition.load": "paths and files: test_saving.py",
    "PartsAppearanceDecomposition.save": "paths and files: test_saving.py",
    "load_edits": "paths and files: editing/test_files.py",
    "save_edits": "paths and files: editing/test_files.py",
}

# Kinds that are good values of common arguments.
FLAG = "bool"
NUMBER = "fraction negative"


@dataclass
class Row:
    """A public function, good arguments, and what else is good or good enough.

    ``valid`` are the kinds that are good values, too, ``tried`` those of which only the
    network can tell, however it does; ``words`` what the documentation calls an
    argument beside its name.
    """

    name: str
    call: object
    good: dict
    valid: dict = field(default_factory=dict)
    tried: dict = field(default_factory=dict)
    words: dict = field(default_factory=dict)


@functools.cache
def world():
    """A tiny generator, fitted estimators and what they give."""
    z = np.random.default_rng(0).standard_normal((3, 6))
    extractor = GeneratorFeatureExtractor(TinyGenerator(), "block1").fit(z)
    X = extractor.transform(z)
    panda = PartsAppearanceDecomposition(3, 4, max_iter=5, tol=0, random_state=0).fit(X)
    editor = LocalEditor(extractor, panda)
    edit = Edit(1, 2, 3.0)
    search = GridSearchCV(panda, {"n_parts": [1, 2]}, cv=3).fit(X)
    return SimpleNamespace(
        z=z,
        X=X,
        generator=extractor.generator,
        extractor=extractor,
        panda=panda,
        pipeline=make_pipeline(extractor, panda),
        editor=editor,
        edit=edit,
        search=search,
        images=extractor.generate(z),
        edited=editor.edit(z, edit),
        parts=panda.parts_,
    )


def extractor_rows(w):
    yield Row(
        "GeneratorFeatureExtractor",
        lambda **params: GeneratorFeatureExtractor(**params).fit(w.z),
        {
            "generator": w.generator,
            "layer": "block1",
            "forward": generators.ProGAN(),
            "tap": "output",
            "select": None,
            "call": None,
            "calls_as": "samples",
            "guidance": None,
            "channel_axis": 1,
            "n_prefix_tokens": 0,
            "token_grid": None,
            "batch_size": 32,
            "device": "cpu",
            "verbose": 0,
            "stream": False,
        },
        valid={
            **dict.fromkeys(("forward", "select", "call", "device"), "none"),
            "guidance": "none",
            "channel_axis": "negative",
            "token_grid": "none",
            "verbose": FLAG,
            "stream": FLAG,
        },
        tried={"select": "str negative"},
    )
    fresh = GeneratorFeatureExtractor(w.generator, "block1")
    for method in ("fit", "fit_transform"):
        yield Row(
            f"GeneratorFeatureExtractor.{method}",
            getattr(fresh, method),
            {"X": w.z},
            valid={"X": "short"},
            tried={"X": "rank length"},
            words={"X": ["latents"]},
        )
    yield Row(
        "GeneratorFeatureExtractor.transform",
        w.extractor.transform,
        {"X": w.z, "out": np.empty_like(w.X)},
        valid={"X": "", "out": "none with-nan tensor-nan all-huge"},
        words={"X": ["out"]},  # which must be as long
    )
    yield Row(
        "GeneratorFeatureExtractor.batches",
        w.extractor.batches,
        {"latents": w.z},
        valid={"latents": "short"},
    )
    yield Row(
        "GeneratorFeatureExtractor.generate",
        w.extractor.generate,
        {"latents": w.z, "features": w.X},
        valid={"features": "none"},
    )
    yield Row(
        "GeneratorFeatureExtractor.split_calls",
        w.extractor.split_calls,
        {"features": w.X},
        # Whatever has rows can be arranged.
        valid={"features": "short flat rank length all-huge"},
    )
    yield Row(
        "GeneratorFeatureExtractor.get_feature_names_out",
        w.extractor.get_feature_names_out,
        {"input_features": None},
        valid={"input_features": "none"},
    )
    yield Row(
        "GeneratorFeatureExtractor.set_output",
        w.extractor.set_output,
        {"transform": "pandas"},
        valid={"transform": "none"},
    )


def decomposition_rows(w):
    yield Row(
        "PartsAppearanceDecomposition",
        lambda **params: PartsAppearanceDecomposition(**params).fit(w.X),
        {
            "n_parts": 2,
            "n_appearances": 2,
            "solver": "spg",
            "init": "hosvd",
            "n_init": 2,
            "max_iter": 3,
            "tol": 0.0,
            "learning_rate": None,
            "batch_size": 2,
            "nonnegative": True,
            "map_shape": None,
            "channel_axis": 1,
            "device": "cpu",
            "distributed": "auto",
            "random_state": 0,
            "verbose": 0,
        },
        valid={
            **dict.fromkeys(("n_parts", "n_appearances", "batch_size"), "none"),
            **dict.fromkeys(("learning_rate", "map_shape", "device"), "none"),
            "tol": "fraction huge",
            "nonnegative": FLAG,
            "channel_axis": "negative",
            "random_state": "none",
            "verbose": FLAG,
        },
    )
    fresh = PartsAppearanceDecomposition(2, 2, n_init=1, max_iter=2, tol=0)
    for method in ("fit", "partial_fit"):
        yield Row(
            f"PartsAppearanceDecomposition.{method}",
            lambda X, method=method: getattr(clone(fresh), method)(X),
            {"X": w.X},
            valid={"X": "flat length short rank all-huge"},
        )
    for method, shape in {"transform": (12,), "coefficients": (4, 3)}.items():
        yield Row(
            f"PartsAppearanceDecomposition.{method}",
            getattr(w.panda, method),
            {"X": w.X, "out": np.empty((len(w.X), *shape))},
            valid={"X": "all-huge", "out": "none with-nan tensor-nan all-huge"},
            words={"X": ["out"]},  # which must be as long
        )
    for method, more in {
        "score": {},
        "part_distances": {},
        "saliency": {"size": 8},
        "localize": {
            "appearance": 1,
            "threshold": "mean",
            "size": 8,
            "upsample_first": True,
        },
        "refine": {"max_iter": 2},
        "reconstruction_errors": {"parts": w.panda.refine(w.X)},
    }.items():
        yield Row(
            f"PartsAppearanceDecomposition.{method}",
            getattr(w.panda, method),
            {"X": w.X, **more},
            valid={
                "X": "all-huge" + " short" * ("parts" not in more),
                "size": "none",
                "threshold": f"{NUMBER} huge",
                "upsample_first": FLAG,
                "parts": "none all-huge",
            },
        )
    yield Row(
        "PartsAppearanceDecomposition.inverse_transform",
        w.panda.inverse_transform,
        {"X": w.panda.transform(w.X)},
        valid={"X": "short all-huge"},
    )
    yield Row(
        "PartsAppearanceDecomposition.align_to",
        clone(w.panda).fit(w.X).align_to,
        {"other": w.panda},
    )
    yield Row(
        "PartsAppearanceDecomposition.variations",
        w.panda.variations,
        {"part": 1, "n_variations": 2, "given": "others"},
        valid={"n_variations": "none", "given": "none"},
    )
    yield Row(
        "PartsAppearanceDecomposition.get_feature_names_out",
        w.panda.get_feature_names_out,
        {"input_features": None},
        valid={"input_features": "none"},
    )


def editor_rows(w):
    latents = {"latents": w.z}
    where = {"threshold": "mean", "upsample_first": True}
    valid = {
        "latents": "short",
        "refine": FLAG,
        "region": "none",
        "threshold": f"{NUMBER} huge",
        "upsample_first": FLAG,
        "fill": NUMBER,
        "part": "none",
        "strength": NUMBER,
    }
    yield Row(
        "LocalEditor",
        LocalEditor,
        {"extractor": w.extractor, "decomposition": w.panda},
    )
    yield Row(
        "LocalEditor.from_pipeline",
        LocalEditor.from_pipeline,
        {"pipeline": w.pipeline},
    )
    for method, target in (
        ("edit", "fraction none"),
        ("find_strengths", "fraction"),
    ):
        yield Row(
            f"LocalEditor.{method}",
            getattr(w.editor, method),
            {
                **latents,
                "edits": [w.edit],
                "target_change": 0.1,
                "refine": False,
                "region": None if method == "edit" else np.ones((8, 8)),
                "value_range": None if method == "edit" else (-1, 1),
            },
            valid={**valid, "target_change": target, "value_range": "none"},
        )
    yield Row(
        "LocalEditor.transfer",
        w.editor.transfer,
        {
            **latents,
            "donors": w.z[:1],
            "part": 1,
            "amount": 1.0,
            "mix": False,
            "mean": False,
            "refine": False,
        },
        valid={
            "latents": valid["latents"],
            "amount": NUMBER,
            **dict.fromkeys(("mix", "mean", "refine"), FLAG),
        },
    )
    yield Row(
        "LocalEditor.prepare",
        w.editor.prepare,
        {"latents": latents["latents"]},
        valid={"latents": valid["latents"]},
    )
    yield Row(
        "PreparedImages.edit",
        w.editor.prepare(w.z).edit,
        {"edits": Edit(0, 1, 1.0), "refine": False},
        valid={"refine": FLAG},
    )
    yield Row(
        "LocalEditor.remove",
        w.editor.remove,
        {
            **latents,
            "appearance": 1,
            "part": None,
            "strength": 1.0,
            "unit": "std",
            "threshold": "mean",
            "refine": False,
            "variation": None,
            "given": None,
        },
        valid={**valid, "refine": "", "given": "none", "variation": "none"},
    )
    yield Row(
        "LocalEditor.mask",
        w.editor.mask,
        {**latents, "appearance": 1, **where},
        valid=valid,
    )
    yield Row(
        "LocalEditor.remove_pixels",
        w.editor.remove_pixels,
        {**latents, "appearance": 1, "fill": 0.0, **where},
        valid=valid,
    )
    yield Row(
        "LocalEditor.rank_edits",
        w.editor.rank_edits,
        {
            **latents,
            "appearances": [0, 1],
            "parts": [0, 1],
            "variations": [0],
            "strength": 1.0,
            "unit": "std",
            "sort_by": "effect",
            "value_range": (-1, 1),
            "verbose": 0,
        },
        valid={
            **valid,
            "value_range": "none",
            "appearances": "none set",
            "parts": "none set",
            "variations": "none set",
            "strength": "fraction length",
            "verbose": FLAG,
        },
    )


def inversion_rows(w):
    yield Row(
        "LocalEditor.find_directions",
        w.editor.find_directions,
        {
            "latents": w.z,
            "part": 1,
            "n_directions": 2,
            "region": np.ones((8, 8)),
            "naturalness": 0.1,
            "derivatives": "auto",
            "verbose": 0,
        },
        valid={
            "latents": "short",
            "region": "none",
            "naturalness": "fraction",
            "verbose": FLAG,
        },
    )
    yield Row(
        "invert",
        editing.invert,
        {
            "extractor": w.extractor,
            "images": w.images,
            "samples": np.concatenate([w.z, w.z]),
            "loss": lambda made, targets: (made - targets).square().flatten(1).mean(1),
            "prior": 0.1,
            "n_steps": 1,
            "n_starts": 2,
            "learning_rate": 0.1,
            "value_range": (-1, 1),
            "random_state": 0,
            "verbose": 0,
        },
        valid={
            "images": "short",
            "samples": "none short",
            "loss": "none",
            "prior": "fraction",
            "learning_rate": "fraction",
            "value_range": "none",
            "random_state": "none",
            "verbose": FLAG,
        },
    )
    yield Row(
        "align_face",
        editing.align_face,
        {
            "image": np.ones((70, 70, 3)),
            "landmarks": [(22, 27), (42, 27), (32, 49)],
            "size": 8,
        },
        valid={"image": "short flat length"},
    )


def edit_rows(w):
    part = w.parts[0]
    any_shape = "rank flat length short"
    yield Row(
        "Edit",
        Edit,
        {
            "appearance": 1,
            "part": 0,
            "strength": 2.0,
            "unit": "std",
            "variation": None,
            "latent": None,
            "coefficients": None,
            "features": None,
            "given": None,
            "calls": None,
            "branches": "own",
            "name": "smile",
        },
        valid={
            "appearance": "length negative",  # the editor knows how many there are
            "unit": "none",
            **dict.fromkeys(("variation", "latent", "coefficients"), "none"),
            "features": "none",
            "given": "none",
            "calls": "none",
            "name": "none str",
            "part": "length negative",
            "strength": f"{NUMBER} length",
        },
    )
    yield Row(
        "EditedGenerator",
        editing.EditedGenerator,
        {
            "editor": w.editor,
            "edits": w.edit,
            "refine": False,
            "learn_strengths": True,
            "learn_vectors": True,
            "learn_masks": True,
        },
        valid={
            "refine": "",
            **dict.fromkeys(("learn_strengths", "learn_vectors", "learn_masks"), FLAG),
        },
    )
    yield Row(
        "EditedGenerator.forward",
        editing.EditedGenerator(w.editor, w.edit).forward,
        {"latents": torch.from_numpy(w.z).float()},
        valid={"latents": "short tensor-nan"},  # as of any module
        tried={"latents": "length rank flat no-samples"},
    )
    yield Row(
        "scale_part", editing.scale_part, {"part": part}, valid={"part": any_shape}
    )
    yield Row(
        "split_part",
        editing.split_part,
        {"part": part, "threshold": 0.5},
        valid={"part": any_shape, "threshold": "fraction"},
    )
    yield Row(
        "intersect_part",
        editing.intersect_part,
        {"part": part, "mask": np.ones((4, 4))},
    )
    yield Row(
        "merge_parts",
        lambda parts: editing.merge_parts(part, parts),
        {"parts": part},
        words={"parts": ["part 1"]},
    )


def tiny_denoiser():
    """A network that takes no noise away, and a scheduler for it."""
    diffusers = pytest.importorskip("diffusers")

    class Nothing(nn.Module):
        config = SimpleNamespace(sample_size=8, in_channels=3)

        def forward(self, x, t):
            return 0 * x

    return Nothing(), diffusers.DDIMScheduler()


def generator_rows(w):
    yield Row(
        "sample_latents",
        sample_latents,
        {
            "generator": w.generator,
            "n_samples": 2,
            "random_state": 0,
            "forward": generators.ProGAN(),
            "classes": None,
        },
        valid=dict.fromkeys(("random_state", "forward", "classes"), "none"),
    )
    for name in ("list_layers", "GeneratorFeatureExtractor.list_layers"):
        yield Row(
            name,
            generators.list_layers,
            {"generator": w.generator, "latents": w.z, "forward": generators.ProGAN()},
            valid={"latents": "short rank", "forward": "none"},
            tried={"latents": "flat length"},
        )
    yield Row("fingerprint", generators.fingerprint, {"network": w.generator})
    yield Row(
        "LayerTable",
        generators.LayerTable,
        {"layers": generators.list_layers(w.generator, w.z)},
        valid={"layers": "empty"},
    )
    unet, scheduler = tiny_denoiser()
    yield Row(
        "Diffusion",
        generators.Diffusion,
        {
            "pipeline": unet,
            "scheduler": scheduler,
            "n_steps": 2,
            "label": None,
            "prompt": None,
            "negative_prompt": "",
            "guidance_scale": None,
            "sample_size": 8,
        },
        valid={
            "label": "none",
            "prompt": "none",
            "guidance_scale": "none",
            "sample_size": "none",
        },
    )
    yield Row(
        "Diffusion.calls_at",
        generators.Diffusion(unet, scheduler, n_steps=2).calls_at,
        {"steps": [0, 1]},
        valid={"steps": "short set"},
    )
    yield Row(
        "Diffusion.forward",
        generators.Diffusion(unet, scheduler, n_steps=1).forward,
        {"latents": torch.zeros(2, 3, 8, 8), "rows": None},
        # As of any module; without conditions, rows are not looked at.
        valid={"latents": "short no-samples tensor-nan", "rows": "none torch-sparse"},
    )
    styled = {
        "convention": "nvidia",
        "truncation_psi": 1.0,
        "truncation_layers": 2,
        "latent_space": "z",
        "noise_mode": "const",
        "w_avg": np.ones(4),
    }
    moved = {**styled, "transform": np.eye(3)}
    del moved["convention"]
    for name, build, settings in (
        ("ProGAN", TinyGenerator, {"convention": "plain"}),
        ("BigGAN", families.BrockBigGANNet, {"convention": "brock", "truncation": 1.0}),
        ("StyleGAN", families.NvidiaStyleGAN2Net, styled),
        ("StyleGAN2", families.NvidiaStyleGAN2Net, styled),
        ("StyleGAN3", families.StyleGAN3Net, moved),
    ):
        family = getattr(generators, name)
        yield Row(
            name,
            family,
            {"label": 1, **settings},
            valid={
                "label": "none length",
                "truncation": "fraction",
                "truncation_psi": NUMBER,
                "truncation_layers": "none",
                "w_avg": "none length short",
                "transform": "none",
            },
        )
        yield Row(
            f"{name}.__call__",
            family(label=1) if name == "BigGAN" else family(),
            {
                "generator": families.seeded(build),
                "latents": torch.from_numpy(w.z).float(),
            },
            valid={"latents": "short tensor-nan"},  # as of any module
            tried={"latents": "length rank flat no-samples"},
        )


def data_rows(w):
    yield Row(
        "load_face_generator",
        load_face_generator,
        {"truncation": 0.7},
        valid={"truncation": "fraction"},
    )
    yield Row(
        "load_face_edits",
        load_face_edits,
        {"truncation": 0.7},
        valid={"truncation": "fraction"},
    )
    yield Row("load_face_diffusion", load_face_diffusion, {"n_steps": 2})
    yield Row(
        "make_parts_appearances",
        make_parts_appearances,
        {
            "n_samples": 3,
            "n_parts": 2,
            "n_appearances": 2,
            "n_channels": 3,
            "spatial_shape": (2, 2),
            "snr_db": 10.0,
            "random_state": 0,
        },
        valid={"snr_db": f"none {NUMBER}", "random_state": "none"},
    )
    results = {
        "params": [{"n_parts": 1}, {"n_parts": 2}],
        "mean_test_score": np.array([0.1, 0.2]),
        "split0_test_score": np.array([0.1, 0.2]),
    }
    yield Row(
        "OneStandardError",
        lambda metric: OneStandardError(metric)(results),
        {"metric": "score"},
    )
    yield Row("OneStandardError.__call__", OneStandardError(), {"cv_results": results})


def metric_rows(w):
    any_shape = "rank flat length short all-huge"
    yield Row(
        "match_factors",
        metrics.match_factors,
        {"factors": w.parts, "others": w.parts, "ignore_sign": False},
        valid={
            "factors": "short all-huge",
            "others": "short all-huge",
            "ignore_sign": FLAG,
        },
    )
    yield Row(
        "parts_overlap",
        metrics.parts_overlap,
        {"parts": w.parts},
        valid={"parts": any_shape},
    )
    for name, share in (("dead_parts", "tol"), ("duplicate_parts", "threshold")):
        yield Row(
            name,
            getattr(metrics, name),
            {"parts": w.parts, share: 0.1},
            valid={"parts": any_shape, share: "fraction"},
        )
    yield Row(
        "roi_ratio",
        metrics.roi_ratio,
        {
            "mask": np.ones((8, 8)),
            "images": w.images,
            "edited": w.edited,
            "average": True,
        },
        valid={"images": "all-huge", "edited": "all-huge", "average": FLAG},
    )
    for name in ("outside_psnr", "outside_ssim"):
        yield Row(
            name,
            getattr(metrics, name),
            {
                "mask": np.eye(8),
                "images": w.images,
                "edited": w.edited,
                "value_range": (-1, 1),
                "average": True,
            },
            valid={"images": "all-huge", "edited": "all-huge", "average": FLAG},
        )
    yield Row(
        "sliced_wasserstein_distance",
        metrics.sliced_wasserstein_distance,
        {"X": w.images, "Y": w.edited, "n_projections": 2, "random_state": 0},
        valid={"X": "short all-huge", "Y": "short all-huge", "random_state": "none"},
    )
    yield Row(
        "frechet_distance",
        metrics.frechet_distance,
        {
            "X": w.images,
            "Y": w.edited,
            "network": lambda batch: batch.flatten(1)[:, :4],
            "batch_size": 3,
        },
        valid=dict.fromkeys("XY", "short length flat all-huge"),
    )
    scored = {"estimator": w.pipeline, "X": w.z}
    folds = {"held_out": "positions", "n_folds": 3, "random_state": 0}
    for name, good in (
        ("reconstruction", scored),
        ("heldout_reconstruction", {**scored, **folds}),
        ("stability", {**scored, "of": "parts"}),
    ):
        yield Row(
            name,
            getattr(metrics, name),
            good,
            valid={"X": "short", "random_state": "none"},
        )
    for name in ("neg_parts_overlap", "distinct_parts"):
        yield Row(
            name,
            functools.partial(getattr(metrics, name), X=None),
            {"estimator": w.pipeline},
        )


def display_rows(w):
    show = inspection
    drawn = {"value_range": (-1, 1), "axes": None}
    colored = {**drawn, "cmap": "magma"}
    latents = {"editor": w.editor, "latents": w.z}
    samples = {"estimator": w.panda, "X": w.X, "images": w.images}
    for name, call, good, valid in (
        (
            "EditDisplay.from_editor",
            show.EditDisplay.from_editor,
            {
                **latents,
                "edits": w.edit,
                "refine": False,
                "target_change": None,
                **colored,
            },
            {"latents": "short", "refine": FLAG, "target_change": "none fraction"},
        ),
        (
            "EditDisplay.from_images",
            show.EditDisplay.from_images,
            {"images": w.images, "edited": w.edited, **colored},
            {},
        ),
        (
            "StrengthsDisplay.from_editor",
            show.StrengthsDisplay.from_editor,
            {
                **latents,
                "edit": w.edit,
                "strengths": [0.0, 1.0],
                "refine": False,
                **drawn,
            },
            {"latents": "short", "strengths": "length", "refine": FLAG},
        ),
        (
            "EditGalleryDisplay.from_editor",
            show.EditGalleryDisplay.from_editor,
            {
                **latents,
                "edits": [w.edit],
                "refine": False,
                "target_change": None,
                **drawn,
            },
            {"latents": "short", "refine": FLAG, "target_change": "none fraction"},
        ),
        (
            "EditMatrixDisplay.from_editor",
            show.EditMatrixDisplay.from_editor,
            {
                **latents,
                "latents": w.z[:1],
                "appearances": [0, 1],
                "parts": [0],
                "strength": 1.0,
                "unit": "std",
                "target_change": None,
                **drawn,
            },
            {
                "appearances": "set",
                "parts": "set",
                "strength": NUMBER,
                "target_change": "none fraction",
            },
        ),
        (
            "VariationsDisplay.from_editor",
            show.VariationsDisplay.from_editor,
            {
                **latents,
                "latents": w.z[:1],
                "parts": [0],
                "variations": [0, 1],
                "strength": 1.0,
                "given": None,
                **drawn,
            },
            {"parts": "none set", "variations": "none set", "given": "none"}
            | {"strength": "fraction"},
        ),
        (
            "PartsDisplay.from_estimator",
            show.PartsDisplay.from_estimator,
            {"estimator": w.panda, "images": w.images, **colored},
            {"images": "none short length"},
        ),
        (
            "RefinementDisplay.from_estimator",
            show.RefinementDisplay.from_estimator,
            {**samples, "parts": [0], **drawn},
            {"X": "all-huge", "images": "length", "parts": "none set"},
        ),
        (
            "SaliencyDisplay.from_estimator",
            show.SaliencyDisplay.from_estimator,
            {**samples, "appearances": [0], "masks": False, **colored},
            {
                "X": "all-huge",
                "images": "none length",
                "appearances": "none set",
                "masks": FLAG,
            },
        ),
    ):
        yield Row(name, call, good, valid={**dict.fromkeys(drawn, "none"), **valid})
    axes = {"ax": None, "cmap": "magma"}
    for name, call, good, valid in (
        (
            "RanksDisplay.from_search",
            show.RanksDisplay.from_search,
            {"search": w.search, "metric": "score"},
            {"metric": "none"},
        ),
        (
            "RanksDisplay.from_cv_results",
            show.RanksDisplay.from_cv_results,
            {
                "cv_results": w.search.cv_results_,
                "metric": "score",
                "best_index": 1,
            },
            {"best_index": "none"},
        ),
    ):
        yield Row(name, call, {**good, **axes}, valid={"ax": "none", **valid})


def drawing_rows(w):
    """Displays, whose arrays are checked when they are drawn."""
    show = inspection
    pictures = np.ones((2, 8, 8, 3))
    maps = np.ones((2, 3, 4, 4))
    for display, arrays, valid in (
        (show.EditDisplay, {"before": pictures, "after": pictures}, {}),
        (
            show.StrengthsDisplay,
            {
                "pictures": np.ones((2, 3, 8, 8, 3)),
                "strengths": [1, 2, 3],
                "unit": "std",
            },
            {"pictures": "short"},
        ),
        (
            show.EditGalleryDisplay,
            {
                "before": pictures,
                "after": np.ones((2, *np.shape(pictures))),
                "labels": ["smile", "brows"],
            },
            {},
        ),
        (
            show.EditMatrixDisplay,
            {
                "picture": pictures[0],
                "pictures": np.ones((2, 1, 8, 8, 3)),
                "appearances": [0, 1],
                "parts": [0],
            },
            {},
        ),
        (
            show.VariationsDisplay,
            {
                "picture": pictures[0],
                "pictures": np.ones((1, 2, 2, 8, 8, 3)),
                "parts": [0],
                "variations": [0, 1],
                "strength": 2.0,
            },
            {"strength": NUMBER},
        ),
        (
            show.PartsDisplay,
            {"parts": maps[0], "pictures": pictures},
            {"parts": "length short", "pictures": "none short"},
        ),
        (
            show.RefinementDisplay,
            {
                "parts": maps[0],
                "refined": maps,
                "pictures": pictures,
                "falls": np.ones(2),
                "shown": [0, 1, 2],
            },
            {"falls": "all-huge"},
        ),
        (
            show.SaliencyDisplay,
            {
                "saliency": maps,
                "appearances": [0, 1, 2],
                "thresholds": np.ones(3),
                "pictures": pictures,
                "masks": False,
            },
            {
                "saliency": "length all-huge",
                "thresholds": "all-huge",
                "pictures": "none",
                "masks": FLAG,
            },
        ),
        (
            show.RanksDisplay,
            {
                "scores": np.ones((2, 3)),
                "errors": np.zeros((2, 3)),
                "n_parts": [2, 3, None],
                "n_appearances": [4, 5],
                "chosen": (0, 1),
                "metric": "score",
            },
            {
                **dict.fromkeys(("scores", "errors"), "with-nan tensor-nan all-huge"),
                "chosen": "none",
                "metric": "str",
            },
        ),
    ):
        name = display.__name__
        yield Row(
            name,
            lambda display=display, **arrays: display(**arrays).plot(),
            arrays,
            valid=valid,
        )
        plot = display(**arrays).plot
        options = {"axes": None, "ax": None, "cmap": "magma"}
        yield Row(
            f"{name}.plot",
            plot,
            {option: options[option] for option in arguments_of(plot)},
            valid={"axes": "none", "ax": "none"},
        )


@functools.cache
def rows():
    """All rows by name."""
    areas = (
        extractor_rows,
        decomposition_rows,
        editor_rows,
        inversion_rows,
        edit_rows,
        generator_rows,
        data_rows,
        metric_rows,
        display_rows,
        drawing_rows,
    )
    return {row.name: row for area in areas for row in area(world())}


def public_functions():
    """All public functions, classes and methods of ours, by name."""
    for module in map(importlib.import_module, PUBLIC_MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            yield name, thing
            for member in dir(thing) if inspect.isclass(thing) else ():
                method = getattr(thing, member)
                ours = str(getattr(method, "__module__", "")).startswith("panda_sk")
                public = not member.startswith("_") or member == "__call__"
                if ours and public and callable(method) and not inspect.isclass(method):
                    yield f"{name}.{member}", method


FUNCTIONS = {
    name: function for name, function in public_functions() if name not in NO_ROW
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def skip_what_is_not_installed(name):
    needed = {
        "sliced_wasserstein_distance": "ot",
        **dict.fromkeys(
            ("frechet_distance", "outside_psnr", "outside_ssim"), "torchmetrics"
        ),
    }
    if name in needed:
        pytest.importorskip(needed[name])
    if "Display" in name:
        pytest.importorskip("matplotlib")


def calls_of(row):
    """Bad calls, and those with further good values: argument, kind, arguments."""
    for argument, good in row.good.items():
        for kind, value in bad_values(good):
            yield argument, kind, {**row.good, argument: value}


def answers_of(row):
    """Answers to these: argument, kind, what it should be and is, the message."""
    with counted_passes() as n_passes:
        for argument, kind, arguments in calls_of(row):
            words = [argument, *row.words.get(argument, ())]
            found, message = verdict(row.call, arguments, words, n_passes)
            right = (
                "accepted" if kind in row.valid.get(argument, "").split() else "named"
            )
            if kind not in row.tried.get(argument, "").split():
                yield argument, kind, right, found, message


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_refused_by_name_before_any_work(name):
    skip_what_is_not_installed(name)
    row = rows()[name]
    row.call(**row.good)
    wrong = [
        f"{argument}={kind} is {found}, not {right}: {message}"
        for argument, kind, right, found, message in answers_of(row)
        if found != right
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_tried(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    ignored = {name for name in arguments_of(function) if f"{name} : Ignored" in text}
    assert set(rows()[name].good) == set(arguments_of(function)) - ignored


# What is not a kind of bad value, but a bad value of one argument.


def test_parts_to_merge_are_given_one_by_one():
    parts = world().parts
    with pytest.raises(TypeError, match=r"merge_parts\(\*parts\)"):
        editing.merge_parts([parts[0], parts[1]])
    nested = [[0.0, 1.0], [2.0, 0.0]]  # one part, as a list
    np.testing.assert_array_equal(editing.merge_parts(nested), [[0, 0.5], [1, 0]])


@pytest.mark.parametrize("value_range", [(1, 1), (1, -1), (0, 1, 2), (0, "1"), (0,)])
def test_a_range_is_two_rising_numbers(value_range):
    with pytest.raises((TypeError, ValueError), match="value_range"):
        inspection.PartsDisplay.from_estimator(
            world().panda, world().images, value_range=value_range
        )


def test_what_is_added_fits_in_single_precision():
    w = world()
    vector = np.full(5, 1e20)
    with pytest.raises(ValueError, match=r"strength=1e\+20 is too large"):
        w.editor.edit(w.z, Edit(vector, 0, 1e20, "alpha"))
    with pytest.raises(ValueError, match=r"strength=3e\+38 is too large"):
        w.editor.edit(w.z, Edit(np.full(5, 2.0), 0, np.array([1, 1, 3e38]), "alpha"))


def test_masks_are_not_dropped():
    w = world()
    hidden = np.ma.masked_array(w.z[0], w.z[0] > 0)
    with pytest.raises(ValueError, match=r"X .*masked"):
        w.extractor.transform([hidden, w.z[1]])
    whole = np.ma.masked_array(w.z)
    np.testing.assert_array_equal(w.extractor.transform(whole), w.X)


@pytest.mark.parametrize("true", [True, np.True_])
def test_true_is_no_number(true):
    w = world()
    for call in (
        lambda: w.editor.rank_edits(w.z, parts=[true]),
        lambda: w.editor.edit(w.z, Edit(1, true)),
        lambda: PartsAppearanceDecomposition(map_shape=(true, 80)).fit(
            w.X.reshape(3, -1)
        ),
        lambda: Edit(1, 0, np.array([True, False])),
    ):
        with pytest.raises((TypeError, ValueError), match=r"part|map_shape|strength"):
            call()


def test_folds_are_counted_before_the_network_runs():
    w = world()
    with counted_passes() as n_passes:
        with pytest.raises(ValueError, match="smaller n_folds"):
            metrics.heldout_reconstruction(w.pipeline, w.z, n_folds=17)
        with pytest.raises(ValueError, match="larger n_folds"):
            metrics.heldout_reconstruction(w.pipeline, w.z, n_folds=2, held_out="both")
    assert n_passes() == 0


# Parameters that were changed after fit.


def calls_after_fit(w):
    """Public methods that use parameters, of the two estimators and the editor."""
    extractor, panda, editor = w.extractor, w.panda, w.editor
    T = panda.transform(w.X)
    by_extractor = {
        "transform": lambda: extractor.transform(w.z),
        "generate": lambda: extractor.generate(w.z),
    }
    by_panda = {
        "transform": lambda: panda.transform(w.X),
        "coefficients": lambda: panda.coefficients(w.X),
        "inverse_transform": lambda: panda.inverse_transform(T),
        "score": lambda: panda.score(w.X),
        "saliency": lambda: panda.saliency(w.X),
        "localize": lambda: panda.localize(w.X, 0),
        "refine": lambda: panda.refine(w.X),
        "reconstruction_errors": lambda: panda.reconstruction_errors(w.X),
        "partial_fit": lambda: panda.partial_fit(w.X),
        "save": lambda: panda.save("never written"),
    }
    by_both = {
        "edit": lambda: editor.edit(w.z, w.edit),
        "find_strengths": lambda: editor.find_strengths(w.z, w.edit, 0.1),
        "remove": lambda: editor.remove(w.z, 0),
        "transfer": lambda: editor.transfer(w.z, w.z, 0),
        "mask": lambda: editor.mask(w.z, 0),
        "remove_pixels": lambda: editor.remove_pixels(w.z, 0),
        "rank_edits": lambda: editor.rank_edits(w.z),
        "LocalEditor": lambda: LocalEditor(extractor, panda),
        "EditedGenerator": lambda: editing.EditedGenerator(editor, w.edit),
    }
    yield extractor, {"batch_size": 0}, {**by_extractor, **by_both}
    yield extractor, {"verbose": "loud"}, {**by_extractor, **by_both}
    yield panda, {"channel_axis": True}, {**by_panda, **by_both}
    yield panda, {"tol": -1.0}, {**by_panda, **by_both}


@pytest.mark.parametrize("case", range(4))
def test_parameters_are_checked_where_they_are_used(case):
    estimator, params, calls = list(calls_after_fit(world()))[case]
    (name,) = params
    before = {name: getattr(estimator, name)}
    estimator.set_params(**params)
    try:
        with counted_passes() as n_passes:
            for method, call in calls.items():
                with pytest.raises(ValueError, match=f"'{name}' parameter"):
                    call()
                    pytest.fail(f"{method} took {params}")
        assert n_passes() == 0
    finally:
        estimator.set_params(**before)


def test_scikit_learns_switch_turns_that_off():
    w = world()
    w.panda.set_params(tol=-1.0)
    try:
        with config_context(skip_parameter_validation=True):
            w.panda.transform(w.X)
    finally:
        w.panda.set_params(tol=0)
