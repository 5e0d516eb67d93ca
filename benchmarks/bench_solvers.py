"""Time and objective of the solvers on the shipped face generator's 16 x 16 block.

Prints, for each setting, the median over the repeats of its time as a ratio to the
full-gradient "pgd" fit of the same repeat, and of the objective on the training samples
and on unseen ones, both as a share of the samples' sum of squares. The last rows are
Algorithm 1 as the paper runs it: one sample an iteration, at several fixed learning
rates (in units of 1 / the mean sum of squares of a sample).

    python benchmarks/bench_solvers.py --json solvers.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import load_face_generator, sample_latents

RANKS = {"n_parts": 12, "n_appearances": 48}
SETTINGS = {
    "pgd, full gradient": {},
    "pgd, batches of 20": {"batch_size": 20},
    "adam, full gradient": {"solver": "adam"},
    "adam, batches of 20": {"solver": "adam", "batch_size": 20},
}
ALGORITHM_1 = {"batch_size": 1, "max_iter": 10_000, "tol": 0}


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.003, 0.03, 0.3])
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    generator = load_face_generator()
    latents = sample_latents(generator, args.samples + 200, random_state=0)
    features = GeneratorFeatureExtractor(generator, "block16").fit_transform(latents)
    train, unseen = features[: args.samples], features[args.samples :]

    unit = float((train**2).sum()) / len(train)
    settings = SETTINGS | {
        f"Algorithm 1, rate {rate:g}": {**ALGORITHM_1, "learning_rate": rate / unit}
        for rate in args.rates
    }
    rows = {name: [] for name in settings}
    for repeat in range(args.repeats):
        for name, options in settings.items():
            panda = PartsAppearanceDecomposition(
                **RANKS, **options, random_state=repeat
            )
            started = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                try:
                    panda.fit(train)
                except ValueError:  # a rate that diverges is a result too
                    rows[name].append({"diverged": True})
                    continue
            rows[name].append(
                {
                    "seconds": time.perf_counter() - started,
                    "iterations": panda.n_iter_,
                    "training": 1 - panda.score(train),
                    "unseen": 1 - panda.score(unseen),
                }
            )
    base = [row["seconds"] for row in rows["pgd, full gradient"]]
    print(f"{'':24}{'time':>8}{'iterations':>12}{'training':>10}{'unseen':>8}")
    for name, repeats in rows.items():
        if any("diverged" in row for row in repeats):
            print(f"{name:24}diverged")
            continue
        ratio = statistics.median(
            row["seconds"] / b for row, b in zip(repeats, base, strict=True)
        )
        n_iter, training, unseen_ = (
            statistics.median(row[key] for row in repeats)
            for key in ("iterations", "training", "unseen")
        )
        print(f"{name:24}{ratio:8.2f}{n_iter:12.0f}{training:10.4f}{unseen_:8.4f}")
    print(f"time 1.00 is {statistics.median(base):.1f} s on {args.threads} threads")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
