"""How well images are inverted: the generator's own, and photographs.

For each space of latents of the shipped generator (inputs of the mapping network, "z";
one code for all layers, "w"; one for each layer, "w+"):

own         residuals of ``invert`` for images of 8 known latents
photograph  residuals for 8 aligned photographs that the generator was not trained on;
            SSIM of the inversions; and how many have a higher SSIM than the nearest of
            10,000 samples
time        of the inversion of the 8 photographs, as a multiple of forward passes of as
            many images in as many batches, and in seconds per photograph

    python benchmarks/bench_inversion.py --images faces64.tar --pictures panda_pictures

``--images`` is that of ``examples/train_face_generator.py``; without it, only images of
the generator are inverted. Needs the extra "metrics".
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from bench_face_generator import N_HELD_OUT, load_script
from torchmetrics.functional.image import structural_similarity_index_measure

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.datasets import load_face_generator
from panda_sklearn.editing import invert
from panda_sklearn.generators import StyleGAN2, sample_latents

N = 8
SPACES = {"z": {}, "w": {"n_starts": 1}, "w+": {"n_starts": 1}}
N_SAMPLES = 10_000


def ssim(images, others):
    """Structural similarity of pairs."""
    return structural_similarity_index_measure(
        images.clamp(-1, 1), others, data_range=2.0, reduction="none"
    )


def nearest(generator, photographs):
    """For each photograph, the SSIM of the nearest of many samples."""
    best = torch.full((len(photographs),), -1.0)
    with torch.no_grad():
        for z in sample_latents(generator, N_SAMPLES, random_state=7).split(100):
            images = generator(z)
            for k, photograph in enumerate(photographs):
                found = ssim(images, photograph.expand_as(images)).max()
                best[k] = max(best[k], found)
    return best


def inverted(extractor, images, options):
    """An inversion, and its time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*matched badly")
        start = time.perf_counter()
        found = invert(
            extractor, images, value_range=(-1, 1), random_state=0, **options
        )
    return found, time.perf_counter() - start


def summary(values):
    """Mean, median and largest."""
    return f"{values.mean():.4f} {values.median():.4f} {values.max():.4f}"


def main():
    """Invert and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="tar archive or folder of aligned JPEGs")
    parser.add_argument("--n-steps", type=int, default=300)
    parser.add_argument("--only", choices=tuple(SPACES), help="one space of latents")
    parser.add_argument("--pictures", type=Path, help="write pictures to this folder")
    options = parser.parse_args()
    generator, script = load_face_generator(), load_script()
    photographs = None
    if options.images:
        images = script.shuffled(script.load_images(options.images))[-N_HELD_OUT:]
        photographs = script.to_unit(images[:N], "cpu").contiguous()
        of_samples = nearest(generator, photographs)
        print(f"SSIM of the nearest of {N_SAMPLES} samples: {of_samples.mean():.3f}")
    for space, starts in SPACES.items():
        if options.only not in (None, space):
            continue
        forward = StyleGAN2(latent_space=space)
        latents = sample_latents(generator, N, random_state=1, forward=forward)
        extractor = GeneratorFeatureExtractor(generator, "block16", forward=forward)
        images = extractor.fit(latents).generate(latents)
        settings = {**starts, "n_steps": options.n_steps}
        found, _ = inverted(extractor, images, settings)
        print(
            f"\n{space}: own images, residuals {summary(found.residuals)}", flush=True
        )
        if photographs is None:
            continue
        found, seconds = inverted(extractor, photographs, settings)
        start = time.perf_counter()
        for _ in range(options.n_steps // 10):
            extractor.generate(latents)
        forwards = 10 * (time.perf_counter() - start)
        likeness = ssim(found.images, photographs)
        n_better = int((likeness > of_samples).sum())
        print(
            f"{space}: photographs, residuals {summary(found.residuals)}, SSIM "
            f"{likeness.mean():.3f}, above the nearest sample's {n_better} of {N}; "
            f"{seconds / forwards:.1f} times a forward pass for each step, "
            f"{seconds / N:.1f} s each",
            flush=True,
        )
        if options.pictures:
            options.pictures.mkdir(exist_ok=True)
            rows = torch.cat(
                [photographs, found.images, (found.differences / 2).clamp(-1, 1)]
            )
            name = f"inverted_{space.replace('+', '_plus')}.png"
            script.picture(rows, N).save(options.pictures / name)


if __name__ == "__main__":
    main()
