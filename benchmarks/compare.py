"""What has become slower: against stored figures, or against another version.

    python benchmarks/compare.py                 against benchmarks/baseline.json
    python benchmarks/compare.py --against v1.0  against a tag or commit
    python benchmarks/compare.py --against       against the last tag
    python benchmarks/compare.py --update        store the figures of this run

Seconds differ between machines and are not compared. Each row is a ratio of two times
taken one after the other: a fit over the floor of its data, the extractor over a bare
loop. The scripts named in ``SCRIPTS`` have the rows; those whose packages are missing
are left out, and named.

A row is repeated for ``--seconds``, and at least ``--repeats`` times; the first
measurement does not count. Its figure is the median, and the spread is the
interquartile range. A row is slower if its median is higher by more than 10 %
(``LEAST_CHANGE``) and by more than three standard errors of the difference between the
medians. What appears slower is measured a second time, and the second figure counts.
The exit status is 1 if any row is slower, or fails as it did not before.

Figures of one kind of machine say little about another kind: a note says where the
stored ones come from. With ``--against`` both versions are measured in turns, by the
scripts of this checkout, each in a process of its own; the other version is checked out
into a temporary worktree.

About six minutes on two cores, with no other work on them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "bench_solvers",
    "bench_gradients",
    "bench_extraction",
    "bench_search",
    "bench_editing",
    "bench_explorer",
)
LEAST_CHANGE = 0.1
MOST_REPEATS = 25


# The rule


def figure(ratios):
    """What is stored of a row's ratios: median, spread and their number."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return {
        "ratio": float(f"{median:.4g}"),
        "spread": float(f"{high - low:.3g}"),
        "repeats": len(ratios),
    }


def standard_error(one):
    """The standard error of a median, from the spread, as of normal ratios."""
    return 0.93 * one["spread"] / math.sqrt(one["repeats"])


def verdict(before, now):
    """Whether a row is "slower", "faster" or neither, ""."""
    change = now["ratio"] - before["ratio"]
    noise = math.hypot(standard_error(before), standard_error(now))
    if abs(change) <= max(LEAST_CHANGE * before["ratio"], 3 * noise):
        return ""
    return "slower" if change > 0 else "faster"


# Measurements, each version's in a process of its own


def collected():
    """Name -> generator function of each row, and what was left out."""
    rows, left_out = {}, []
    for script in SCRIPTS:
        try:
            rows |= importlib.import_module(script).quick_rows()
        except ImportError as error:
            left_out.append(f"{script}: {error}")
    return rows, left_out


def serve(tree, threads, connection):
    """Measure the package in ``tree``: send facts, then answer questions."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree  # for processes that rows start
    sys.path.insert(0, tree)
    warnings.simplefilter("ignore")
    import torch

    import panda_sklearn

    if not Path(panda_sklearn.__file__).is_relative_to(tree):
        raise RuntimeError(f"{panda_sklearn.__file__} is not in {tree}.")
    torch.set_num_threads(threads)
    rows, left_out = collected()
    machine = (
        f"{platform.system()} {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, "
        f"{threads} threads, torch {torch.__version__}"
    )
    connection.send(
        {
            "rows": list(rows),
            "left out": left_out,
            "machine": machine,
            "version": panda_sklearn.__version__,
        }
    )
    # What rows print does not belong in the table.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        answer(rows, connection)


def answer(rows, connection):
    """Answer each name that arrives with a ratio, or with an error as text."""
    current, row = None, None
    while (name := connection.recv()) is not None:
        try:
            if name != current:
                if row is not None:
                    row.close()
                current, row = name, rows[name]()
                next(row)  # to warm up
            seconds, base = next(row)
            connection.send(seconds / base)
        except Exception as error:
            said = " ".join(str(error).split())
            connection.send(f"{type(error).__name__}: {said[:200]}")
    if row is not None:
        row.close()


class Version:
    """A process that measures the package in one tree.

    Attributes
    ----------
    facts : dict
        "rows", their names; "left out"; "machine", in words; and the "version".
    """

    def __init__(self, tree, threads):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(str(tree), threads, other))
        self._process.start()
        other.close()  # so that a dead process is noticed
        self.facts = self._connection.recv()

    def ratio(self, name):
        """Measure a row once.

        Raises
        ------
        RuntimeError
            If that fails.
        """
        self._connection.send(name)
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()


def measured(name, versions, seconds, repeats):
    """A figure of each version, by turns; an error's message where a row fails."""
    ratios = [[] for _ in versions]
    errors = {}
    started = None
    while True:
        order = list(range(len(versions)))
        for which in order if len(ratios[-1]) % 2 == 0 else reversed(order):
            if which not in errors:
                try:
                    ratios[which].append(versions[which].ratio(name))
                except RuntimeError as error:
                    errors[which] = str(error)
        done = max(map(len, ratios))
        started = started or time.perf_counter()  # after preparing the data
        spent = time.perf_counter() - started
        if errors or (done >= repeats and (spent >= seconds or done >= MOST_REPEATS)):
            break
    return [errors.get(i) or figure(found) for i, found in enumerate(ratios)]


# Versions of the package


def git(*arguments):
    """What git prints."""
    command = ["git", "-C", str(ROOT), *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr.strip())
    return run.stdout.strip()


@contextlib.contextmanager
def checked_out(revision):
    """A temporary worktree of a tag or commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = str(Path(folder).resolve() / "tree")
        git("worktree", "add", "--quiet", "--detach", tree, revision)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", tree)


# The table


def line(name, before, now):
    """A row of the table, and whether it is slower or fails as it did not before."""
    if isinstance(now, str):
        return f"{name:64} cannot be measured: {now}", isinstance(before, dict)
    if isinstance(before, str):
        return f"{name:64} cannot be measured in the other version: {before}", False
    if before is None:
        return f"{name:64}{'new':>9}{now['ratio']:9.3g}", False
    change = now["ratio"] / before["ratio"] - 1
    said = verdict(before, now)
    numbers = f"{before['ratio']:9.3g}{now['ratio']:9.3g}{change:+9.0%}"
    return f"{name:64}{numbers}  {said}".rstrip(), said == "slower"


def compare(names, versions, stored, options):
    """Print the table; return this version's figures, and rows slower or failing."""
    found, wrong = {}, []
    heading = options.against or "stored"
    print(f"{'':64}{heading[:8]:>9}{'now':>9}{'change':>9}", flush=True)
    for name in names:
        for _ in range(2):  # what appears wrong, once more
            *other, now = measured(name, versions, options.seconds, options.repeats)
            before = other[0] if other else stored.get(name)
            text, is_wrong = line(name, before, now)
            if not is_wrong:
                break
        print(text, flush=True)
        wrong += [name] * is_wrong
        if not isinstance(now, str):
            found[name] = now
    return found, wrong


def dated(facts):
    """What is stored with figures: when, of what and where they were measured."""
    commit = git("rev-parse", "--short", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        commit += ", changed"
    return {
        "date": datetime.date.today().isoformat(),
        "version": facts["version"],
        "commit": commit,
        "machine": facts["machine"],
    }


def parsed():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against",
        nargs="?",
        const="last tag",
        metavar="TAG",
        help="measure this tag or commit beside, rather than read the stored figures",
    )
    parser.add_argument("--update", action="store_true", help="store this run's")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[""],
        metavar="WORDS",
        help="rows whose names contain any of these",
    )
    parser.add_argument("--list", action="store_true", help="name the rows, and end")
    parser.add_argument("--seconds", type=float, default=12, help="for each row")
    parser.add_argument("--repeats", type=int, default=5, help="of a row, at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--file",
        type=Path,
        default=ROOT / "benchmarks" / "baseline.json",
        help="of the stored figures",
    )
    options = parser.parse_args()
    if options.against and options.update:
        parser.error("--update stores figures of this version alone, not --against.")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1.")
    return options


def main():
    """Measure, print, and store if asked to; the exit status."""
    options = parsed()
    stored = json.loads(options.file.read_text()) if options.file.exists() else {}
    if options.against == "last tag":
        options.against = git("describe", "--tags", "--abbrev=0")
    with contextlib.ExitStack() as stack:
        trees = [str(ROOT)]
        if options.against:
            trees.insert(0, stack.enter_context(checked_out(options.against)))
        versions = []
        for tree in trees:
            versions.append(Version(tree, options.threads))
            stack.callback(versions[-1].close)
        facts = versions[-1].facts
        names = [n for n in facts["rows"] if any(some in n for some in options.rows)]
        if options.list or not names:
            print("\n".join(facts["rows"]))
            return 0 if options.list else 2
        found, wrong = compare(names, versions, stored, options)
    for what in facts["left out"]:
        print(f"left out: {what}")
    machines = {stored[n]["machine"] for n in names if n in stored}
    if not options.against and machines - {facts["machine"]}:
        print(f"now:    {facts['machine']}")
        print("\n".join(f"stored: {machine}" for machine in sorted(machines)))
    if options.update:
        about = dated(facts)
        stored |= {name: one | about for name, one in found.items()}
        options.file.write_text(json.dumps(stored, indent=1) + "\n")
        print(f"stored {len(found)} of {len(names)} rows in {options.file}")
        return 0
    if not options.against and not any(name in stored for name in names):
        print("Nothing is stored: --update stores figures, --against TAG needs none.")
    if wrong:
        print(f"{len(wrong)} of {len(names)} rows slower or failing")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
