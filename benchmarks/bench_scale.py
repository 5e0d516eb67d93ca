"""Fits of data on disk: time and peak memory, by kind of source and by size.

Writes activations of 512 channels and 16 x 16 positions to a file, up to 8 GB, and
deletes it afterwards. Each fit and each transform runs in a child process whose data
segment is limited. Pages of mapped files do not count against that limit, so the peak
of the resident set is measured too. For each file, prints its size; the passes over it;
the times of the fit and of the transform, as ratios to one bare read of the file with
one channel scatter and one position Gram; and by how much the resident set grew, at its
peak, beyond the imported package.

Then fits one such file by several workers with one thread each: processes of a
torch.distributed group (gloo) and workers of a Dask cluster. For each, prints the time,
also as a ratio to one process with one thread, and how much a process of the group sent
in each pass.

    python -m pip install -e ".[stored,dask]" && python benchmarks/bench_scale.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

N_CHANNELS, SIDE, RANKS = 512, 16, (64, 8)
LIMIT = 4 * 2**30  # of a child's data segment; torch itself takes about 1.5 GB of it
GB = 1e9


def written(path, kind, n_samples):
    """Write planted activations to a file, batch by batch."""
    shape = n_samples, N_CHANNELS, SIDE, SIDE
    chunks = (32, *shape[1:])
    if kind == "memmap":
        into = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    elif kind == "h5py":
        import h5py

        file = h5py.File(path, "w")
        into = file.create_dataset("X", shape, np.float32, chunks=chunks)
    else:
        import zarr

        into = zarr.create_array(
            str(path), shape=shape, dtype="float32", chunks=chunks, compressors=None
        )
    random = np.random.default_rng(0)
    parts = random.random((SIDE * SIDE, 8)).astype(np.float32) ** 8
    appearances = np.linalg.qr(random.standard_normal((N_CHANNELS, 64)))[0]
    appearances = appearances.astype(np.float32)
    for start in range(0, n_samples, 256):
        n = min(256, n_samples - start)
        L = random.standard_normal((n, 64, 8), dtype=np.float32)
        Z = appearances @ L @ parts.T
        Z += 0.3 * Z.std() * random.standard_normal(Z.shape, dtype=np.float32)
        into[start : start + n] = Z.reshape(n, *shape[1:])
    if kind == "memmap":
        into.flush()
    elif kind == "h5py":
        file.close()


def opened(path, kind):
    """The file, opened as users would."""
    if kind == "memmap":
        return np.load(path, mmap_mode="r")
    if kind == "h5py":
        import h5py

        return h5py.File(path, "r")["X"]
    import zarr

    return zarr.open_array(str(path), mode="r")


def megabytes(name):
    """A figure from the status of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1000
    raise KeyError(name)


def reset_peak():
    """Reset the peak of the resident set; return its present size."""
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")


def child(path, kind, threads):
    """Measure one file; print a record."""
    import torch

    from panda_sklearn import PartsAppearanceDecomposition

    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    warnings.simplefilter("ignore")
    warm = np.random.default_rng(0).random((40, 16, 8, 8), dtype=np.float32)
    PartsAppearanceDecomposition(3, random_state=0).fit(warm).transform(warm)
    X = opened(path, kind)
    n_samples = X.shape[0]
    record = {"GB": 4 * float(np.prod(X.shape)) / GB}

    def bare():
        scatter = torch.zeros(N_CHANNELS, N_CHANNELS)
        gram = torch.zeros(SIDE**2, SIDE**2)
        for start in range(0, n_samples, 32):
            Z = torch.from_numpy(np.array(X[start : start + 32])).flatten(2)
            rows = Z.transpose(0, 1).flatten(1)
            scatter.add_(rows @ rows.T)
            rows = Z.flatten(0, 1)
            gram.add_(rows.T @ rows)

    def timed(name, function):
        before = reset_peak()
        started = time.perf_counter()
        function()
        record[name + " seconds"] = time.perf_counter() - started
        record[name + " MB"] = megabytes("VmHWM") - before

    panda = PartsAppearanceDecomposition(RANKS[1], RANKS[0], random_state=0)
    timed("fit", lambda: panda.fit(X))
    timed("bare", bare)
    record["passes"] = panda.n_passes_
    record["iterations"] = panda.n_iter_
    out = np.lib.format.open_memmap(
        Path(path).parent / "out.npy", "w+", np.float32, (n_samples, np.prod(RANKS))
    )
    timed("transform", lambda: panda.transform(X, out=out))
    print(json.dumps(record))


def measured(path, kind, threads):
    """The record of a child process."""
    output = subprocess.run(
        [sys.executable, __file__, "--child", str(path), kind, str(threads)],
        capture_output=True,
        text=True,
    )
    if output.returncode:
        raise RuntimeError(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def fitted_by(path, mode, n_workers):
    """Fit one file by workers; the first of them prints a record."""
    import torch

    from panda_sklearn import PartsAppearanceDecomposition

    torch.set_num_threads(threads_of(mode, n_workers))
    warnings.simplefilter("ignore")
    panda = PartsAppearanceDecomposition(RANKS[1], RANKS[0], random_state=0)
    warm = np.random.default_rng(0).random((40, 16, 8, 8), dtype=np.float32)
    PartsAppearanceDecomposition(3, random_state=0, distributed=False).fit(warm)

    def timed(X):
        started = time.perf_counter()
        panda.fit(X)
        return {
            "seconds": time.perf_counter() - started,
            "passes": panda.n_passes_,
            "sent": getattr(panda, "n_bytes_sent_", 0),
        }

    X = opened(path, "memmap")
    if mode == "ranks":
        from torch import distributed as dist

        dist.init_process_group("gloo")
        bounds = np.linspace(0, len(X), n_workers + 1).astype(int)
        rank = dist.get_rank()
        record = timed(X[bounds[rank] : bounds[rank + 1]])
        dist.destroy_process_group()
        if rank:
            return
    elif mode == "dask":
        import dask.array as da
        from dask import delayed
        from distributed import Client, LocalCluster

        def read(start, stop):
            torch.set_num_threads(1)
            return np.array(opened(path, "memmap")[start:stop])

        with (
            LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
            ) as cluster,
            Client(cluster),
        ):
            size = 128
            blocks = [
                da.from_delayed(
                    delayed(read)(start, min(start + size, len(X))),
                    (min(size, len(X) - start), *X.shape[1:]),
                    np.float32,
                )
                for start in range(0, len(X), size)
            ]
            record = timed(da.concatenate(blocks))
    else:
        record = timed(X)
    print(json.dumps(record))


def by_workers(path, mode, n_workers):
    """The record of a fit by workers."""
    command = [sys.executable]
    if mode == "ranks":
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={n_workers}"]
    output = subprocess.run(
        [*command, __file__, "--fit", str(path), mode, str(n_workers)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads_of(mode, n_workers))},
    )
    if output.returncode:
        raise RuntimeError(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def compare_workers(size, folder):
    """Print the table of workers, for a file of ``size`` GB."""
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        path = Path(folder) / "X.memmap"
        written(path, "memmap", int(size * GB / (4 * N_CHANNELS * SIDE**2)))
        opened(path, "memmap").sum()  # into the page cache, the same for all
        one = None
        print(
            f"\n{'workers':26}{'GB':>5}{'passes':>8}{'seconds':>9}{'ratio':>7}"
            f"{'MB sent':>9}"
        )
        for name, mode, n in (
            ("one process, one thread", "threads", 1),
            ("one process, two threads", "threads", 2),
            ("group of one", "ranks", 1),
            ("group of two", "ranks", 2),
            ("Dask, one worker", "dask", 1),
            ("Dask, two workers", "dask", 2),
        ):
            r = min((by_workers(path, mode, n) for _ in range(3)), key=seconds_of)
            one = one or r["seconds"]
            sent = r["sent"] / r["passes"] / 1e6
            print(
                f"{name:26}{size:5.1f}{r['passes']:8}{r['seconds']:9.2f}"
                f"{r['seconds'] / one:7.2f}{sent:9.2f}",
                flush=True,
            )


def threads_of(mode, n_workers):
    """Threads of one process."""
    return n_workers if mode == "threads" else 1


def seconds_of(record):
    """Seconds of a recorded fit."""
    return record["seconds"]


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.5, 2, 8])
    parser.add_argument("--kinds", nargs="*", default=["memmap", "h5py", "zarr"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where to write; a temporary one by default")
    parser.add_argument("--workers", type=float, nargs="*", default=[0.5, 2])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--fit", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        path, mode, n_workers = args.fit
        fitted_by(path, mode, int(n_workers))
        return
    if args.child:
        path, kind, threads = args.child
        child(path, kind, int(threads))
        return
    print(
        f"{'source':8}{'GB':>6}{'passes':>8}{'fit':>7}{'transform':>11}{'bare s':>8}"
        f"{'peak of fit, MB':>17}{'of transform':>14}"
    )
    for kind in args.kinds:
        # All kinds at the largest size, and the first kind at all sizes.
        sizes = args.gigabytes if kind == args.kinds[0] else args.gigabytes[-1:]
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                path = Path(folder) / f"X.{kind}"
                n_samples = int(size * GB / (4 * N_CHANNELS * SIDE**2))
                written(path, kind, n_samples)
                r = measured(path, kind, args.threads)
            bare = r["bare seconds"]
            print(
                f"{kind:8}{r['GB']:6.1f}{r['passes']:8}{r['fit seconds'] / bare:7.2f}"
                f"{r['transform seconds'] / bare:11.2f}{bare:8.1f}"
                f"{r['fit MB']:17.0f}{r['transform MB']:14.0f}",
                flush=True,
            )
    for size in args.workers:
        compare_workers(size, args.folder)


if __name__ == "__main__":
    main()
