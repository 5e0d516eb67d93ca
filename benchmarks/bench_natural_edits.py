"""How local edits are, and how far they lead from the data, at equal change.

A low ROIR alone (``bench_editing.py``) rewards odd edits. Here each method's edits are
measured both ways. Every image is edited with a strength of its own, so that its region
changes by the same amount, on latents that nothing was learnt or chosen from:

ROIR         equation (7), change outside the region relative to inside
distance     Mahalanobis distance of the coefficients at the part, after over before
             (``part_distances``), median over images; 1 is as natural as the samples.
             Edits of later layers have 1: they do not change the decomposed layer
SWD          sliced Wasserstein distance of the edited images to other, unedited ones,
             as a ratio to that of the unedited images to the same others
SSIM, PSNR   of the images outside the region, before and after
alike        mean cosine of the changes of two images inside the region
reached      fraction of the images that the method can change by the required amount

On two networks: the face generator, and a decoder of digits that is trained here in
half a minute. Methods that offer several edits choose among the same number, with
either sign: 24 on faces, and all there are, up to 16, on digits. The one with the
lowest ROIR on eight other latents is taken. At the learnt part that covers the region
best:

appearances, random          as in ``bench_editing.py``
variations, given others     of that part
transfer, mix                towards random other samples: coefficients, activations
SeFa, GANSpace, LowRankGAN   the directions of ``rivals.py``, everywhere and "at the
                             part"
StyleSpace                   single channels of scales (faces only)

    python -m pip install -e ".[bench]" && python benchmarks/bench_natural_edits.py
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_editing import (
    BATCH_SIZE,
    REGIONS,
    Method,
    best_part,
    choose,
    edited_alike,
    in_batches,
    region_mask,
)
from rivals import ganspace as ganspace_of_styles
from rivals import (
    low_rank_directions,
    low_rank_gan,
    style_gradients,
    style_space,
)
from rivals import sefa as sefa_of_styles
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from panda_sklearn import (
    Edit,
    GeneratorFeatureExtractor,
    LocalEditor,
    PartsAppearanceDecomposition,
)
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.metrics import (
    outside_psnr,
    outside_ssim,
    roi_ratio,
    sliced_wasserstein_distance,
)

# Columns of the table beside ROIR.
COLUMNS = ("distance", "swd", "ssim", "psnr", "alike", "reached")
N_DONORS = 64
# Length of latents of the decoder of digits, and its regions, rows of its 16 pixels.
DIGIT_LATENTS = 12
BANDS = {"top": slice(0, 6), "middle": slice(5, 11), "bottom": slice(10, 16)}


class DigitDecoder(nn.Module):
    """Latents (N, 12) -> images (N, 1, 16, 16) of handwritten digits."""

    latent_size = DIGIT_LATENTS

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(DIGIT_LATENTS, 64 * 16)
        self.block8 = nn.Sequential(nn.Conv2d(64, 48, 3, padding=1), nn.LeakyReLU(0.2))
        self.block16 = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(48, 24, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.to_image = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, z):
        """Generate images."""
        x = F.leaky_relu(self.dense(z), 0.2).unflatten(1, (64, 4, 4))
        x = self.block8(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return torch.tanh(self.to_image(self.block16(x)))


def trained_decoder(n_epochs=60):
    """The decoder of a variational autoencoder of scikit-learn's digits."""
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    digits = F.interpolate(digits, size=16, mode="bilinear")
    decoder = DigitDecoder()
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(64 * 16, 2 * DIGIT_LATENTS),
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for _ in range(n_epochs):
        for batch in digits[torch.randperm(len(digits))].split(64):
            mean, log_variance = encoder(batch).chunk(2, dim=1)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            error = (decoder(z) - batch).square().sum() / 0.1
            prior = mean.square() + log_variance.exp() - 1 - log_variance
            optimizer.zero_grad()
            ((error + 0.5 * prior.sum()) / len(batch)).backward()
            optimizer.step()
    return decoder.eval().requires_grad_(False)


@dataclass
class Ground:
    """A network with a fitted editor, and what the methods need from it.

    Attributes
    ----------
    name, layer_after : str
        The latter takes the edited activations.
    editor : LocalEditor
        Its latents are those that directions are of: styles of each layer, of faces.
    latents : callable
        Number of samples and seed -> latents.
    masks : dict of str to Tensor
        The regions.
    target : float
        Root mean square change of the region; black to white is 2.
    n_candidates : int
        How many edits each method may offer.
    """

    name: str
    layer_after: str
    editor: LocalEditor
    latents: object
    masks: dict
    target: float
    n_candidates: int

    @property
    def generator(self):
        """The network."""
        return self.editor.extractor.generator

    def directions(self, mask):
        """Name of the method -> directions of latents, the same number for each."""
        raise NotImplementedError

    def more(self, mask):
        """Further methods that edit globally."""
        return {}


class Faces(Ground):
    """The shipped generator; latents are the styles of its five blocks."""

    @classmethod
    def make(cls, n_train, n_candidates, n_jacobians):
        """Fit its decomposition."""
        generator = load_face_generator()

        def latents(n, seed):
            with torch.no_grad():
                w = generator.styles(sample_latents(generator, n, random_state=seed))
            return w[:, None].repeat(1, 5, 1)

        editor = fitted(
            generator,
            "block16",
            latents(n_train, 0),
            ranks=(12, 48),
            forward=lambda network, w: network.synthesize(list(w.unbind(1))),
        )
        masks = {name: region_mask(name) for name in REGIONS}
        ground = cls("faces", "block32", editor, latents, masks, 0.2, n_candidates)
        ground.n_jacobians = n_jacobians
        n = n_candidates // 6
        ground.shared = {
            "SeFa": [c.offset for c in sefa_of_styles(generator, n)],
            "GANSpace": [c.offset for c in ganspace_of_styles(generator, n)],
        }
        ground.gradients = style_gradients(generator, n_samples=n_jacobians)
        return ground

    def directions(self, mask):
        """Directions of styles, for all layers or one."""
        n, samples = self.n_candidates // 6, self.n_jacobians
        found = low_rank_gan(self.generator, mask, n, n_samples=samples)
        return {**self.shared, "LowRankGAN": [c.offset for c in found]}

    def more(self, mask):
        """The channels of StyleSpace."""
        forward = self.editor.extractor.forward
        return {
            "StyleSpace": [
                Method(
                    "StyleSpace",
                    channel.name,
                    lambda w, s, c=channel: c.apply(self.generator, w, s, forward),
                )
                for channel in style_space(self.gradients, mask, self.n_candidates)
            ]
        }


class Digits(Ground):
    """The decoder of digits; latents are its inputs."""

    @classmethod
    def make(cls, n_train, n_candidates, n_jacobians):
        """Train it and fit its decomposition."""
        decoder = trained_decoder()

        def latents(n, seed):
            return sample_latents(decoder, n, random_state=seed)

        editor = fitted(decoder, "block8", latents(n_train, 0), ranks=(8, 16))
        masks = {}
        for name, rows in BANDS.items():
            masks[name] = torch.zeros(16, 16)
            masks[name][rows] = 1
        return cls("digits", "block16", editor, latents, masks, 0.3, n_candidates)

    def directions(self, mask):
        """Directions of the latents, at most as many as these have numbers."""
        n = min(self.n_candidates, DIGIT_LATENTS)
        W = self.generator.dense.weight.detach().double()
        z = self.latents(10_000, 3).double()
        first = F.leaky_relu(z @ W.T + self.generator.dense.bias.double(), 0.2)
        # As the authors do for networks without styles: components of the first layer,
        # and for each, by least squares, the latents that produce it.
        vectors = torch.linalg.eigh(first.T.cov()).eigenvectors.flip(1)[:, :n]
        scores = (first - first.mean(dim=0)) @ vectors
        scores = scores / scores.std(dim=0)
        components = torch.linalg.lstsq(scores, z).solution
        return {
            "SeFa": list(torch.linalg.eigh(W.T @ W).eigenvectors.T.flip(0)[:n].float()),
            "GANSpace": list(components.float()),
            "LowRankGAN": list(self._low_rank(mask, n)),
        }

    def _low_rank(self, mask, n):
        """LowRankGAN's directions, from the mean Jacobians of eight images."""
        inside = torch.zeros(DIGIT_LATENTS, DIGIT_LATENTS, dtype=torch.float64)
        outside = inside.clone()
        for z in self.latents(8, 0):
            J = torch.func.jacfwd(lambda v: self.generator(v[None])[0])(z)
            for total, weights in ((inside, mask), (outside, 1 - mask)):
                part = (J * weights.sqrt()[..., None]).flatten(0, 2).double()
                total += part.T @ part / 8
        return low_rank_directions(inside, outside, n).float()


def fitted(generator, layer, latents, *, ranks, forward=None):
    """An editor for a layer, fitted from latents."""
    extractor = GeneratorFeatureExtractor(
        generator, layer, forward=forward, batch_size=BATCH_SIZE
    )
    panda = PartsAppearanceDecomposition(*ranks, random_state=0)
    return LocalEditor(extractor, panda.fit(extractor.fit_transform(latents)))


def which(latents, n):
    """A number below n for each sample, decided by its latents alone."""
    return (1e4 * latents.flatten(1)[:, 0].abs()).long() % n


def adding(ground, part, name, edits):
    """Our edits as methods, given without strengths."""

    def method(what, fields):
        def apply(latents, strengths):
            edit = Edit(part=part, strength=strengths.numpy(), unit="alpha", **fields)
            return ground.editor.edit(latents, edit)

        return Method(name, what, apply)

    return [method(what, fields) for what, fields in edits]


def local_methods(ground, part, directions):
    """Name -> candidates, for the methods at the part."""
    panda, n = ground.editor.decomposition, ground.n_candidates
    random = torch.Generator().manual_seed(0)
    n_channels = panda.map_shape_[0]
    vectors = F.normalize(torch.randn(4, n_channels, generator=random))

    def at_random(latents, strengths):
        rows = which(latents, len(vectors))
        edits = [
            Edit(v, part, torch.where(rows == k, strengths, 0).numpy(), "alpha")
            for k, v in enumerate(vectors)
        ]
        return ground.editor.edit(latents, edits)

    donors = ground.editor.extractor.transform(ground.latents(N_DONORS, 4))
    L = panda.coefficients(donors)

    def towards(kind, targets):
        def apply(latents, strengths):
            chosen = targets[which(latents, len(targets))]
            edit = Edit(part=part, strength=strengths.numpy(), **{kind: chosen})
            return ground.editor.edit(latents, edit)

        return apply

    n_each = min(n, len(panda.appearances_))
    found = {
        "appearances": adding(
            ground,
            part,
            "appearances",
            [(f"appearance {j}", {"appearance": j}) for j in range(n_each)],
        ),
        "random": [Method("random", "not chosen", at_random)],
    }
    for name, given in (("variations", None), ("given others", "others")):
        edits = [
            (f"variation {v}", {"variation": v, "given": given}) for v in range(n_each)
        ]
        found[name] = adding(ground, part, name, edits)
    found["transfer"] = [
        Method("transfer", "random donors", towards("coefficients", L))
    ]
    found["mix"] = [Method("mix", "random donors", towards("features", donors))]
    for name, rows in directions.items():
        label = f"{name}, at the part"
        edits = [(f"direction {i}", {"latent": row}) for i, row in enumerate(rows)]
        found[label] = adding(ground, part, label, edits)
    return found


def global_methods(ground, directions):
    """Directions of latents, applied to the whole image."""
    generate = ground.editor.extractor.generate

    def method(name, what, row):
        def apply(latents, strengths):
            steps = strengths.to(latents).reshape(-1, *[1] * row.ndim)
            return generate(latents + steps * row)

        return Method(name, what, apply)

    return {
        name: [method(name, f"direction {i}", row) for i, row in enumerate(rows)]
        for name, rows in directions.items()
    }


def distances(ground, part, make):
    """Distances of the activations that the rest of the network receives, (n,)."""
    seen = []
    after = ground.generator.get_submodule(ground.layer_after)

    def look(layer, args):
        seen.append(args[0].detach().clone())

    with after.register_forward_pre_hook(look):
        make()
    return ground.editor.decomposition.part_distances(torch.cat(seen))[:, part]


def alike(mask, changes):
    """Mean cosine of the changes of two images in the region."""
    unit = F.normalize((mask * changes).flatten(1).double(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - n) / (n * (n - 1)))


def measure(ground, part, method, latents, images, others, mask):
    """One row of the table."""
    edited, reached, strengths = edited_alike(
        method, latents, images, mask, ground.target
    )
    between = sliced_wasserstein_distance(images, others, random_state=0)
    before = distances(ground, part, lambda: ground.editor.extractor.generate(latents))
    after = distances(
        ground, part, lambda: in_batches(method.apply, latents, strengths)
    )
    return {
        "method": method.name,
        "edit": method.what,
        "roi_ratio": roi_ratio(mask, images, edited),
        "distance": float((after / before).median()),
        "swd": sliced_wasserstein_distance(edited, others, random_state=0) / between,
        "ssim": outside_ssim(mask, images, edited),
        "psnr": outside_psnr(mask, images, edited),
        "alike": alike(mask, edited - images),
        "reached": float(reached.mean()),
    }


def run(ground, n_test, regions):
    """Print the tables of a network; region -> rows."""
    tuning, latents = ground.latents(8, 1), ground.latents(2 * n_test, 2)
    generate = ground.editor.extractor.generate
    tuned, images, others = generate(tuning), *generate(latents).split(n_test)
    latents, tables = latents[:n_test], {}
    for region in regions or ground.masks:
        mask = ground.masks[region]
        part = best_part(ground.editor, mask)
        directions = ground.directions(mask)
        methods = {
            **local_methods(ground, part, directions),
            **global_methods(ground, directions),
            **ground.more(mask),
        }
        print(f"\n{ground.name}, {region}: part {part}")
        print(f"{'':24}{'ROIR':>6}" + "".join(f"{name:>10}" for name in COLUMNS))
        rows = []
        for name, candidates in methods.items():
            if not candidates:
                print(f"{name:24}  has no direction")
                continue
            method = candidates[0]
            if len(candidates) > 1:
                method = choose(candidates, tuning, tuned, mask, ground.target)
            row = measure(ground, part, method, latents, images, others, mask)
            rows.append(row)
            print(
                f"{row['method']:24}{row['roi_ratio']:6.2f}"
                + "".join(f"{row[name]:10.2f}" for name in COLUMNS)
                + f"  {row['edit']}",
                flush=True,
            )
        tables[region] = rows
    return tables


# Marks of the methods in the figure; those at the part are filled.
MARKS = {
    "appearances": ("o", "tab:blue"),
    "random": ("o", "tab:gray"),
    "variations": ("o", "tab:green"),
    "given others": ("o", "tab:olive"),
    "transfer": ("s", "tab:green"),
    "mix": ("s", "tab:olive"),
    "SeFa": ("^", "tab:red"),
    "GANSpace": ("v", "tab:orange"),
    "LowRankGAN": ("D", "tab:purple"),
    "StyleSpace": ("P", "tab:brown"),
}
EVERYWHERE = ("SeFa", "GANSpace", "LowRankGAN", "StyleSpace")
AXES = {"distance": "distance from the data at the part", "swd": "SWD"}


def draw(tables, path):
    """Draw ROIR against distance and SWD, as geometric means over regions."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(
        2, len(tables), figsize=(4 * len(tables) + 1, 6.4), squeeze=False
    )
    handles = {}
    for column, (title, table) in zip(axes.T, tables.items(), strict=True):
        column[0].set_title(title, fontsize="medium")
        for ax, (measured, label) in zip(column, AXES.items(), strict=True):
            rows = [row for rows in table.values() for row in rows]
            for method in dict.fromkeys(row["method"] for row in rows):
                its = [r for r in rows if r["method"] == method]
                x, y = (
                    np.exp(np.mean([np.log(r[name]) for r in its]))
                    for name in (measured, "roi_ratio")
                )
                mark, color = MARKS[method.removesuffix(", at the part")]
                handles[method] = ax.scatter(
                    x,
                    y,
                    s=50,
                    marker=mark,
                    edgecolors=color,
                    facecolors="none" if method in EVERYWHERE else color,
                )
            ax.set(xscale="log", yscale="log", xlabel=label)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
                axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
            ax.tick_params(labelsize="small")
    for ax in axes[:, 0]:
        ax.set_ylabel("ROIR")
    figure.legend(
        handles.values(), handles, loc="lower center", ncols=3, fontsize="small"
    )
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    """Run all, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, one region")
    parser.add_argument("--only", choices=("faces", "digits"), help="one network")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--figure", type=Path, help="write the figure there")
    parser.add_argument("--draw", type=Path, help="only draw the numbers of this file")
    options = parser.parse_args()
    if options.draw and not options.figure:
        parser.error("--draw needs --figure")
    if options.draw:
        draw(json.loads(options.draw.read_text()), options.figure)
        return
    n_train, n_test, n_candidates, n_jacobians = 1000, 128, 24, 8
    if options.quick:
        n_train, n_test, n_candidates, n_jacobians = 100, 16, 6, 1
    tables = {}
    for name, kind in (("faces", Faces), ("digits", Digits)):
        if options.only not in (None, name):
            continue
        ground = kind.make(n_train, n_candidates, n_jacobians)
        first = list(ground.masks)[:1] if options.quick else None
        tables[name] = run(ground, n_test, first)
    if options.json:
        options.json.write_text(json.dumps(tables))
    if options.figure:
        draw(tables, options.figure)


if __name__ == "__main__":
    # Raised by torch's own forward mode.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    main()
