"""Directions found for a region: how local, how far from the data, how consistent.

With the latents, regions and equal change of ``bench_natural_edits.py``, but as many
appearances as there are channels, so that the distance from the data covers every
direction. Directions are found on 12 latents. Each method offers five, with either
sign; the one with the lowest ROIR on eight other latents is taken, and measured on 64
that nothing was learnt or chosen from:

appearances, variations   those of the part, 24 and 5 of them
found, g                  ``LocalEditor.find_directions`` with g as ``naturalness``
LOCO Edit, r              the leading directions of the region's J, from which the r
                          leading ones of the rest's J are projected out
LowRankGAN                the same after J'J is split into low rank and sparse

J is the derivative of the image with respect to what is added at the part, the same for
all three. The columns are those of ``bench_natural_edits.py``; *alike* is the
consistency. Then prints the time with exact derivatives, with differences, and with
products with J alone, and the cosines between their directions.

    python -m pip install -e ".[bench]" && python benchmarks/bench_directions.py
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from bench_editing import REGIONS, best_part, choose, region_mask
from bench_natural_edits import (
    BANDS,
    COLUMNS,
    DIGIT_LATENTS,
    Ground,
    adding,
    fitted,
    measure,
    trained_decoder,
)
from rivals import loco_directions, low_rank_directions

from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.decomposition import layout_of
from panda_sklearn.editing import _directions
from panda_sklearn.feature_extractor import run_of, tap_of
from panda_sklearn.utils.undo import Undo

NATURALNESS = (0.0, 0.001, 0.003, 0.01, 0.1, 1.0)
N_FOUND, N_LATENTS = 5, 12


def faces(n_train):
    """The shipped generator."""
    generator = load_face_generator()

    def latents(n, seed):
        return sample_latents(generator, n, random_state=seed)

    editor = fitted(generator, "block16", latents(n_train, 0), ranks=(12, 128))
    masks = {name: region_mask(name) for name in REGIONS}
    return Ground("faces", "block32", editor, latents, masks, 0.2, 24)


def digits(n_train):
    """The decoder of digits."""
    decoder = trained_decoder()

    def latents(n, seed):
        return sample_latents(decoder, n, random_state=seed)

    editor = fitted(decoder, "block8", latents(n_train, 0), ranks=(8, 48))
    masks = {}
    for name, rows in BANDS.items():
        masks[name] = torch.zeros(16, 16)
        masks[name][rows] = 1
    return Ground("digits", "block16", editor, latents, masks, 0.3, DIGIT_LATENTS)


def derivative_grams(ground, part, mask, latents):
    """J'M^2 J of the region and of the rest, (C, C), means over latents."""
    extractor, panda = ground.editor.extractor, ground.editor.decomposition
    values = panda.parts_[part].flatten()
    values = (values - values.min()) / (values.max() - values.min())
    every = torch.eye(panda.map_shape_[0])
    with Undo() as undo, undo:
        responses = _directions.Responses(
            tap_of(extractor),
            run_of(extractor, undo),
            layout_of(panda),
            values,
            extractor.batch_size,
        )
        return _directions.grams(
            responses,
            tuple(enumerate(latents.split(1))),
            mask,
            every,
            lambda n: None,
        )


def methods(ground, part, mask, latents):
    """Name of the method -> candidates."""
    editor = ground.editor
    panda = editor.decomposition
    found = {"variations": panda.variations(part, N_FOUND)[0]}
    for g in NATURALNESS:
        found[f"found, {g:g}"] = editor.find_directions(
            latents, part, N_FOUND, mask, naturalness=g
        )
    inside, outside = derivative_grams(ground, part, mask, latents)
    for r in (5, 20):
        found[f"LOCO Edit, {r}"] = loco_directions(inside, outside, N_FOUND, r)
    found["LowRankGAN"] = low_rank_directions(inside, outside, N_FOUND)
    offered = {
        name: adding(
            ground,
            part,
            name,
            [(f"direction {n}", {"appearance": row}) for n, row in enumerate(rows)],
        )
        for name, rows in found.items()
    }
    each = range(min(ground.n_candidates, len(panda.appearances_)))
    return {
        "appearances": adding(
            ground,
            part,
            "appearances",
            [(f"appearance {j}", {"appearance": j}) for j in each],
        ),
        **offered,
    }


def run(ground, n_test, regions):
    """Print the tables of a network; region -> rows."""
    tuning, latents = ground.latents(8, 1), ground.latents(2 * n_test, 2)
    few = ground.latents(N_LATENTS, 0)
    generate = ground.editor.extractor.generate
    tuned, images, others = generate(tuning), *generate(latents).split(n_test)
    latents, tables = latents[:n_test], {}
    for region in regions or ground.masks:
        mask = ground.masks[region]
        part = best_part(ground.editor, mask)
        print(f"\n{ground.name}, {region}: part {part}")
        print(f"{'':16}{'ROIR':>6}" + "".join(f"{name:>10}" for name in COLUMNS))
        rows = []
        for name, candidates in methods(ground, part, mask, few).items():
            if not candidates:
                print(f"{name:16}  has no direction")
                continue
            method = choose(candidates, tuning, tuned, mask, ground.target)
            row = measure(ground, part, method, latents, images, others, mask)
            rows.append(row)
            print(
                f"{name:16}{row['roi_ratio']:6.2f}"
                + "".join(f"{row[column]:10.2f}" for column in COLUMNS)
                + f"  {row['edit']}",
                flush=True,
            )
        tables[region] = rows
    return tables


def summary(tables):
    """Print means over regions: geometric, but arithmetic for the consistency."""
    print(f"\nall regions{'':5}{'ROIR':>6}" + "".join(f"{c:>10}" for c in COLUMNS))
    names = dict.fromkeys(row["method"] for rows in tables.values() for row in rows)
    for name in names:
        its = [row for rows in tables.values() for row in rows if row["method"] == name]
        line = f"{name:16}"
        for column, width in (("roi_ratio", 6), *((c, 10) for c in COLUMNS)):
            values = np.array([row[column] for row in its])
            plain = column in ("ssim", "psnr", "alike", "reached")
            mean = values.mean() if plain else np.exp(np.log(values).mean())
            line += f"{mean:{width}.2f}"
        print(line)


def times(ground, repeats):
    """Print the times of the three ways, and cosines between their directions."""
    few, region = ground.latents(N_LATENTS, 0), next(iter(ground.masks))
    mask = ground.masks[region]
    part = best_part(ground.editor, mask)

    def found(**options):
        start = time.perf_counter()
        rows = ground.editor.find_directions(few, part, N_FOUND, mask, **options)
        return rows.double(), time.perf_counter() - start

    exact = [found(derivatives="exact") for _ in range(repeats)]
    seconds = np.median([s for _, s in exact])
    print(
        f"\n{ground.name}: exact derivatives, formed, {seconds:.1f} s; as a ratio to it"
    )
    most = _directions.MOST_CHANNELS
    for name in ("differences", "products"):
        _directions.MOST_CHANNELS = 1 if name == "products" else most
        kind = "differences" if name == "differences" else "exact"
        try:
            others = [found(derivatives=kind) for _ in range(repeats)]
        finally:
            _directions.MOST_CHANNELS = most
        ratio = np.median([s for _, s in others]) / seconds
        cosines = (exact[0][0] * others[0][0]).sum(dim=1).abs()
        print(
            f"{name:16}{ratio:6.2f}, cosines of the directions "
            + ", ".join(f"{value:.3f}" for value in cosines)
        )


def draw(tables, path):
    """Draw ROIR against distance: the trade-off as a curve, and the other methods."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.8))
    for ax, (title, table) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        means = {}
        for rows in table.values():
            for row in rows:
                pair = means.setdefault(row["method"], [])
                pair.append((row["distance"], row["roi_ratio"]))
        means = {name: np.exp(np.log(p).mean(axis=0)) for name, p in means.items()}
        trade = np.array([xy for name, xy in means.items() if name.startswith("found")])
        ax.plot(*trade.T, "o-", color="tab:green", markersize=5)
        for name, (x, y) in means.items():
            found = name.startswith("found")
            if not found:
                ax.plot(x, y, "s", color="tab:gray", markersize=5)
            ax.annotate(
                name.removeprefix("found, "),
                (x, y),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize="small",
                color="tab:green" if found else "black",
            )
        ax.set(xscale="log", yscale="log", title=title)
        ax.set(xlabel="distance from the data at the part", ylabel="ROIR")
        for axis, edges in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            wide = edges[1] > 10 * edges[0]
            axis.set_major_locator(
                LogLocator(subs=(1, 3) if wide else (1, 1.5, 2, 3, 5, 7))
            )
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        ax.margins(0.2)
        ax.grid(alpha=0.3)
    figure.tight_layout()
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
    n_train, n_test, repeats = (100, 8, 1) if options.quick else (1000, 64, 2)
    tables = {}
    for name, make in (("faces", faces), ("digits", digits)):
        if options.only not in (None, name):
            continue
        ground = make(n_train)
        first = list(ground.masks)[:1] if options.quick else None
        times(ground, repeats)
        tables[name] = run(ground, n_test, first)
        summary(tables[name])
        if options.json:
            options.json.write_text(json.dumps(tables))
    if options.figure:
        draw(tables, options.figure)


if __name__ == "__main__":
    # Raised by torch's own forward mode.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    main()
