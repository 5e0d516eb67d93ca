"""What taking activations out of a generator costs beyond running it.

    python benchmarks/bench_extraction.py

Time: ``GeneratorFeatureExtractor.transform`` compared with a bare loop without
gradients that stops at the same layer (its hook keeps the activations and raises) and
writes the batches into one array; and with such a loop over whole forward passes.
Ratios of medians over runs in turns.

Memory: the peak of new tensors alive during ``transform``, as a multiple of the result,
and of the result plus one batch's forward pass up to the layer.
"""

import argparse
import contextlib
import itertools
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from bench_solvers import timed
from torch import nn
from torch.nn import functional as F

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.datasets import load_face_generator, sample_latents

sys.path.append(str(Path(__file__).parents[1]))
from tests.allocations import MostAlive


class Stop(BaseException):
    """Ends a forward pass."""


class Wide(nn.Module):
    """A progressive generator with 512 channels, as in the paper; random weights."""

    latent_size = 512

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(512, 512, 3, padding=1) for _ in range(5))
        self.to_rgb = nn.Conv2d(512, 3, 1)

    def forward(self, z):
        """Images of latents."""
        x = z[:, :, None, None].expand(-1, -1, 4, 4)
        for i, block in enumerate(self.blocks):
            x = F.leaky_relu(block(F.interpolate(x, scale_factor=2) if i else x), 0.2)
        return self.to_rgb(x)


def bare(generator, layer, latents, batch_size, *, whole=False):
    """Activations, by a loop as one would write it by hand."""
    features, kept = None, []

    def keep(layer, args, output):
        kept.append(output)
        if not whole:
            raise Stop

    handle = generator.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.no_grad():
            for start in range(0, len(latents), batch_size):
                batch = latents[start : start + batch_size]
                with contextlib.suppress(Stop):
                    generator(batch)
                part = kept.pop()
                if features is None:
                    features = part.new_empty(len(latents), *part.shape[1:])
                features[start : start + len(part)] = part
                del part
    finally:
        handle.remove()
    return features


def most_alive(run):
    """The peak of the bytes of new tensors alive while ``run`` runs."""
    with MostAlive() as alive:
        result = run()
    del result
    return alive.most


def cases():
    """Name -> (function that makes a generator, layer, samples, batch size)."""

    def wide():
        return Wide().eval()

    return {
        "faces, block8, 320 by 32": (load_face_generator, "block8", 320, 32),
        "faces, block16, 320 by 32": (load_face_generator, "block16", 320, 32),
        "faces, block16, 64 by 1": (load_face_generator, "block16", 64, 1),
        "512 channels, 32x32, 16 by 4": (wide, "blocks.3", 16, 4),
        "512 channels, 32x32, 8 by 1": (wide, "blocks.3", 8, 1),
    }


def runs_of(generator, extractor, latents):
    """Name -> function: the extractor's transform, and the loops beside it."""
    rest = (generator, extractor.layer, latents, extractor.batch_size)
    return {
        "ours": lambda: extractor.transform(latents),
        "bare": lambda: bare(*rest),
        "whole": lambda: bare(*rest, whole=True),
    }


def measure(name, make, layer, n_samples, batch_size, repeats):
    """Print a row of the table."""
    generator = make()
    latents = sample_latents(generator, n_samples, 0)
    extractor = GeneratorFeatureExtractor(generator, layer, batch_size=batch_size)
    extractor.fit(latents)
    runs = runs_of(generator, extractor, latents)
    # Equal up to rounding, which depends on the batches' places in memory.
    torch.testing.assert_close(runs["ours"](), runs["bare"]())
    runs["whole"]()
    times = {kind: [] for kind in runs}
    orders = list(itertools.permutations(runs))
    for repeat in range(repeats):
        for kind in orders[repeat % len(orders)]:
            times[kind].append(timed(runs[kind])[0])
    medians = {kind: statistics.median(each) for kind, each in times.items()}
    pairs = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
    result = 4 * n_samples * torch.tensor(extractor.feature_shape_).prod().item()
    one = latents[:batch_size]
    batch = most_alive(lambda: bare(generator, layer, one, batch_size))
    ours = most_alive(runs["ours"])
    print(
        f"{name:28} {medians['bare']:8.3f} {medians['ours'] / medians['bare']:8.3f} "
        f"{min(pairs):6.3f}-{max(pairs):.3f} {medians['ours'] / medians['whole']:8.3f} "
        f"{ours / result:8.3f} {ours / (result + batch):8.3f}"
    )


def quick_rows():
    """Rows for ``compare.py``: the extractor over a bare loop."""

    def extractions(make, layer, n_samples, batch_size):
        generator = make()
        latents = sample_latents(generator, n_samples, 0)
        extractor = GeneratorFeatureExtractor(generator, layer, batch_size=batch_size)
        runs = runs_of(generator, extractor.fit(latents), latents)
        while True:
            yield timed(runs["ours"])[0], timed(runs["bare"])[0]

    return {
        f"transform, {name} / bare loop": partial(extractions, *case)
        for name, case in cases().items()
    }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=24)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(
        f"{'generator, layer, batches':28} {'bare, s':>8} {'/ bare':>8} {'range':>12} "
        f"{'/ whole':>8} {'memory/':>8} {'memory/':>8}"
    )
    print(f"{'':28} {'':8} {'':8} {'':12} {'':8} {'result':>8} {'+ batch':>8}")
    for name, case in cases().items():
        measure(name, *case, repeats)


if __name__ == "__main__":
    main()
