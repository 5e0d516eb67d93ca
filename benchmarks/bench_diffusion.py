"""Local edits of a diffusion model: parts and variations against rivals.

On the shipped face diffusion model, in eight steps, with the regions of
``bench_editing.py``. The noise was not used to learn or choose anything. Every image is
edited with a strength of its own, so that its region changes by the same amount. Each
method offers four edits, with either sign; the one with the lowest ROIR on other images
is taken:

variations            of the part that covers the region best; the channels of all steps
                      are stacked (``calls_as="channels"``), and all steps are edited
variations, late      the same for the last four steps
pooled, late          variations with the last four steps as samples
                      (``calls_as="samples"``): one vector for all of them
found, late           ``LocalEditor.find_directions`` for the pooled part and region
mix, late             towards the activations of random other samples in those steps
PCA of the bottleneck principal components of ``unet.mid_block`` over all steps, added
                      there in all of them. Haas et al., Discovering Interpretable
                      Directions in the Semantic Latent Space of Diffusion Models, 2024
LOCO Edit             ``loco_vectors`` below: a direction of the noisy image at the
                      fifth step, found on one image and used on the others. Chen et
                      al., Exploring Low-Dimensional Subspaces in Diffusion Models for
                      Controllable Image Editing, NeurIPS 2024

ROIR       equation (7), change outside the region relative to inside
SSIM       of the images outside the region, before and after
distance   Mahalanobis distance of the region's pixels from those of other samples
           (Ledoit-Wolf covariance), after over before; the median
alike      mean cosine of the changes of two images inside the region
reached    fraction of the images that some strength changes by the required amount
transfer   fraction of the images whose region changes by half to twice that amount, and
           more than the rest, at the median strength of other images

    python -m pip install -e ".[bench,diffusers]"
    python benchmarks/bench_diffusion.py
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from bench_editing import Method, choose, edited_alike, in_batches, region_mask
from bench_natural_edits import alike, which
from scipy.ndimage import maximum_filter
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import nn

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_diffusion, sample_latents
from panda_sklearn.metrics import outside_ssim, roi_ratio

N_STEPS, FIRST = 8, 4  # edits, except those of the bottleneck, begin at this step
LAYER = "unet.up_blocks.1"
REGIONS = ("eyes", "mouth", "hair")
TARGET = 0.12
RANKS = (24, 64)
COLUMNS = ("roi_ratio", "ssim", "distance", "alike", "reached", "transfer")


class Rest(nn.Module):
    """The last steps of a diffusion model: noisy images (n, 3, 64, 64) -> images."""

    def __init__(self, model, first):
        super().__init__()
        self.model, self.unet, self.first = model, model.unet, first

    def forward(self, x):
        """Continue from the first of these steps."""
        scheduler = copy.deepcopy(self.model.scheduler)
        scheduler.set_timesteps(self.model.n_steps)
        for t in scheduler.timesteps[self.first :]:
            x = scheduler.step(self.unet(x, t).sample, t, x).prev_sample
        return x

    def denoised(self, x):
        """The image that the network predicts in the first of these steps."""
        scheduler = copy.deepcopy(self.model.scheduler)
        scheduler.set_timesteps(self.model.n_steps)
        t = scheduler.timesteps[self.first]
        return scheduler.step(self.unet(x, t).sample, t, x).pred_original_sample


class Ground:
    """The model, its two halves, and images to learn from and compare with."""

    def __init__(self, n_train):
        self.model = load_face_diffusion(n_steps=N_STEPS)
        self.rest = Rest(self.model, FIRST)
        noise = sample_latents(self.model, n_train, random_state=0)
        halfway = GeneratorFeatureExtractor(
            self.model, "unet", tap="input", call=FIRST
        ).fit(noise[:2])
        self.halfway = halfway.transform
        self.noise, self.noisy = noise, self.halfway(noise)
        self.images = in_batches(self.finish, self.noisy)

    @torch.no_grad()
    def finish(self, x):
        """Images from noisy ones."""
        return self.rest(x)

    def unseen(self, n, seed):
        """Noise and the result of the first half, (n, 2, 3, 64, 64)."""
        noise = sample_latents(self.model, n, random_state=seed)
        return torch.stack([noise, self.halfway(noise)], dim=1)

    def editor(self, calls_as, *, late):
        """An editor for all steps, or for the last ones."""
        network, latents = (self.rest, self.noisy) if late else (self.model, self.noise)
        extractor = GeneratorFeatureExtractor(
            network, LAYER, call="all", calls_as=calls_as
        )
        panda = PartsAppearanceDecomposition(*RANKS, random_state=0)
        return LocalEditor(extractor, panda.fit(extractor.fit_transform(latents)))


def covering_part(panda, mask):
    """The learnt part that covers the mask best."""
    parts = torch.nn.functional.interpolate(
        panda.parts_[None], size=mask.shape, mode="bilinear"
    )[0]
    shares = (parts * mask).flatten(1).sum(dim=1) / parts.flatten(1).norm(dim=1)
    return int(shares.argmax())


def adding(editor, name, what, **fields):
    """One of our edits as a method."""
    late = isinstance(editor.extractor.generator, Rest)

    def apply(latents, strengths):
        unit = "alpha" if "appearance" in fields else "std"
        edit = Edit(strength=strengths.numpy(), unit=unit, **fields)
        return editor.edit(latents[:, int(late)], edit)

    return Method(name, what, apply)


def towards(editor, name, donors, part):
    """Activations at a part moved to those of random donors."""

    def apply(latents, strengths):
        chosen = donors[which(latents, len(donors))]
        return editor.transfer(
            latents[:, 1], chosen, part, amount=strengths.numpy(), mix=True
        )

    return Method(name, "random donors", apply)


def bottleneck_components(ground, n):
    """Principal components over all steps, as methods."""
    extractor = GeneratorFeatureExtractor(
        ground.model, "unet.mid_block", call="all", calls_as="channels"
    )
    maps = extractor.fit_transform(ground.noise)
    pca = PCA(n, random_state=0).fit(maps.flatten(1).numpy())
    scales = np.sqrt(pca.explained_variance_)[:, None]
    rows = torch.from_numpy(pca.components_ * scales).float()
    rows = rows.reshape(n, N_STEPS, -1, *maps.shape[2:])

    def method(name, row):
        def apply(latents, strengths):
            step = iter(range(N_STEPS))
            scales = strengths.float()[:, None, None, None]

            def move(old):
                return old + scales * row[next(step)]

            return extractor.generate(latents[:, 0], move)

        return Method("PCA of the bottleneck", name, apply)

    return [method(f"component {k}", row) for k, row in enumerate(rows)]


def leading_vectors(function, x, weights, n, n_iter):
    """Leading right singular vectors of a weighted Jacobian, (n, *x.shape).

    By subspace iteration, the generalised power method of the paper's appendix.
    """
    random = torch.Generator().manual_seed(0)
    V = torch.randn(n, *x.shape, generator=random)
    X = x.expand_as(V)
    for _ in range(n_iter):
        Q = 0.5 * torch.linalg.qr(V.flatten(1).T).Q.T.reshape(V.shape)
        with torch.no_grad():  # differences, since attention has no forward mode
            moved = function(X + Q) - function(X - Q)
        _, back = torch.func.vjp(function, X)
        (V,) = back(weights * moved)
    norms = V.flatten(1).norm(dim=1)
    Q = torch.linalg.qr(V.flatten(1)[norms.argsort(descending=True)].T).Q.T
    return Q.reshape(V.shape)


def loco_vectors(ground, x, mask, n, n_removed=10):
    """Directions at a noisy image x (3, 64, 64) that change a region and little else.

    Algorithm 1 of Chen et al.: the leading right singular vectors of the Jacobian of
    the denoised image's region, from which the ``n_removed`` leading ones of the rest's
    are projected out; unit rows (n, 3, 64, 64).
    """
    leading = leading_vectors(ground.rest.denoised, x, mask, n, 8).flatten(1)
    removed = leading_vectors(ground.rest.denoised, x, 1 - mask, n_removed, 8)
    removed = removed.flatten(1)
    projected = leading - leading @ removed.T @ removed
    projected = projected / projected.norm(dim=1, keepdim=True)
    return projected.reshape(n, *x.shape)


def loco_methods(ground, latents, mask, n):
    """The leading directions of several images, as methods."""

    def method(name, row):
        def apply(latents, strengths):
            scales = 10 * strengths.float()[:, None, None, None]
            return ground.finish(latents[:, 1] + scales * row)

        return Method("LOCO Edit", name, apply)

    return [
        method(f"image {k}", loco_vectors(ground, x, mask, 1)[0])
        for k, x in enumerate(latents[:n, 1])
    ]


class Pixels:
    """Distances of a region's pixels from those of samples."""

    def __init__(self, images, mask):
        self.where = torch.from_numpy(maximum_filter(mask.numpy(), 5)) > 0
        self.covariance = LedoitWolf().fit(self.of(images))

    def of(self, images):
        """Pixels of the region and two more around it."""
        return images[:, :, self.where].flatten(1).double().numpy()

    def distances(self, images):
        """Mahalanobis distances, (n,)."""
        return np.sqrt(self.covariance.mahalanobis(self.of(images)))


def changes(mask, images, edited):
    """Root mean square change of each image in the region, (n,)."""
    squares = ((edited - images).double() * mask).square().sum(dim=(1, 2, 3))
    return (squares / (images.shape[1] * mask.sum())).sqrt().numpy()


def measure(method, tuning, tuned, latents, images, mask, pixels):
    """One row of the table, and the edited images."""
    _, _, strengths = edited_alike(method, tuning, tuned, mask, TARGET)
    same = strengths.median().expand(len(latents))
    moved = in_batches(method.apply, latents, same)
    ratios = roi_ratio(mask, images, moved, average=False)
    factors = changes(mask, images, moved) / TARGET
    edited, reached, _ = edited_alike(method, latents, images, mask, TARGET)
    further = pixels.distances(edited) / pixels.distances(images)
    row = {
        "method": method.name,
        "edit": method.what,
        "roi_ratio": roi_ratio(mask, images, edited),
        "ssim": outside_ssim(mask, images, edited),
        "distance": float(np.median(further)),
        "alike": alike(mask, edited - images),
        "reached": float(reached.mean()),
        "transfer": float(
            ((factors > 0.5) & (factors < 2) & (np.asarray(ratios) < 1)).mean()
        ),
    }
    return row, edited


def methods(ground, editors, mask, components, n_offered):
    """Candidates by name."""
    found = {}
    for name, editor in editors.items():
        part = covering_part(editor.decomposition, mask)
        found[name] = [
            adding(editor, name, f"variation {v}", variation=v, part=part)
            for v in range(n_offered)
        ]
    rows = editor.find_directions(
        ground.noisy[:4],
        part,
        n_offered,
        mask,
        derivatives="differences",  # attention has no forward mode on CPUs
    )
    found["found, late"] = [
        adding(editor, "found, late", f"direction {k}", appearance=row, part=part)
        for k, row in enumerate(rows)
    ]
    found["mix, late"] = [towards(editor, "mix, late", ground.noisy[:16], part)]
    found["PCA of the bottleneck"] = components
    both = torch.stack([ground.noise, ground.noisy], dim=1)
    found["LOCO Edit"] = loco_methods(ground, both, mask, n_offered)
    return found


def run(n_train, n_test, n_tuning, n_offered, regions, pictures):
    """The rows of the table of each region."""
    ground = Ground(n_train)
    editors = {
        "variations": ground.editor("channels", late=False),
        "variations, late": ground.editor("channels", late=True),
        "pooled, late": ground.editor("samples", late=True),
    }
    components = bottleneck_components(ground, n_offered)
    tuning, latents = ground.unseen(n_tuning, 1), ground.unseen(n_test, 2)
    tuned, images = (in_batches(ground.finish, x[:, 1]) for x in (tuning, latents))
    tables = {}
    for region in regions:
        mask = region_mask(region)
        pixels = Pixels(ground.images, mask)
        print(f"\n{region}\n{'':24}" + "".join(f"{name:>10}" for name in COLUMNS))
        rows, shown = [], {"unedited": images[:8]}
        for name, candidates in methods(
            ground, editors, mask, components, n_offered
        ).items():
            start = time.perf_counter()
            method = candidates[0]
            if len(candidates) > 1:
                method = choose(candidates, tuning, tuned, mask, TARGET)
            row, edited = measure(method, tuning, tuned, latents, images, mask, pixels)
            rows.append(row)
            shown[name] = edited[:8]
            print(
                f"{name:24}"
                + "".join(f"{row[name]:10.2f}" for name in COLUMNS)
                + f"  {row['edit']}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        tables[region] = rows
        if pictures:
            draw(shown, pictures / f"diffusion_{region}.png")
    return tables


def draw(rows, path):
    """Draw rows of images with their names."""
    from matplotlib import pyplot as plt

    n = len(rows["unedited"])
    figure, axes = plt.subplots(
        len(rows), n, figsize=(n + 2, len(rows)), gridspec_kw={"wspace": 0, "hspace": 0}
    )
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, image in zip(row, images, strict=True):
            ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def summary(tables):
    """Print means over regions: geometric for ROIR and distance, else arithmetic."""
    print(f"\nall regions\n{'':24}" + "".join(f"{name:>10}" for name in COLUMNS))
    for name in dict.fromkeys(
        row["method"] for rows in tables.values() for row in rows
    ):
        its = [row for rows in tables.values() for row in rows if row["method"] == name]
        line = f"{name:24}"
        for column in COLUMNS:
            values = np.array([row[column] for row in its])
            ratio = column in ("roi_ratio", "distance")
            mean = np.exp(np.log(values).mean()) if ratio else values.mean()
            line += f"{mean:10.2f}"
        print(line)


def main():
    """Run all, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, one region")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--pictures", type=Path, help="write pictures to this folder")
    options = parser.parse_args()
    sizes, regions = (256, 24, 4, 4), REGIONS
    if options.quick:
        sizes, regions = (48, 4, 2, 2), REGIONS[1:2]
    tables = run(*sizes, regions, options.pictures)
    summary(tables)
    if options.json:
        options.json.write_text(json.dumps(tables))


if __name__ == "__main__":
    main()
