"""What makes parts local: the ablation of section 4.3.1, on the shipped face generator.

Learns the same number of parts from the same activations in four ways:

MPCA, H x W x C       tensorly's partial Tucker decomposition of channels, rows and
                      columns. Its r row factors and r column factors, with r * r at
                      least the number of parts, have r * r outer products u_h v_w',
                      orthonormal like the factors. The parts are those that hold most
                      of the core's sum of squares
MPCA, C x S           the same decomposition of channels and positions
ours, signed          PartsAppearanceDecomposition(nonnegative=False)
ours                  PartsAppearanceDecomposition

All have the same number of appearances, and none is centred. Prints medians over the
repeats:

time                  as a ratio to that of "ours" in the same repeat
kept                  fraction of the sum of squares of 200 unseen samples that the
                      factors reconstruct
overlap               mean cosine of the magnitudes of two parts: 0 for parts that
                      share no position, 1 for parts that are all alike
90% in                fraction of the positions that hold 90% of a part's sum of
                      squares, as a mean over parts: small for local parts
negative              fraction of the parts' sum of squares in negative entries. A
                      signed part is equivalent to its negative; the one with the
                      smaller fraction counts

and draws the parts like figure 8 of the paper.

    python -m pip install -e ".[bench,plot]" && python benchmarks/bench_ablation.py
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
from bench_solvers import timed

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.metrics import parts_overlap

BLOCK = "block16"
LABELS = {
    "MPCA, H x W x C": "MPCA of rows x columns\n"
    "x channels (a part: one\ncolumn times one row)",
    "MPCA, C x S": "MPCA of channels\nx positions",
    "ours, signed": "PandA with\nnegative entries\nallowed",
    "ours": "PandA:\nno negative entries",
}


def face_maps(generator, n_samples, seed):
    """Activations of the block."""
    latents = sample_latents(generator, n_samples, random_state=seed)
    return GeneratorFeatureExtractor(generator, BLOCK).fit_transform(latents)


def average_face(generator, n_samples):
    """Mean picture (height, width, 3), with values in [0, 1]."""
    latents = sample_latents(generator, n_samples, random_state=0)
    with torch.no_grad():
        mean = torch.cat([generator(z) for z in latents.split(100)]).mean(dim=0)
    return (mean.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()


def partial_tucker(X, ranks, modes):
    """Core and factors of tensorly's decomposition of the given modes."""
    import tensorly
    from tensorly.decomposition import partial_tucker as decompose

    with tensorly.backend_context("pytorch"), torch.no_grad():
        (core, factors), _ = decompose(X, rank=ranks, modes=modes, tol=1e-6)
    return core, factors


def mpca_of_rows_and_columns(X, ranks, seed):
    """A, and the P (n_positions, n_parts) of the outer products that hold most."""
    r = math.ceil(math.sqrt(ranks[1]))
    core, (A, rows, columns) = partial_tucker(X, [ranks[0], r, r], [1, 2, 3])
    energy = core.square().sum(dim=(0, 1)).flatten()  # (r * r,)
    products = torch.einsum("ha,wb->hwab", rows, columns).reshape(-1, r * r)
    return A, products[:, energy.argsort(descending=True)[: ranks[1]]]


def mpca_of_positions(X, ranks, seed):
    """A and P."""
    return partial_tucker(X.flatten(2), list(ranks), [1, 2])[1]


def ours(X, ranks, seed, **options):
    """A fitted estimator."""
    panda = PartsAppearanceDecomposition(
        ranks[1], ranks[0], random_state=seed, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return panda.fit(X)


def signed(X, ranks, seed):
    """A fitted estimator whose parts may have any sign."""
    return ours(X, ranks, seed, nonnegative=False)


METHODS = {
    "MPCA, H x W x C": mpca_of_rows_and_columns,
    "MPCA, C x S": mpca_of_positions,
    "ours, signed": signed,
    "ours": ours,
}


def parts_of(fitted, shape):
    """Parts (n_parts, height, width), each with the sign that holds more energy."""
    if isinstance(fitted, PartsAppearanceDecomposition):
        parts = fitted.parts_
    else:
        parts = fitted[1].T.reshape(-1, *shape)
    signed_energy = (parts * parts.abs()).sum(dim=(1, 2))
    return torch.where(signed_energy < 0, -1, 1)[:, None, None] * parts


def kept(fitted, X):
    """Fraction of the sum of squares that the factors reconstruct."""
    if isinstance(fitted, PartsAppearanceDecomposition):
        return fitted.score(X)
    (A, P), Z = fitted, X.flatten(2)
    return 1 - float(((Z - A @ (A.T @ Z @ P) @ P.T) ** 2).sum() / (Z**2).sum())


def locality(parts):
    """Fraction of positions that hold 90% of a part's energy, as a mean over parts."""
    energy = parts.flatten(1).square().sort(dim=1, descending=True).values
    held = energy.cumsum(dim=1) / energy.sum(dim=1, keepdim=True)
    counts = (held < 0.9).sum(dim=1) + 1
    return float(counts.double().mean()) / energy.shape[1]


def measure(X, unseen, ranks, repeats):
    """Method -> one record for each repeat, and method -> parts of the first fit."""
    rows, pictures = {name: [] for name in METHODS}, {}
    for seed in range(repeats):
        order = list(METHODS.items())
        for name, method in order if seed % 2 == 0 else reversed(order):
            seconds, fitted = timed(lambda: method(X, ranks, seed))  # noqa: B023
            parts = parts_of(fitted, X.shape[2:])
            pictures.setdefault(name, parts)
            rows[name].append(
                {
                    "seconds": seconds,
                    "kept": kept(fitted, unseen),
                    "overlap": parts_overlap(parts.abs()),
                    "90% in": locality(parts),
                    "negative": float(
                        parts.clamp(max=0).square().sum() / parts.square().sum()
                    ),
                }
            )
    return rows, pictures


def show(rows):
    """Print the table."""
    base = [row["seconds"] for row in rows["ours"]]
    columns = ("kept", "overlap", "90% in", "negative")
    print(f"time 1.00 is {statistics.median(base):.2f} s")
    print(f"{'':18}{'time':>8}" + "".join(f"{name:>10}" for name in columns))
    for label, records in rows.items():
        ratios = [r["seconds"] / b for r, b in zip(records, base, strict=True)]
        line = f"{label:18}{statistics.median(ratios):8.2f}"
        for name in columns:
            line += f"{statistics.median(r[name] for r in records):10.3f}"
        print(line)


def draw(pictures, face, path):
    """Draw a row for each method, with a column for each part."""
    from matplotlib.figure import Figure

    n_parts = len(pictures["ours"])
    figure = Figure(figsize=(1.25 * n_parts + 4, 5.7), layout="constrained")
    axes = figure.subplots(len(pictures), n_parts + 1)
    for row, (name, parts) in zip(axes, pictures.items(), strict=True):
        row[0].imshow(face)
        row[0].set_ylabel(
            LABELS[name],
            rotation=0,
            ha="right",
            va="center",
            labelpad=10,
            fontweight="bold" if name == "ours" else None,
        )
        for ax, part in zip(row[1:], parts.numpy(), strict=True):
            image = ax.imshow(part / np.abs(part).max(), cmap="RdBu_r", vmin=-1, vmax=1)
        for ax in row:
            ax.set(xticks=[], yticks=[])
    axes[0, 0].set_title("average face", fontsize="medium")
    for k, ax in enumerate(axes[0, 1:]):
        ax.set_title(f"part {k + 1}", fontsize="medium")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["negative", "0", "positive"])
    bar.set_label("each part divided by its largest magnitude")
    figure.suptitle(
        "Parts of faces, learnt in four ways from the same activations: "
        "local only where no entry may be negative"
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--appearances", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--pictures", default="panda_pictures", help="folder to draw in"
    )
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="few samples, one repeat")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.repeats = 100, 1

    generator = load_face_generator()
    X = face_maps(generator, args.samples, seed=0)
    unseen = face_maps(generator, min(200, args.samples), seed=1)
    ranks = (args.appearances, args.parts)
    rows, pictures = measure(X, unseen, ranks, args.repeats)
    print(f"{BLOCK}, {tuple(X.shape)}, {ranks[1]} parts, {ranks[0]} appearances")
    show(rows)
    path = Path(args.pictures) / "figure_8.png"
    draw(pictures, average_face(generator, min(200, args.samples)), path)
    print(f"Parts are drawn in {path}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "methods": rows}, file, indent=1)


if __name__ == "__main__":
    main()
