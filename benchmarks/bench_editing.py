"""How local edits are, ours and rivals', on the shipped face generator.

Tables 1 and 2 of the paper, with our own generator. There are four regions, boxes drawn
on the mean face before any edit (``REGIONS``). For each region and method, on 256
latents that nothing was learnt or chosen from:

ROIR       equation (7), change outside the region relative to inside; the mean over
           images and a 95 % bootstrap confidence interval
reached    fraction of the images that the method can change by the required amount
SWD        sliced Wasserstein distance of the edited images to other, unedited ones, as
           a ratio to that of the unedited images to the same others

Every image is edited with a strength of its own, so that its region changes by the same
amount, a root mean square of ``TARGET`` (black to white is 2). Methods that offer
several edits choose among the same number, with either sign: the one with the lowest
ROIR on eight other latents is taken.

PandA, part           the appearances, in their order, at the learnt part that covers
                      the region best (layer block16)
PandA, mask           the same appearances, at the region itself, as drawn by hand
random appearance     at the same part: a random direction of channels, not chosen
same, everywhere      the appearance that "PandA, part" chose, at every position
SeFa, GANSpace        directions of the styles, for all layers or one
LowRankGAN            the same, found for each region (given the mask, as "PandA, mask")

Then prints the time from the trained generator to the first edited image. The methods
that edit styles are in ``rivals.py``.

    python -m pip install -e ".[bench]" && python benchmarks/bench_editing.py
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_solvers import timed
from rivals import ganspace, low_rank_gan, sefa
from torch import Tensor

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.editing._strengths import TOLERANCE, find_factors
from panda_sklearn.metrics import roi_ratio, sliced_wasserstein_distance

TARGET = 0.2
BATCH_SIZE = 32
# Directions of each style method, for all layers and for each of five; ours has six
# times as many appearances, which makes as many candidates.
N_DIRECTIONS = 8
# Rows and columns of pixels, drawn on the mean face.
REGIONS = {
    "eyes": [(slice(23, 31), slice(16, 28)), (slice(23, 31), slice(36, 48))],
    "mouth": [(slice(45, 54), slice(22, 42))],
    "hair": [(slice(0, 5), slice(10, 54))],
    "background": [(slice(0, 44), slice(0, 6)), (slice(0, 44), slice(58, 64))],
}


@dataclass(frozen=True)
class Method:
    """An edit of some method.

    Attributes
    ----------
    name : str
        The method.
    what : str
        Which of its edits.
    apply : callable
        Latents (n, 64) and strengths (n,) -> images.
    """

    name: str
    what: str
    apply: Callable[[Tensor, Tensor], Tensor]

    def reversed(self):
        """The same with the opposite sign."""
        return Method(self.name, f"minus {self.what}", lambda z, s: self.apply(z, -s))


def region_mask(name):
    """A region as a mask (64, 64)."""
    mask = torch.zeros(64, 64)
    for rows, columns in REGIONS[name]:
        mask[rows, columns] = 1
    return mask


def in_batches(function, *tensors):
    """Apply a function to a batch of samples at a time."""
    split = zip(*(t.split(BATCH_SIZE) for t in tensors), strict=True)
    return torch.cat([function(*some) for some in split])


def edited_alike(method, latents, images, mask, target=TARGET):
    """Edited images, whether each region changes by the target, and strengths."""

    def change_of(strengths, rows):
        change = in_batches(method.apply, latents[rows], strengths) - images[rows]
        squares = (change.double() * mask).square().sum(dim=(1, 2, 3))
        return (squares / (images.shape[1] * mask.square().sum())).sqrt()

    strengths, changes = find_factors(change_of, len(latents), target)
    reached = (changes - target).abs() <= TOLERANCE * target
    return in_batches(method.apply, latents, strengths), reached.numpy(), strengths


def choose(methods, latents, images, mask, target=TARGET):
    """Of the edits that bring most images to the target, the one of lowest ROIR."""
    best, merit = None, (1.0, np.inf)
    for method in [m for one in methods for m in (one, one.reversed())]:
        edited, reached, _ = edited_alike(method, latents, images, mask, target)
        ratio = np.nan_to_num(
            roi_ratio(mask, images, edited, average=False), nan=np.inf
        ).mean()
        if reached.any() and (1 - reached.mean(), ratio) < merit:
            best, merit = method, (1 - reached.mean(), ratio)
    if best is None:
        raise RuntimeError(f"No edit of {methods[0].name} reaches the target.")
    return best


def at(editor, name, what, appearance, part):
    """One of our edits as a method."""

    def apply(latents, strengths):
        edit = Edit(appearance, part, strengths.numpy(), "alpha")
        return editor.edit(latents, edit)

    return Method(name, what, apply)


def best_part(editor, mask):
    """The learnt part that covers the mask best."""
    parts = torch.nn.functional.interpolate(
        editor.decomposition.parts_[None], size=mask.shape, mode="bilinear"
    )[0]
    shares = (parts * mask).flatten(1).sum(dim=1) / (
        parts.flatten(1).norm(dim=1) * mask.norm()
    )
    return int(shares.argmax())


def ours(editor, mask):
    """The learnt part that covers the mask best; edits at it and at the mask."""
    part = best_part(editor, mask)
    everything = range(len(editor.decomposition.appearances_))
    return part, {
        "PandA, part": [
            at(editor, "PandA, part", f"appearance {j}, part {part}", j, part)
            for j in everything
        ],
        "PandA, mask": [
            at(editor, "PandA, mask", f"appearance {j}", j, mask) for j in everything
        ],
    }


def controls(editor, part, chosen):
    """Random appearances at the part, and the chosen appearance everywhere."""
    random = torch.Generator().manual_seed(0)
    n_channels = editor.decomposition.map_shape_[0]
    # Four random directions; the latents of an image decide which one it gets.
    vectors = torch.randn(4, n_channels, generator=random)
    vectors /= vectors.norm(dim=1, keepdim=True)

    def apply(latents, strengths):
        which = (1e4 * latents[:, 0].abs()).long() % len(vectors)
        edits = [
            Edit(vector, part, torch.where(which == k, strengths, 0).numpy(), "alpha")
            for k, vector in enumerate(vectors)
        ]
        return editor.edit(latents, edits)

    minus = -1 if chosen.what.startswith("minus") else 1
    j = int(chosen.what.removeprefix("minus ").split()[1].rstrip(","))
    everywhere = at(editor, "same, everywhere", "", j, torch.ones(64, 64))
    if minus < 0:
        everywhere = everywhere.reversed()
    return [
        Method("random appearance", f"part {part}", apply),
        Method("same, everywhere", chosen.what.split(",")[0], everywhere.apply),
    ]


def interval(values, n_resamples=2000):
    """The 95 % bootstrap confidence interval of a mean."""
    random = np.random.default_rng(0)
    rows = random.integers(0, len(values), (n_resamples, len(values)))
    return np.percentile(values[rows].mean(axis=1), [2.5, 97.5])


def measure(method, latents, images, others, mask):
    """One row of the table, and the edited images."""
    edited, reached, _ = edited_alike(method, latents, images, mask)
    ratios = roi_ratio(mask, images, edited, average=False)
    low, high = interval(ratios)
    distance, between = (
        sliced_wasserstein_distance(x, others, random_state=0) for x in (edited, images)
    )
    row = {
        "method": method.name,
        "edit": method.what,
        "roi_ratio": float(ratios.mean()),
        "low": float(low),
        "high": float(high),
        "reached": float(reached.mean()),
        "swd": distance / between,
    }
    return row, edited


def fitted_editor(generator, n_samples, n_appearances):
    """Our whole preparation, starting from the generator."""
    latents = sample_latents(generator, n_samples, random_state=0)
    extractor = GeneratorFeatureExtractor(generator, "block16", batch_size=BATCH_SIZE)
    panda = PartsAppearanceDecomposition(12, n_appearances, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(latents)))


def style_methods(generator, candidates):
    """Candidates of a rival as methods."""
    return [
        Method(c.method, c.name, lambda z, s, c=c: c.apply(generator, z, s))
        for c in candidates
    ]


def quick_rows():
    """Rows for ``compare.py``: an edit over the generator's own pass."""

    def edits():
        generator = load_face_generator()
        editor = fitted_editor(generator, 100, 12)
        latents = sample_latents(generator, 2 * BATCH_SIZE, random_state=2)
        edit = Edit(0, 0, 5.0, "alpha")
        while True:
            seconds, _ = timed(lambda: editor.edit(latents, edit))
            with torch.no_grad():
                plain, _ = timed(lambda: in_batches(generator, latents))
            yield seconds, plain

    return {"edit, 64 images / the generator alone": edits}


def main():
    """Run all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, one region")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--pictures", type=Path, help="write pictures to this folder")
    options = parser.parse_args()
    n_train, n_test, n_jacobians, n_directions = 1000, 256, 8, N_DIRECTIONS
    regions = list(REGIONS)
    if options.quick:
        n_train, n_test, n_jacobians, n_directions = 100, 16, 1, 1
        regions = ["mouth"]
    generator = load_face_generator()
    tuning = sample_latents(generator, 8, random_state=1)
    latents = sample_latents(generator, 2 * n_test, random_state=2)
    with torch.no_grad():
        tuned = generator(tuning)
        plain, others = in_batches(generator, latents).split(n_test)
    latents = latents[:n_test]

    seconds, editor = timed(lambda: fitted_editor(generator, n_train, 6 * n_directions))
    first, _ = timed(lambda: editor.edit(latents[:1], Edit(0, 0, 5.0, "alpha")))
    times = {"PandA": seconds + first}
    shared = {}
    for name, make in (
        ("SeFa", lambda: sefa(generator, n_directions)),
        ("GANSpace", lambda: ganspace(generator, n_directions)),
    ):
        seconds, candidates = timed(make)
        shared[name] = style_methods(generator, candidates)
        first, _ = timed(lambda: shared[name][0].apply(latents[:1], torch.ones(1)))  # noqa: B023
        times[name] = seconds + first

    tables, kept = {}, {}
    for region in regions:
        mask = region_mask(region)
        part, candidates = ours(editor, mask)
        seconds, found = timed(
            lambda: low_rank_gan(generator, mask, n_directions, n_samples=n_jacobians)  # noqa: B023
        )
        rival = style_methods(generator, found)
        first, _ = timed(lambda: rival[0].apply(latents[:1], torch.ones(1)))  # noqa: B023
        times[f"LowRankGAN, {region}"] = seconds + first
        candidates |= shared | {"LowRankGAN": rival}
        chosen = {
            name: choose(methods, tuning, tuned, mask)
            for name, methods in candidates.items()
        }
        methods = list(chosen.values())
        methods += controls(editor, part, chosen["PandA, part"])
        rows = []
        print(f"\n{region}: {int(mask.sum())} of {mask.numel()} pixels")
        print(f"{'':18} {'ROIR':>6} {'95 %':>14} {'reached':>8} {'SWD':>6}  edit")
        for method in methods:
            row, edited = measure(method, latents, plain, others, mask)
            rows.append(row)
            kept[region, method.name] = edited[:6]
            print(
                f"{row['method']:18} {row['roi_ratio']:6.2f} "
                f"{row['low']:6.2f} - {row['high']:5.2f} {row['reached']:8.0%} "
                f"{row['swd']:6.2f}  {row['edit']}",
                flush=True,
            )
        tables[region] = rows

    print("\nTime from the trained generator to the first edit, over PandA's")
    print(f"({times['PandA']:.1f} s, {n_train} samples of block16):")
    for name, seconds in times.items():
        print(f"{name:24} {seconds / times['PandA']:8.3f}")
    if options.json:
        options.json.write_text(json.dumps({"tables": tables, "times": times}))
    if options.pictures:
        options.pictures.mkdir(exist_ok=True)
        for region in regions:
            draw(region, plain[:6], kept, options.pictures / f"rivals_{region}.png")


def draw(region, plain, kept, path):
    """Draw edits of one region, and where each changes the image (figure 7)."""
    from matplotlib import pyplot as plt

    names = [name for where, name in kept if where == region]
    n = len(plain)
    figure, axes = plt.subplots(
        len(names) + 1, 2 * n, figsize=(1.05 * 2 * n + 1, 1.05 * (len(names) + 1))
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.set_frame_on(False)

    def picture(image):
        return ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0)

    for ax, image in zip(axes[0, :n], plain, strict=True):
        ax.imshow(picture(image))
        ax.contour(region_mask(region), [0.5], colors="cyan", linewidths=0.8)
    axes[0, 0].set_ylabel("image", rotation=0, ha="right", va="center")
    axes[0, n + n // 2].set_title("squared change", y=0.3, fontsize="medium")
    for row, name in zip(axes[1:], names, strict=True):
        edited = kept[region, name]
        change = (edited - plain).square().mean(dim=1)
        for ax, image in zip(row[:n], edited, strict=True):
            ax.imshow(picture(image))
        for ax, map_ in zip(row[n:], change, strict=True):
            ax.imshow(map_, cmap="magma", vmin=0, vmax=4 * TARGET**2)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    # Raised by torch's own forward mode.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    main()
