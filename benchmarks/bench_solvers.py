"""Time, objective and memory of the solvers, compared with each other and with rivals.

For each case, prints medians over the repeats: the time as a ratio to the "spg" fit of
the same repeat, and the objective on the training samples and on unseen ones as a
fraction of their sum of squares. The rows are:

spg              the package's own solver, with its defaults
pgd, adam        the other two, with batches of 20 samples
Algorithm 1      as in the paper: 10,000 steps of one sample each, at the best of six
                 learning rates a decade apart. The objectives are those of "pgd", which
                 takes the same steps but multiplies in a cheaper order; the time is
                 extrapolated from 200 steps in the paper's order
floor            one channel scatter and one position Gram of the data
unconstrained    "spg" with nonnegative=False, beside tensorly's partial Tucker
                 decomposition, which has the same model
PCA              PCA of the flattened maps, with as many coefficients per sample, but at
                 most half as many as there are samples
sooner           the time in which "pgd" and "adam" come within a thousandth of the
                 objective of "spg" on all training samples, if they do

Then prints the time of ``refine`` per sample, as a ratio to 100 literal steps of
equation (4) on one sample; the peak memory of a fit; how the time of an iteration grows
with each size (the exponent, fitted to times at four sizes); and the time of a fit of
small maps with torch's default number of threads, alone and beside a busy process, as a
ratio to that with one thread.

    python -m pip install -e ".[bench]" && python benchmarks/bench_solvers.py

With ``--device cuda`` each fit is also run on the CPU, with the same samples.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial

import numpy as np
import torch

from panda_sklearn import GeneratorFeatureExtractor, PartsAppearanceDecomposition
from panda_sklearn.datasets import (
    load_face_generator,
    make_parts_appearances,
    sample_latents,
)

RATES = [10.0**k for k in range(-4, 2)]  # in units of 1 / mean sum of squares
N_STEPS, N_TIMED = 10_000, 200
N_UNSEEN = 200

# Like stacked steps of a diffusion model; with a fraction of the samples of the others.
MANY_CHANNELS = "planted C=2400 S=64 (24, 6)"
FEWER = 5


def face_maps(block, n_samples):
    """Activations of a block of the shipped generator."""
    generator = load_face_generator()
    latents = sample_latents(generator, n_samples, random_state=0)
    return GeneratorFeatureExtractor(generator, block).fit_transform(latents)


def planted_maps(n_channels, side, ranks):
    """A function that makes noisy planted maps in single precision."""

    def make(n_samples):
        X, *_ = make_parts_appearances(
            n_samples,
            ranks[1],
            ranks[0],
            n_channels=n_channels,
            spatial_shape=(side, side),
            snr_db=10,
            random_state=0,
        )
        return torch.from_numpy(X.astype("float32"))

    return make


def cases():
    """Name -> (function of the number of samples, (R_C, R_S))."""
    table = {}
    for block, n_channels in (("block8", 192), ("block16", 128), ("block32", 64)):
        for ranks in ((n_channels, 8), (16, 12)):
            table[f"faces {block} {ranks}"] = (
                lambda n, block=block: face_maps(block, n),
                ranks,
            )
    for n_channels, side, ranks in (
        (512, 16, (512, 8)),
        (512, 16, (64, 8)),
        (64, 32, (64, 16)),
    ):
        table[f"planted C={n_channels} S={side**2} {ranks}"] = (
            planted_maps(n_channels, side, ranks),
            ranks,
        )
    table[MANY_CHANNELS] = (planted_maps(2400, 8, (24, 6)), (24, 6))
    return table


def timed(function):
    """Seconds, and what the function returned."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    started = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - started, result


def fitted(X, ranks, **options):
    """Seconds that a fit takes, and the fitted estimator."""
    panda = PartsAppearanceDecomposition(ranks[1], ranks[0], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timed(lambda: panda.fit(X))


def fit(X, unseen, ranks, **options):
    """Time and objectives of a fit of the estimator."""
    seconds, panda = fitted(X, ranks, **options)
    return {
        "seconds": seconds,
        "iterations": panda.n_iter_,
        "passes": panda.n_passes_,
        "training": 1 - panda.score(X),
        "unseen": 1 - panda.score(unseen),
    }


def sooner(X, ranks, solver, seed, target):
    """Seconds that a solver needs for an objective of ``target`` on all samples.

    Doubles the iterations from fit to fit; ``None`` if no fit reaches the target.
    """
    for n_iter in (50, 100, 200, 400, 800, 1600, 3200):
        row = fit(
            X,
            X,
            ranks,
            solver=solver,
            batch_size=20,
            tol=0,
            max_iter=n_iter,
            random_state=seed,
        )
        if row["training"] <= target:
            return row["seconds"]
    return None


def algorithm_1(X, unseen, ranks, seed):
    """Objectives of Algorithm 1 at the learning rate that is best for training."""
    unit = float((X**2).sum()) / len(X)
    found = []
    for rate in RATES:
        options = {
            "solver": "pgd",
            "batch_size": 1,
            "max_iter": N_STEPS,
            "tol": 0,
            "learning_rate": rate / unit,
            "random_state": seed,
        }
        try:
            found.append(fit(X, unseen, ranks, **options) | {"rate": rate})
        except ValueError:  # diverged
            continue
    return min(found, key=lambda row: row["training"])


def literal_seconds(X, ranks):
    """Seconds of all steps of Algorithm 1 in the paper's order of evaluation."""
    Z = X.flatten(2)
    _, C, S = Z.shape
    A = torch.linalg.qr(torch.randn(C, ranks[0]))[0].to(Z)
    P = 0.01 * torch.rand(S, ranks[1]).to(Z)
    rate = 1e-3 / float((Z**2).sum() / len(Z))

    def steps():
        A_, P_ = A, P
        for i in range(N_TIMED):
            z = Z[i % len(Z)]
            Pb, Ab = P_ @ P_.T, A_ @ A_.T
            gradient = (
                Pb @ z.T @ Ab @ Ab @ z @ P_
                + z.T @ Ab @ Ab @ z @ Pb @ P_
                - 2 * z.T @ Ab @ z @ P_
            )
            P_ = (P_ - rate * 2 * gradient).clamp(min=0)
            Pb = P_ @ P_.T
            gradient = (
                Ab @ z @ Pb @ Pb @ z.T @ A_
                + z @ Pb @ Pb @ z.T @ Ab @ A_
                - 2 * z @ Pb @ z.T @ A_
            )
            A_ = A_ - rate * 2 * gradient

    return timed(steps)[0] * N_STEPS / N_TIMED


def floor_seconds(X):
    """Seconds of one channel scatter and one position Gram."""
    Z = X.flatten(2)
    _, C, S = Z.shape
    scatter, gram = Z.new_zeros(C, C), Z.new_zeros(S, S)

    def products():
        for batch in Z.split(max(1, 2**21 // (C * S))):
            rows = batch.transpose(0, 1).reshape(C, -1)
            scatter.add_(rows @ rows.T)
            rows = batch.reshape(-1, S)
            gram.add_(rows.T @ rows)

    return timed(products)[0]


def partial_tucker(X, unseen, ranks):
    """Tensorly's decomposition of the second and third mode."""
    import tensorly
    from tensorly.decomposition import partial_tucker as decompose

    tensorly.set_backend("pytorch")
    Z = X.flatten(2)
    with torch.no_grad():
        seconds, ((_, (A, P)), _) = timed(
            lambda: decompose(Z, rank=list(ranks), modes=[1, 2], tol=1e-6)
        )

    def error(Z):
        return float(((Z - A @ (A.T @ Z @ P) @ P.T) ** 2).sum() / (Z**2).sum())

    return {
        "seconds": seconds,
        "training": error(Z),
        "unseen": error(unseen.flatten(2)),
    }


def pca(X, unseen, ranks, seed):
    """PCA of the flattened maps; reconstructions include its mean."""
    from sklearn.decomposition import PCA

    n_components = min(math.prod(ranks), len(X) // 2)
    model = PCA(n_components, svd_solver="randomized", random_state=seed)
    rows, others = X.flatten(1).numpy(), unseen.flatten(1).numpy()
    seconds, _ = timed(lambda: model.fit(rows))

    def error(rows):
        rest = rows - model.inverse_transform(model.transform(rows))
        return float(np.square(rest).sum() / np.square(rows).sum())

    return {"seconds": seconds, "training": error(rows), "unseen": error(others)}


def measure(X, unseen, ranks, repeats, *, quick):
    """Rows of one case: name -> one record for each repeat.

    ``quick`` leaves out the objectives of Algorithm 1.
    """
    rows = {}

    def add(name, record):
        rows.setdefault(name, []).append(record)

    for seed in range(repeats):
        add("spg", fit(X, unseen, ranks, random_state=seed))
        if X.device.type != "cpu":
            on_cpu = fit(X.cpu(), unseen.cpu(), ranks, random_state=seed)
            add("spg on the CPU", on_cpu)
        add("floor", {"seconds": floor_seconds(X)})
        add("Algorithm 1", {"seconds": literal_seconds(X, ranks)})
    if quick:
        return rows
    best = algorithm_1(X, unseen, ranks, seed=0)
    for record in rows["Algorithm 1"]:
        record.update({key: best[key] for key in ("training", "unseen", "rate")})
    return rows


def rivals(X, unseen, ranks, repeats):
    """Rows of the other solvers and methods, each repeat beside its own "spg" fit."""
    rows = {}

    def add(name, record):
        rows.setdefault(name, []).append(record)

    for seed in range(repeats):
        options = {"random_state": seed}
        batches = {"batch_size": 20, "tol": 1e-5, **options}
        add("spg", fit(X, unseen, ranks, **options))
        add("pgd", fit(X, unseen, ranks, solver="pgd", **batches))
        add("adam", fit(X, unseen, ranks, solver="adam", **batches))
        target = 1.001 * rows["spg"][-1]["training"]
        for solver in ("pgd", "adam"):
            seconds = sooner(X, ranks, solver, seed, target)
            if seconds is not None:
                add(f"{solver}, sooner", {"seconds": seconds, "seed": seed})
        add("spg, unconstrained", fit(X, unseen, ranks, nonnegative=False, **options))
        add("partial Tucker", partial_tucker(X, unseen, ranks))
        add("PCA", pca(X, unseen, ranks, seed))
    return rows


def show(name, rows):
    """Print one case."""
    base = [row["seconds"] for row in rows["spg"]]
    print(f"\n{name}: 1.00 is {statistics.median(base):.2f} s", flush=True)
    print(f"  {'':20}{'time':>9}{'training':>10}{'unseen':>9}{'iterations':>12}")
    for label, records in rows.items():
        beside = (
            base if "seed" not in records[0] else [base[r["seed"]] for r in records]
        )
        ratios = [r["seconds"] / b for r, b in zip(records, beside, strict=True)]
        line = f"  {label:20}{statistics.median(ratios):9.2f}"
        for key in ("training", "unseen"):
            if key in records[0]:
                line += f"{statistics.median(r[key] for r in records):10.4f}"[-10:]
        if "iterations" in records[0]:
            line += f"{statistics.median(r['iterations'] for r in records):11.0f}"
        if "passes" in records[0] and label == "spg":
            line += f"   passes {statistics.median(r['passes'] for r in records):.0f}"
        if "rate" in records[0]:
            line += f"   rate {records[0]['rate']:g}"
        print(line, flush=True)


def refinement(repeats):
    """Seconds per sample of ``refine`` and of literal steps, and the errors of both."""
    n, c, side, ranks = 256, 512, 32, (512, 16)
    X = planted_maps(c, side, ranks)(n)
    panda = PartsAppearanceDecomposition(ranks[1], ranks[0], max_iter=1, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panda.fit(X)
    A, P = panda.appearances_.T, panda.parts_.flatten(1).T
    z = X[0].flatten(1)
    rate = 0.25 / float((z**2).sum())

    def literal_steps():
        own, Ab = P, A @ A.T
        for _ in range(100):
            Pb = own @ own.T
            gradient = (
                Pb @ z.T @ Ab @ Ab @ z @ own
                + z.T @ Ab @ Ab @ z @ Pb @ own
                - 2 * z.T @ Ab @ z @ own
            )
            own = (own - rate * 2 * gradient).clamp(min=0)
        return own

    def error(own):
        return float(((z - A @ (A.T @ z @ own) @ own.T) ** 2).sum() / (z**2).sum())

    rows = []
    for _ in range(repeats):
        seconds, refined = timed(lambda: panda.refine(X))
        literal, own = timed(literal_steps)
        rows.append(
            {
                "seconds": seconds / n,
                "literal": literal,
                "ratio": literal * n / seconds,
                "error of refine": error(refined[0].flatten(1).T),
                "error of literal steps": error(own),
                "error before": error(P),
            }
        )
    return rows


MEMORY = """
import sys, torch
from panda_sklearn import PartsAppearanceDecomposition
torch.set_num_threads({threads})
def peak():
    lines = open("/proc/self/status").read().split("\\n")
    return {{l.split(":")[0]: l.split()[1] for l in lines if l.startswith("Vm")}}
X = torch.randn({n}, {c}, {side}, {side})
warm = PartsAppearanceDecomposition(*{ranks}, max_iter=2, tol=0)
warm.fit(X[:max(8, {n} // 50)])
open("/proc/self/clear_refs", "w").write("5")
before = int(peak()["VmRSS"])
PartsAppearanceDecomposition(*{ranks}, max_iter=3, tol=0).fit(X)
print((int(peak()["VmHWM"]) - before) * 1024 / (4 * X.numel()))
"""


def memory(threads):
    """Peak memory of a fit beyond the data, over the data, in a fresh process."""
    shares = {}
    for n, c, side, ranks in (
        (1000, 512, 16, (8, 512)),
        (1000, 512, 16, (8, 64)),
        (100, 512, 64, (8, 512)),
        (100, 512, 64, (8, 64)),
    ):
        code = MEMORY.format(n=n, c=c, side=side, ranks=ranks, threads=threads)
        output = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        shares[f"N={n} C={c} S={side**2} R={ranks[::-1]}"] = float(output)
    return shares


def growth(repeats):
    """Exponents with which the time of five iterations grows in each size."""
    base = {"N": 400, "C": 64, "side": 16, "R_C": 16, "R_S": 8}
    exponents = {}
    for name, sizes in {
        "N": (200, 400, 800, 1600),
        "C": (32, 64, 128, 256),
        "side": (8, 16, 24, 32),
        "R_C": (8, 16, 32, 64),
        "R_S": (4, 8, 16, 32),
    }.items():
        seconds = []
        for size in sizes:
            now = base | {name: size}
            torch.manual_seed(0)
            X = torch.randn(now["N"], now["C"], now["side"], now["side"])
            panda = PartsAppearanceDecomposition(
                now["R_S"], now["R_C"], max_iter=5, tol=0, random_state=0
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runs = [timed(lambda: panda.fit(X))[0] for _ in range(repeats)]  # noqa: B023
            seconds.append(statistics.median(runs))
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        exponents["S" if name == "side" else name] = float(
            slope / 2 if name == "side" else slope
        )
    return exponents


BUSY = """
import time, torch, warnings
from panda_sklearn import PartsAppearanceDecomposition
warnings.simplefilter("ignore")
if {threads}:
    torch.set_num_threads({threads})
X = torch.load({path!r})
PartsAppearanceDecomposition(16, 32, max_iter=2, random_state=0).fit(X[:200])
started = time.perf_counter()
PartsAppearanceDecomposition(16, 32, random_state=0).fit(X)
print(time.perf_counter() - started)
"""


def beside_others(repeats):
    """Time of a fit, alone and beside a busy process, over that with one thread."""
    ratios = {"alone": [], "beside a busy process": []}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "X.pt")
        torch.save(face_maps("block16", 1000), path)

        def seconds(threads, busy):
            other = [sys.executable, "-c", "while True: pass"]
            process = subprocess.Popen(other) if busy else None
            try:
                code = BUSY.format(threads=threads, path=path)
                run = [sys.executable, "-c", code]
                return float(
                    subprocess.run(run, capture_output=True, check=True).stdout
                )
            finally:
                if process is not None:
                    process.kill()

        for _ in range(repeats):
            base = seconds(1, False)
            ratios["alone"].append(seconds(0, False) / base)
            ratios["beside a busy process"].append(seconds(0, True) / base)
    return {name: statistics.median(values) for name, values in ratios.items()}


def quick_rows():
    """Rows for ``compare.py``: fits in units of the floor, and refinement."""

    def fits(make, ranks, n_samples, **options):
        X = make(n_samples)
        while True:
            # The same start each time: repeats differ by the machine alone.
            seconds, _ = fitted(X, ranks, random_state=0, **options)
            yield seconds, floor_seconds(X)

    def refinements():
        X = planted_maps(512, 32, (64, 16))(64)
        _, panda = fitted(X, (64, 16), max_iter=1, tol=0)
        while True:
            yield timed(lambda: panda.refine(X))[0], floor_seconds(X)

    table = cases()
    rows = {
        f"spg, {name} / floor": partial(fits, *table[name], n_samples)
        for name, n_samples in (
            ("faces block16 (16, 12)", 1000),
            ("planted C=512 S=256 (64, 8)", 1000),
            ("planted C=64 S=1024 (64, 16)", 1000),
            (MANY_CHANNELS, 1000 // FEWER),
        )
    }
    name, batches = "faces block16 (16, 12)", {"batch_size": 20, "tol": 0}
    for solver in ("pgd", "adam"):
        options = {"solver": solver, "max_iter": 300, **batches}
        rows[f"{solver}, 300 iterations, {name} / floor"] = partial(
            fits, *table[name], 1000, **options
        )
    return rows | {"refine, planted C=512 S=1024 / floor": refinements}


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where the samples are")
    parser.add_argument("--only", default="", help="only cases whose name has this")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="without objectives of Algorithm 1"
    )
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results = {"arguments": vars(args), "cases": {}, "rivals": {}}

    def keep():
        if args.json:
            with open(args.json, "w") as file:
                json.dump(results, file, indent=1)

    for name, (make, ranks) in cases().items():
        if args.only not in name:
            continue
        n_samples = args.samples // (FEWER if name == MANY_CHANNELS else 1)
        X = make(n_samples + N_UNSEEN).to(args.device)
        X, unseen = X[:n_samples], X[n_samples:]
        results["cases"][name] = measure(
            X, unseen, ranks, args.repeats, quick=args.quick
        )
        show(name, results["cases"][name])
        keep()
        if not args.no_rivals:
            results["rivals"][name] = rivals(X, unseen, ranks, args.repeats)
            show(name, results["rivals"][name])
            keep()
    if not args.only and args.device == "cpu":
        results["refine"] = refinement(args.repeats)
        ratios = [row["ratio"] for row in results["refine"]]
        print(f"\nrefine: {statistics.median(ratios):.0f} times less time per sample")
        results["memory"] = memory(args.threads)
        results["growth"] = growth(args.repeats)
        print("\npeak memory beyond the data, as a fraction of the data:")
        for name, share in results["memory"].items():
            print(f"  {name:32}{share:6.2f}")
        print("\ntime of an iteration grows with the size to the power of:")
        for name, power in results["growth"].items():
            print(f"  {name:6}{power:6.2f}")
        results["beside others"] = beside_others(args.repeats)
        print("\ntime of a fit of small maps, over that with one thread:")
        for name, ratio in results["beside others"].items():
            print(f"  {name:24}{ratio:6.2f}")
        keep()


if __name__ == "__main__":
    main()
