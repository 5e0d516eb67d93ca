"""What taking activations out of a generator costs beyond running it.

    python benchmarks/bench_extraction.py

Time: ``GeneratorFeatureExtractor.transform`` against a bare loop without gradients that
stops at the same layer (a hook that keeps the activations and raises), whose batches
are written into one array; and against such a loop over whole forward passes. Ratios of
medians over runs that take turns.

Memory: the most bytes of new tensors alive at a time during ``transform``, as a
multiple of the result and of one batch's forward pass up to the layer.
"""

import argparse
import contextlib
import itertools
import statistics
import time
import weakref

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from panda_sklearn import GeneratorFeatureExtractor
from panda_sklearn.datasets import load_face_generator, sample_latents


class Stop(BaseException):
    """Ends a forward pass."""


class Wide(nn.Module):
    """A progressive generator with 512 channels, as the paper's; random weights."""

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
    """Activations by a loop as one would write it by hand."""
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


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made inside, and the most alive at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known and storage.nbytes():
                known.add(storage.data_ptr())
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, n_bytes):
        """Count memory that is free again."""
        self.now -= n_bytes


def most_alive(run):
    """The most bytes of new tensors alive at a time while ``run`` runs."""
    with Alive() as alive:
        result = run()
    del result
    return alive.most


def measure(name, generator, layer, n_samples, batch_size, repeats):
    """Print a row of the table."""
    latents = sample_latents(generator, n_samples, 0)
    extractor = GeneratorFeatureExtractor(generator, layer, batch_size=batch_size)
    extractor.fit(latents)
    runs = {
        "ours": lambda: extractor.transform(latents),
        "bare": lambda: bare(generator, layer, latents, batch_size),
        "whole": lambda: bare(generator, layer, latents, batch_size, whole=True),
    }
    # Their batches may lie at other places in memory, and be rounded otherwise.
    torch.testing.assert_close(runs["ours"](), runs["bare"]())
    runs["whole"]()
    times = {kind: [] for kind in runs}
    orders = list(itertools.permutations(runs))
    for repeat in range(repeats):
        for kind in orders[repeat % len(orders)]:
            start = time.perf_counter()
            runs[kind]()
            times[kind].append(time.perf_counter() - start)
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
    faces = load_face_generator()
    wide = Wide().eval()
    measure("faces, block8, 320 by 32", faces, "block8", 320, 32, repeats)
    measure("faces, block16, 320 by 32", faces, "block16", 320, 32, repeats)
    measure("faces, block16, 64 by 1", faces, "block16", 64, 1, repeats)
    measure("512 channels, 32x32, 16 by 4", wide, "blocks.3", 16, 4, repeats)
    measure("512 channels, 32x32, 8 by 1", wide, "blocks.3", 8, 1, repeats)


if __name__ == "__main__":
    main()
