"""Gradients in closed form against autograd: section 4.3.3 of the paper.

Prints three kinds of tables, with medians over the repeats; the order is reversed from
one repeat to the next.

The first has the time of an evaluation, as a ratio to "closed form" in the same repeat,
with the same batch and factors. All gradients must agree, or the run ends:

closed form           the objective and both gradients, as the package's solvers compute
                      them
autograd, (3)         the same three by torch, from equation (3) as it is written
autograd, Z P first   from the objective by way of A'ZP, which needs no residual and no
                      S x S or C x C product; summed over positions first
autograd, A'Z first   the same, summed over channels first

and the time of an iteration of Algorithm 1, a step in P followed by one in A, again as
a ratio to "closed form":

closed form, steps    gradient steps with the package's gradients
(4), (5) as written   gradient steps with the paper's, whose products are formed from
                      left to right, including the S x S and C x C ones; not for the
                      whole batch, which would take gigabytes
Adam on (3)           a step of Adam in each, by two passes through equation (3)
Adam on A'ZP          the same, by the faster of the two better objectives

The second has the peak memory of an evaluation beyond the data, as a fraction of the
data.

The third has the time until a fit comes within 10% and 1% of the final objective of
"spg", as a ratio to a whole "spg" fit of the same repeat, and the number of iterations.
All fits are to at most 250 samples, from the same start. They stop once they get there:
after an iteration if it uses all samples; with batches, after a whole pass (past eight
passes, a multiple of four). "-" means that tol=1e-6 or the limit on passes (--passes)
ended them earlier. "lowest" is the lowest objective on the way, as a ratio to the final
one of "spg".

    OMP_NUM_THREADS=2 python benchmarks/bench_gradients.py
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from bench_solvers import face_maps, planted_maps, timed

from panda_sklearn import PartsAppearanceDecomposition
from panda_sklearn.core.objective import (
    gradient_appearances,
    gradient_parts,
    objective_of,
    sample_energies,
)

BATCH_SIZES = (1, 20, None)
CLOSENESS = (0.1, 0.01)
SOLVERS = {
    "spg": {"solver": "spg"},
    "pgd": {"solver": "pgd"},
    "adam": {"solver": "adam"},
    "pgd, batches of 20": {"solver": "pgd", "batch_size": 20},
    "adam, batches of 20": {"solver": "adam", "batch_size": 20},
}


def cases(quick):
    """Name -> (maps, (R_C, R_S)) for the times of evaluations."""
    n = 100 if quick else 1000
    maps = {
        "faces block16": (face_maps("block16", n), ((48, 12),)),
        "faces block32": (face_maps("block32", n), ((48, 8),)),
        "planted": (planted_maps(512, 16, (64, 8))(n // 4), ((64, 8), (512, 8))),
    }
    return {
        f"{name} C={X.shape[1]} S={X[0, 0].numel()} {ranks}": (X, ranks)
        for name, (X, choices) in maps.items()
        for ranks in choices
    }


# Evaluations: functions of Z (N, C, S), its sum of squares, A (C, R_C) and P (S, R_S)


def closed_form(Z, energy, A, P):
    """The objective and its gradients in P and in A."""
    W = Z @ P
    return (
        objective_of(Z, A, P, W=W, energy=energy),
        gradient_parts(Z, A, P, W=W),
        gradient_appearances(Z, A, P, W=W),
    )


def equation_3(Z, energy, A, P):
    """The objective, from the residual."""
    return ((Z - A @ (A.T @ Z @ P) @ P.T) ** 2).sum()


def _from_coefficients(L, energy, A, P):
    GL = torch.einsum("rq,nqk->nrk", A.T @ A, L)
    return energy + (L * (GL @ (P.T @ P) - 2 * L)).sum(dtype=energy.dtype)


def positions_first(Z, energy, A, P):
    """The objective, from A'(ZP)."""
    L = torch.einsum("cr,nck->nrk", A, Z @ P)
    return _from_coefficients(L, energy, A, P)


def channels_first(Z, energy, A, P):
    """The objective, from (A'Z)P."""
    return _from_coefficients((A.T @ Z) @ P, energy, A, P)


def by_autograd(function):
    """The evaluation of an objective and its gradients by torch."""

    def evaluate(Z, energy, A, P):
        A, P = A.detach().requires_grad_(), P.detach().requires_grad_()
        f = function(Z, energy, A, P)
        return f.detach(), *torch.autograd.grad(f, (P, A))

    return evaluate


EVALUATIONS = {
    "closed form": closed_form,
    "autograd, (3)": by_autograd(equation_3),
    "autograd, Z P first": by_autograd(positions_first),
    "autograd, A'Z first": by_autograd(channels_first),
}


def check_agreement(Z, energy, A, P):
    """Raise RuntimeError unless all evaluations agree."""
    expected = closed_form(Z, energy, A, P)
    for name, evaluate in EVALUATIONS.items():
        for one, other in zip(evaluate(Z, energy, A, P), expected, strict=True):
            error = float((one - other).norm() / other.norm())
            if not error < 1e-3:
                raise RuntimeError(f"{name} differs from closed form by {error:.1e}.")


# Iterations of Algorithm 1


def closed_form_steps(Z, energy, A, P, rate):
    """The new factors."""
    P = (P - rate * gradient_parts(Z, A, P)).clamp(min=0)
    return A - rate * gradient_appearances(Z, A, P), P


def literal_steps(Z, energy, A, P, rate):
    """The new factors, by equations (4) and (5) from left to right."""
    Pb, Ab, Zt = P @ P.T, A @ A.T, Z.mT
    gradient = 2 * (
        (Pb @ Zt @ Ab @ Ab @ Z @ P).sum(dim=0)
        + (Zt @ Ab @ Ab @ Z @ Pb @ P).sum(dim=0)
        - 2 * (Zt @ Ab @ Z @ P).sum(dim=0)
    )
    P = (P - rate * gradient).clamp(min=0)
    Pb = P @ P.T
    gradient = 2 * (
        (Ab @ Z @ Pb @ Pb @ Zt @ A).sum(dim=0)
        + (Z @ Pb @ Pb @ Zt @ Ab @ A).sum(dim=0)
        - 2 * (Z @ Pb @ Zt @ A).sum(dim=0)
    )
    return A - rate * gradient, P


def adam_steps(function, Z, energy, A, P):
    """A function that takes one more iteration at each call."""
    A, P = A.clone().requires_grad_(), P.clone().requires_grad_()
    optimisers = [torch.optim.Adam([factor], lr=1e-4) for factor in (P, A)]

    def iterate():
        for factor, optimiser in zip((P, A), optimisers, strict=True):
            f = function(Z, energy, A, P)
            (factor.grad,) = torch.autograd.grad(f, factor)
            optimiser.step()
            with torch.no_grad():
                P.clamp_(min=0)

    return iterate


def start(Z, ranks):
    """Random factors of about the right scale."""
    random = torch.Generator().manual_seed(0)
    A = torch.linalg.qr(torch.randn(Z.shape[1], ranks[0], generator=random))[0]
    P = torch.rand(Z.shape[2], ranks[1], generator=random)
    return A, P / P.norm(dim=0) / ranks[1] ** 0.5


def seconds_of(function, budget):
    """Seconds per call, over as many calls as fit the budget, at least one."""
    once, _ = timed(function)
    n_calls = max(1, math.ceil(budget / once))
    return timed(lambda: [function() for _ in range(n_calls)])[0] / n_calls


def evaluation_times(X, ranks, batch_size, repeats, budget):
    """Name -> seconds of each repeat."""
    Z = X.flatten(2)[:batch_size]
    energy = sample_energies(Z).sum()
    A, P = start(Z, ranks)
    check_agreement(Z, energy, A, P)
    rate = 1e-3 / float(energy)
    tasks = {
        name: lambda evaluate=evaluate: evaluate(Z, energy, A, P)
        for name, evaluate in EVALUATIONS.items()
    }
    tasks["closed form, steps"] = lambda: closed_form_steps(Z, energy, A, P, rate)
    if batch_size is not None:
        tasks["(4), (5) as written"] = lambda: literal_steps(Z, energy, A, P, rate)
    tasks["Adam on (3)"] = adam_steps(equation_3, Z, energy, A, P)
    for name, function in (("P", positions_first), ("A", channels_first)):
        tasks[f"Adam, {name} first"] = adam_steps(function, Z, energy, A, P)
    seconds = {name: [] for name in tasks}
    for repeat in range(repeats):
        order = list(tasks.items())
        for name, task in order if repeat % 2 == 0 else reversed(order):
            seconds[name].append(seconds_of(task, budget))
    both = [seconds.pop(f"Adam, {name} first") for name in "PA"]
    seconds["Adam on A'ZP"] = min(both, key=statistics.median)
    return seconds


def show_times(name, columns):
    """Print one case; columns is batch size -> name -> seconds."""
    units = ", ".join(
        f"{1e3 * statistics.median(column['closed form']):.3g}"
        for column in columns.values()
    )
    print(f"\n{name}: 1.00 is {units} ms")
    sizes = "".join(f"{f'batch {size}':>12}" for size in columns)
    print(f"  {'':22}{sizes}", flush=True)
    for label in columns[1]:
        if label == "closed form, steps":
            print("  an iteration of Algorithm 1:")
        line = f"  {label:22}"
        for column in columns.values():
            if label not in column:
                line += f"{'-':>12}"
                continue
            pairs = zip(column[label], column["closed form"], strict=True)
            line += f"{statistics.median(s / base for s, base in pairs):12.2f}"
        print(line)


# Memory


def peak_memory(name, shape, ranks):
    """Print the peak memory beyond the data, which are noise; for a fresh process."""
    Z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    energy = sample_energies(Z[:8]).sum()  # few: memory freed earlier would be reused
    A, P = start(Z, ranks)
    evaluate = EVALUATIONS[name]
    evaluate(Z[:8], energy, A, P)

    def status(key):
        with open("/proc/self/status") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields[key].split()[0])

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    evaluate(Z, energy, A, P)
    print((status("VmHWM") - before) * 1024 / (Z.element_size() * Z.numel()))


def memory(shape, ranks):
    """Name -> peak memory beyond the data, as a fraction of the data."""
    code = "import bench_gradients as b; b.peak_memory({!r}, {!r}, {!r})"
    shares = {}
    for name in EVALUATIONS:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            code.format(name, shape, ranks),
        ]
        output = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout
        shares[name] = float(output)
    return shares


# Time to a given objective


def fit(X, ranks, max_iter, options):
    """Seconds, and the fitted estimator."""
    panda = PartsAppearanceDecomposition(
        ranks[1], ranks[0], random_state=0, max_iter=max_iter, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timed(lambda: panda.fit(X))


def iterations_to(X, ranks, targets, options, passes):
    """Iterations until each target is reached, or None; and the lowest objective."""
    found, seen = dict.fromkeys(targets), []

    def note(n_iter, f):
        seen.append(f)
        for target in targets:
            if found[target] is None and f <= target:
                found[target] = n_iter

    if "batch_size" not in options:
        history = fit(X, ranks, passes, options)[1].objective_history_
        for n_iter, f in enumerate(history, start=1):
            note(n_iter, f)
        return found, min(seen)
    a_pass = math.ceil(len(X) / options["batch_size"])
    for n in (*range(1, 9), *range(12, passes + 1, 4)):
        _, panda = fit(X, ranks, n * a_pass, options)
        note(panda.n_iter_, panda.reconstruction_err_)
        if None not in found.values() or panda.n_iter_ < n * a_pass:
            break
    return found, min(seen)


def fits_to_objective(X, ranks, repeats, passes):
    """A record of whole fits, and (solver, closeness) -> a record of shorter fits."""
    _, panda = fit(X, ranks, 1000, SOLVERS["spg"])
    end = panda.reconstruction_err_
    whole = {"objective": end / float((X**2).sum() / len(X)), "seconds": []}
    targets = [(1 + near) * end for near in CLOSENESS]
    rows = {}
    for name, options in SOLVERS.items():
        found, lowest = iterations_to(X, ranks, targets, options, passes)
        for near, target in zip(CLOSENESS, targets, strict=True):
            rows[name, near] = {
                "iterations": found[target],
                "seconds": [],
                "lowest": lowest / end,
            }
    for repeat in range(repeats):
        before, _ = fit(X, ranks, 1000, SOLVERS["spg"])
        for name, near in list(rows)[:: 1 if repeat % 2 == 0 else -1]:
            row = rows[name, near]
            if row["iterations"] is not None:
                seconds, _ = fit(X, ranks, row["iterations"], SOLVERS[name])
                row["seconds"].append(seconds)
        after, _ = fit(X, ranks, 1000, SOLVERS["spg"])
        whole["seconds"].append((before + after) / 2)
    return whole, rows


def show_fits(name, whole, rows):
    """Print one case."""
    base = whole["seconds"]
    print(
        f'\n{name}: 1.00 is a whole "spg" fit, {statistics.median(base):.2f} s, to '
        f"{whole['objective']:.4f} of the sum of squares"
    )
    heads = "".join(f"{f'to {near:.0%}':>9}{'iterations':>12}" for near in CLOSENESS)
    print(f"  {'':22}{heads}{'lowest':>9}")
    for solver in SOLVERS:
        line = f"  {solver:22}"
        for near in CLOSENESS:
            row = rows[solver, near]
            if row["iterations"] is None:
                line += f"{'-':>9}{'-':>12}"
                continue
            ratios = [s / b for s, b in zip(row["seconds"], base, strict=True)]
            line += f"{statistics.median(ratios):9.2f}{row['iterations']:12}"
        print(line + f"{row['lowest']:9.3f}", flush=True)


def quick_rows():
    """Rows for ``compare.py``: an evaluation in closed form over one by autograd."""

    def evaluations():
        Z = face_maps("block16", 100).flatten(2)
        energy = sample_energies(Z).sum()
        A, P = start(Z, (48, 12))
        while True:
            yield tuple(
                seconds_of(lambda name=name: EVALUATIONS[name](Z, energy, A, P), 0.1)
                for name in ("closed form", "autograd, Z P first")
            )

    return {"gradients, faces block16 (48, 12) / autograd": evaluations}


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="of evaluations")
    parser.add_argument("--fits", type=int, default=3, help="repeats of fits")
    parser.add_argument(
        "--budget", type=float, default=0.03, help="seconds for each evaluation"
    )
    parser.add_argument("--passes", type=int, default=200, help="limit for a fit")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="few samples and repeats")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.fits, args.budget, args.passes = 1, 1, 0.001, 20

    results = {"arguments": vars(args), "evaluations": {}, "memory": {}, "fits": {}}
    table = cases(args.quick)
    for name, (X, ranks) in table.items():
        results["evaluations"][name] = columns = {
            size or len(X): evaluation_times(X, ranks, size, args.repeats, args.budget)
            for size in BATCH_SIZES
        }
        show_times(name, columns)

    case = next(iter(table))
    X, ranks = table[case]
    results["memory"] = memory(tuple(X.flatten(2).shape), ranks)
    print(f"\n{case}: peak memory beyond the data, as a fraction of the data")
    for label, share in results["memory"].items():
        print(f"  {label:22}{share:12.2f}")

    for name in (n for n in table if n.endswith(("(48, 12)", "(64, 8)"))):
        X, ranks = table[name][0][:250], table[name][1]
        whole, rows = fits_to_objective(X, ranks, args.fits, args.passes)
        show_fits(f"{name}, N={len(X)}", whole, rows)
        results["fits"][name] = {
            "whole": whole,
            **{f"{solver} {near}": row for (solver, near), row in rows.items()},
        }
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
