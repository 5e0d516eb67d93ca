"""How good the face generator is, beside other weights measured in the same run.

    python benchmarks/bench_face_generator.py --images faces64.tar \
        --other old.safetensors lfw64.tar --pictures panda_pictures

Each generator is compared with the photographs that it was trained on, and with the 500
photographs that ``examples/train_face_generator.py`` leaves out:

distance    sliced Wasserstein distance of 500 samples to the photographs left out, as a
            multiple of the distance of 500 other photographs to them; means over ten
            draws, at 16, 32 and 64 pixels
variety     median distance of a sample to the nearest of 2,000 samples, over that of a
            photograph among 2,000 (at 16 x 16 pixels, as is copying)
copying     median distance of a sample to the nearest photograph, over the median
            distance of a photograph to the nearest other one; and the smallest distance
steadiness  mean cosine of matched parts of fits to three sets of 1,000 samples

The pictures are samples of seeds 0 to 95, with and without truncation, as many of the
photographs left out, and the parts of the fits.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from importlib import util
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.datasets._face_generator import FaceGenerator
from panda_sklearn.inspection import PartsDisplay
from panda_sklearn.metrics import match_factors

N_HELD_OUT = 500
N_DRAWS = 10
LAYERS = ("block16", "block32")
N_PARTS = (8, 12, 16)


def load_script():
    """The training script as a module, for its functions on images."""
    path = Path(__file__).parents[1] / "examples/train_face_generator.py"
    spec = util.spec_from_file_location("train_face_generator", path)
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def load_other(path):
    """A generator with these weights, whatever its widths."""
    weights = {name: weight.float() for name, weight in load_file(path).items()}
    widths = {
        size: len(weights[f"block{size}.conv1.bias"]) for size in (4, 8, 16, 32, 64)
    }
    generator = FaceGenerator(widths)
    generator.load_state_dict(weights)
    return generator.eval().requires_grad_(False)


def samples_of(generator, n_samples, seed, truncation=1.0):
    """Images from -1 to 1."""
    latents = sample_latents(generator, n_samples, random_state=seed)
    images = [generator(z, truncation) for z in latents.split(50)]
    return torch.cat(images).clamp(-1, 1)


def seeds(generator, n_samples, truncation=1.0):
    """One image for each seed."""
    latents = [sample_latents(generator, 1, random_state=i) for i in range(n_samples)]
    return generator(torch.cat(latents), truncation).clamp(-1, 1)


def figures_of(script, generator, photographs):
    """Print the distances, variety and copying."""
    held_out, seen = photographs[-N_HELD_OUT:], photographs[:-N_HELD_OUT]
    samples = samples_of(generator, N_DRAWS * N_HELD_OUT, seed=1)
    draws = [
        script.distances_to(held_out, x[i * N_HELD_OUT : (i + 1) * N_HELD_OUT])
        for x in (samples, seen)
        for i in range(N_DRAWS)
    ]
    far, near = (np.mean(half, axis=0) for half in (draws[:N_DRAWS], draws[N_DRAWS:]))
    print("distance   ", "  ".join(f"{ratio:.2f}" for ratio in far / near))
    print(f"variety     {script.variety(samples[:2000], seen[:2000]):.2f}")
    to_photographs = script.nearest(samples[:2000], photographs)
    usual = script.nearest(photographs).median()
    median, least = to_photographs.median() / usual, to_photographs.min() / usual
    print(f"copying     {median:.2f}, at least {least:.2f}")


def parts_of(generator, pictures, name):
    """Print the steadiness of parts, and draw those of the first fit."""
    for layer, n_parts in itertools.product(LAYERS, N_PARTS):
        fits = []
        for seed in range(3):
            latents = sample_latents(generator, 1000, random_state=seed)
            extractor = GeneratorFeatureExtractor(generator, layer).fit(latents)
            panda = PartsAppearanceDecomposition(
                n_parts=n_parts, n_appearances=24, random_state=0
            )
            fits.append(panda.fit(extractor.transform(latents)))
        cosines = [
            np.mean(match_factors(one.parts_, two.parts_)[2])
            for one, two in itertools.combinations(fits, 2)
        ]
        print(
            f"steadiness  {layer}, {n_parts:2d} parts: {statistics.mean(cosines):.3f}"
        )
        if pictures:
            faces = samples_of(generator, 4, seed=7, truncation=0.7)
            figure = PartsDisplay.from_estimator(fits[0], faces).figure_
            figure.savefig(pictures / f"{name}_{layer}_{n_parts}_parts.png", dpi=90)


def main():
    """Read the command line; measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", required=True, help="its aligned photographs")
    parser.add_argument(
        "--other",
        nargs=2,
        action="append",
        default=[],
        metavar=("WEIGHTS", "IMAGES"),
        help="weights to compare with, and their photographs",
    )
    parser.add_argument("--pictures", type=Path, help="write pictures to this folder")
    parser.add_argument("--no-parts", action="store_true", help="leave out the fits")
    args = parser.parse_args()
    if args.pictures:
        args.pictures.mkdir(exist_ok=True)
    script = load_script()
    generators = {"shipped": (load_face_generator(), args.images)}
    for weights, images in args.other:
        generators[Path(weights).stem] = load_other(weights), images
    for name, (generator, source) in generators.items():
        photographs = script.shuffled(script.load_images(source))
        photographs = script.to_unit(photographs, "cpu")
        print(
            f"\n{name}: {sum(p.numel() for p in generator.parameters()):,} parameters"
        )
        figures_of(script, generator, photographs)
        if args.pictures:
            grids = {
                "samples": seeds(generator, 96),
                "truncated": seeds(generator, 96, 0.7),
                "photographs": photographs[-96:],
            }
            for kind, images in grids.items():
                script.picture(images, 12).save(args.pictures / f"{name}_{kind}.png")
        if not args.no_parts:
            parts_of(generator, args.pictures, name)


if __name__ == "__main__":
    main()
