"""Time and memory of a grid search over ranks, with and without a cache.

On the 16 x 16 block of the shipped generator: 12 settings, three folds, from latents to
scores. Prints the time as a ratio to one fit of the largest setting to all samples, and
to Algorithm 1 in the paper's order of evaluation (10,000 steps, extrapolated from 200);
how many samples the generator is run on; and, for a network of 100 MB, how much memory
a search adds and how long a hit in the cache takes.

    python benchmarks/bench_search.py --json search.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import torch
from bench_solvers import literal_seconds, timed
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from torch import nn

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import load_face_generator, sample_latents
from panda_sklearn.memory import TensorMemory

GRID = {"panda__n_parts": [4, 8, 12, 16], "panda__n_appearances": [16, 32, 48]}
LARGEST = {"panda__n_parts": 16, "panda__n_appearances": 48}


def pipeline_of(network, layer, memory=None):
    """Latents -> coefficients."""
    extractor = GeneratorFeatureExtractor(network, layer, batch_size=100)
    panda = PartsAppearanceDecomposition(random_state=0)
    return Pipeline([("maps", extractor), ("panda", panda)], memory=memory)


def search(pipeline, latents, n_jobs):
    """Seconds that a search takes, and the search."""
    found = GridSearchCV(pipeline, GRID, cv=3, n_jobs=n_jobs, error_score="raise")
    return timed(lambda: found.fit(latents))


def searches(n_samples, repeats):
    """Times of one fit and of the searches, one record for each repeat."""
    generator = load_face_generator()
    latents = sample_latents(generator, n_samples, random_state=0)
    seen = []
    generator.block4.register_forward_hook(lambda m, a, out: seen.append(len(out)))
    rows = []
    for _ in range(repeats):
        plain = pipeline_of(generator, "block16")
        row = {"one fit": timed(lambda: plain.set_params(**LARGEST).fit(latents))[0]}  # noqa: B023
        X = plain[0].transform(latents)
        row["Algorithm 1"] = literal_seconds(X, (48, 16))
        for name, n_jobs in (("search", 1), ("search, n_jobs=2", 2)):
            with tempfile.TemporaryDirectory() as folder:
                cached = pipeline_of(generator, "block16", TensorMemory(folder))
                seen.clear()
                row[name], _ = search(cached, latents, n_jobs)
                if n_jobs == 2:
                    row["search, n_jobs=2, tol=1e-5"], _ = search(
                        cached.set_params(panda__tol=1e-5), latents, 2
                    )
                else:
                    row["samples seen"] = sum(seen)
                    row["search again"], _ = search(cached, latents, n_jobs)
        seen.clear()
        row["search, no cache"], _ = search(plain, latents, 1)
        row["samples seen, no cache"] = sum(seen)
        rows.append(row)
    return rows


def resident():
    """Bytes of memory in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def large_network():
    """A network of 100 MB, and latents for it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(16, 5_000), nn.Linear(5_000, 5_000), nn.Unflatten(1, (5, 1_000))
    )
    return network, torch.randn(60, 16)


def costs_of_size():
    """What a search over a large network adds to memory, and the cost of a hit."""
    network, latents = large_network()
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    plain = pipeline_of(network, "2").set_params(panda__max_iter=2, panda__tol=0)
    plain.set_params(panda__n_parts=12, panda__n_appearances=5).fit(latents)
    before = resident()
    grid = {"panda__n_parts": list(range(1, 13))}
    GridSearchCV(plain, grid, cv=3, error_score="raise").fit(latents)
    added = resident() - before
    with tempfile.TemporaryDirectory() as folder:
        cached = TensorMemory(folder).cache(plain[0].transform)
        cached(latents)
        hits = [timed(lambda: cached(latents))[0] for _ in range(3)]
    forward = [timed(lambda: plain[0].transform(latents))[0] for _ in range(3)]
    return {
        "network": size,
        "added": added,
        "hit": statistics.median(hits),
        "forward pass": statistics.median(forward),
    }


def quick_rows():
    """Rows for ``compare.py``: a search over a fit, and a hit in the cache."""

    def searching():
        generator = load_face_generator()
        latents = sample_latents(generator, 200, random_state=0)
        plain = pipeline_of(generator, "block16").set_params(**LARGEST)
        while True:
            with tempfile.TemporaryDirectory() as folder:
                cached = pipeline_of(generator, "block16", TensorMemory(folder))
                seconds, _ = search(cached, latents, 1)
            yield seconds, timed(lambda: plain.fit(latents))[0]

    def hits():
        network, latents = large_network()
        extractor = pipeline_of(network, "2")[0].fit(latents)
        with tempfile.TemporaryDirectory() as folder:
            cached = TensorMemory(folder).cache(extractor.transform)
            cached(latents)
            while True:
                forward, _ = timed(lambda: extractor.transform(latents))
                yield timed(lambda: cached(latents))[0], forward

    return {
        "search of 12 settings, 200 samples / one fit": searching,
        "hit in the cache, network of 100 MB / forward pass": hits,
    }


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    rows = searches(args.samples, args.repeats)
    print(f"{'':26}{'s':>8}{'/ one fit':>11}{'/ Algorithm 1':>15}")
    for name in (n for n in rows[0] if not n.startswith("samples")):
        seconds = statistics.median(row[name] for row in rows)
        fit = statistics.median(row[name] / row["one fit"] for row in rows)
        literal = statistics.median(row[name] / row["Algorithm 1"] for row in rows)
        print(f"{name:26}{seconds:8.1f}{fit:11.1f}{literal:15.2f}")
    for name in ("samples seen", "samples seen, no cache"):
        print(f"{name:26}{rows[0][name]:8}")
    large = costs_of_size()
    print(
        f"network of {large['network'] / 1e6:.0f} MB: a search of 36 fits adds "
        f"{large['added'] / 1e6:.0f} MB; a hit takes {large['hit']:.2f} s, its forward "
        f"pass {large['forward pass']:.2f} s"
    )
    if args.json:
        results = {"arguments": vars(args), "searches": rows, "large network": large}
        results["seconds"] = time.perf_counter() - started
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
