"""Which ways of choosing both ranks name the planted ones.

On activations of 90 samples of 12 channels and 8 x 8 positions, of four families (see
``FAMILIES``), with noise at 10, 5 and 0 dB. The candidates are all pairs of ranks from
two below to three above the planted ones; the score is ``heldout_reconstruction`` over
three folds, of fits with parts of any sign or, with ``--nonnegative``, non-negative
ones. Prints how often each rule names both ranks, and how far off the others are.

    python benchmarks/bench_ranks.py --seeds 3
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import time
import warnings

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.metrics import heldout_reconstruction
from panda_sklearn.model_selection import OneStandardError

SAMPLES, CHANNELS, SHAPE = 90, 12, (8, 8)

FAMILIES = {
    "equal": "Voronoi cells with random weights; coefficients of equal variance",
    "falling": "as equal; appearances fall to a tenth in standard deviation",
    "uneven": "cells of uneven sizes; parts fall to three tenths",
    "overlap": "as equal; neighbouring parts blurred into each other (sigma 1)",
}

NOISE = (10, 5, 0)  # decibels

# n_parts, n_appearances
PLANTED = ((4, 4), (2, 6), (3, 2), (6, 6), (8, 3), (8, 8))


def cells(random, n_parts, uneven):
    """Which part each position belongs to; each part has a few positions at least."""
    positions = np.indices(SHAPE).reshape(2, -1).T
    fewest = 2 if uneven else max(3, len(positions) // (3 * n_parts))
    while True:
        centres = random.uniform(size=(n_parts, 2)) * np.subtract(SHAPE, 1)
        distances = np.linalg.norm(positions[:, None] - centres, axis=2)
        if uneven:
            distances -= random.uniform(0, 2, n_parts)
        owner = distances.argmin(axis=1)
        if np.bincount(owner, minlength=n_parts).min() >= fewest:
            return owner


def planted(family, n_parts, n_appearances, snr_db, seed):
    """Activations of shape (SAMPLES, CHANNELS, *SHAPE)."""
    place = list(FAMILIES).index(family)
    random = np.random.default_rng([seed, n_parts, n_appearances, place, snr_db])
    owner = cells(random, n_parts, family == "uneven")
    P = (owner == np.arange(n_parts)[:, None]).astype(float)
    if family == "overlap":
        P = np.stack([gaussian_filter(p.reshape(SHAPE), 1).ravel() for p in P])
    P *= random.uniform(0.5, 1, P.shape)
    P /= np.linalg.norm(P, axis=1, keepdims=True)
    A = np.linalg.qr(random.standard_normal((CHANNELS, n_appearances)))[0]
    L = random.standard_normal((SAMPLES, n_appearances, n_parts))
    if family == "falling":
        L *= np.geomspace(1, 0.1, n_appearances)[:, None]
    if family == "uneven":
        L *= np.geomspace(1, 0.3, n_parts)
    X = A @ L @ P
    noise = random.standard_normal(X.shape)
    X += math.sqrt(np.mean(X**2) / 10 ** (snr_db / 10)) * noise
    return X.reshape(SAMPLES, CHANNELS, *SHAPE)


def search(X, n_parts, n_appearances, nonnegative):
    """What the rules choose: rule -> (n_parts, n_appearances)."""
    grid = {
        "n_parts": list(range(max(1, n_parts - 2), n_parts + 4)),
        "n_appearances": list(
            range(max(1, n_appearances - 2), min(n_appearances + 3, CHANNELS) + 1)
        ),
    }
    found = GridSearchCV(
        PartsAppearanceDecomposition(nonnegative=nonnegative, random_state=0),
        grid,
        scoring=heldout_reconstruction,
        refit=False,
        cv=3,
        error_score="raise",
    ).fit(X)
    table = found.cv_results_
    chosen = {
        "best": table["params"][int(np.argmax(table["mean_test_score"]))],
        "one standard error": table["params"][OneStandardError()(table)],
    }
    return {rule: (p["n_parts"], p["n_appearances"]) for rule, p in chosen.items()}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--nonnegative", action="store_true", help="non-negative parts")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--planted", type=int, nargs=2, action="append", metavar="RANK")
    parser.add_argument("--json", help="file to write the choices to")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows, start = [], time.perf_counter()
    wanted = [tuple(ranks) for ranks in arguments.planted or PLANTED]
    families = arguments.family or list(FAMILIES)
    for ranks, family, snr_db, seed in itertools.product(
        wanted, families, NOISE, range(arguments.seeds)
    ):
        X = planted(family, *ranks, snr_db, seed)
        chosen = search(X, *ranks, arguments.nonnegative)
        rows += [(rule, family, snr_db, ranks, its) for rule, its in chosen.items()]
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(rows, file)
    kind = "non-negative parts" if arguments.nonnegative else "parts of any sign"
    print(f"{kind}, {time.perf_counter() - start:.0f} s")
    for rule, family in itertools.product(("best", "one standard error"), families):
        off = collections.Counter(
            tuple(np.subtract(its, ranks).tolist())
            for its_rule, its_family, _, ranks, its in rows
            if (its_rule, its_family) == (rule, family)
        )
        right, total = off.pop((0, 0), 0), len(rows) // 2 // len(families)
        print(f"{rule:20}{family:10}{right:4} of {total}   off by {dict(off) or '-'}")


if __name__ == "__main__":
    main()
