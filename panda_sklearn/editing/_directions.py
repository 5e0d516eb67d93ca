r"""Vectors of channels that change one region of the image and little else.

Notation: v (C,) a direction; m (S,) the part, scaled to the range 0 to 1; J (pixels and
colours x C) the derivative of an image with respect to t, where t m' is added to the
activations; M the region, a value from 0 to 1 for each pixel; W (C x C) with W'W the
covariance of what the part shows in the data, so that v = W'u has one standard
deviation for a u of length 1. Directions maximise

    sum_i ||M * J_i v||^2 / (sum_i ||(1 - M) * J_i v||^2 + g h ||u||^2)

one after the other: they change the region and little else, and stay near the data. h
is the largest value of the sum before it for a u of length 1.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from tqdm import tqdm

from panda_sklearn._variations import variations_of
from panda_sklearn.decomposition import PartsAppearanceDecomposition, layout_of
from panda_sklearn.editing._derivatives import Numbered, Responses
from panda_sklearn.editing._edit import Edit
from panda_sklearn.editing._lookup import Sizes, term_of, weights_of
from panda_sklearn.feature_extractor import (
    GeneratorFeatureExtractor,
    extract,
    generate_changed,
    length_of_batches,
    run_of,
    running_device,
    tap_of,
)
from panda_sklearn.utils.arithmetic import in_full_precision, own_arithmetic
from panda_sklearn.utils.arrays import as_tensor, promoted
from panda_sklearn.utils.batches import is_out_of_memory, users_level
from panda_sklearn.utils.undo import Undo
from panda_sklearn.utils.validation import (
    check_choice,
    check_count,
    check_mask,
    check_single,
    check_verbose,
)

__all__ = ["find_directions", "grams"]

DERIVATIVES = ("auto", "exact", "differences")

# J is formed up to this many channels, and bytes for one latent; beyond, only products
# with J are computed.
MOST_CHANNELS = 512
MOST_BYTES = 2**30
# With such products: most iterations, their tolerance, and power iterations for h.
MAX_ITER, TOL, N_POWER = 10, 1e-3, 8
# Directions sought beyond those wanted, which then converge sooner.
EXTRA = 3

# A direction has not converged if its residual exceeds this fraction of A u.
ROUGH = 0.1

# The smallest g: directions that change nothing have no ratio without it.
LEAST_NATURALNESS = 1e-4

# Changes below this fraction of others are rounding errors.
TINY = 1e-10
# Variations below this fraction of the first one's standard deviation are rounding
# errors.
FLOOR = 1e-4

# The step of finite differences, as a fraction of the activations' root mean square, is
# this times the cube root of their precision: rounding and curvature count alike there.
STEP = 2.0

# Two images of the same latents that differ by more than this fraction of the largest
# value differ by more than rounding.
NOISE = 1e-2

# Pixels whose products are summed at a time in double precision.
AT_ONCE = 2**16


def find_directions(
    extractor: GeneratorFeatureExtractor,
    decomposition: PartsAppearanceDecomposition,
    latents: Tensor,
    part: Any,
    n_directions: Any,
    region: Any,
    *,
    naturalness: Any,
    derivatives: Any,
    image_spatial: tuple[int, ...],
    verbose: Any,
) -> Tensor:
    """Return the directions of ``LocalEditor.find_directions``, of checked latents.

    They are on the CPU.
    """
    map_shape = decomposition.map_shape_
    n_directions = check_count("n_directions", n_directions)
    if n_directions > map_shape[0]:
        raise ValueError(
            f"n_directions must be at most {map_shape[0]}, the number of channels, got "
            f"{n_directions}."
        )
    naturalness = check_single("naturalness", naturalness, at_least=0)
    check_choice("derivatives", derivatives, DERIVATIVES)
    verbose = check_verbose(verbose)
    edit = Edit(0, part)
    sizes = Sizes.of(extractor, None)
    term = term_of(edit, decomposition, sizes, known={})
    if region is None:
        (region,) = term.outline(slice(None), term.mask, map_shape, image_spatial)
    else:
        shape = f"({', '.join(map(str, image_spatial))})"
        region = check_mask(region, "region", shape)
        if tuple(region.shape) != image_spatial:
            raise ValueError(
                f"region must be of the images' shape {image_spatial}, got "
                f"{tuple(region.shape)}."
            )
    weights = weights_of(edit, term.mask, decomposition)
    with torch.inference_mode(False):  # in which nothing can be differentiated
        return _best_directions(
            extractor,
            decomposition,
            latents.clone(),
            term.mask.clone(),
            weights,
            region.clone(),
            n_directions,
            naturalness=naturalness,
            derivatives=derivatives,
            verbose=verbose,
        )


def _best_directions(
    extractor: GeneratorFeatureExtractor,
    decomposition: PartsAppearanceDecomposition,
    latents: Tensor,
    mask: Tensor,
    weights: Tensor,
    region: Tensor,
    n_directions: int,
    *,
    naturalness: float,
    derivatives: str,
    verbose: int,
) -> Tensor:
    """Unit directions (n_directions, C), the best first.

    Parameters
    ----------
    extractor, decomposition, latents, n_directions, derivatives, verbose
        As for :func:`find_directions`, checked. No tensor is of inference mode.

    mask : Tensor of shape (S,)
        m.

    weights : Tensor of shape (R_S,)
        How much each part counts there.

    region : Tensor of shape image_spatial
        M.

    naturalness : float
        g.

    Raises
    ------
    ValueError
        If exact derivatives are asked for and the network has none, nothing is known
        to vary at the part, or the part does not reach the region.
    """
    device = running_device(extractor)
    W = _spread(decomposition, weights).to(device, torch.float32)
    region = region.to(device)
    layout, colors = layout_of(decomposition), cast(tuple, extractor.image_shape_)[0]
    size = length_of_batches(extractor)
    if _draws_noise(extractor, latents):
        size = 1  # else each row of J would be of an image with other noise
    few = len(W) <= MOST_CHANNELS
    few = few and 4 * len(W) * colors * region.numel() <= MOST_BYTES

    def solved(step: float | None) -> Tensor:
        how = "exact derivatives" if step is None else "finite differences"
        with (
            tqdm(
                total=len(latents) * len(W) if few or step is not None else None,
                desc=f"LocalEditor, directions by {how}",
                disable=not verbose,
                mininterval=1,
            ) as bar,
            Undo() as undo,
            undo,
        ):
            run, tap = run_of(extractor, undo), tap_of(extractor)
            responses = Responses(tap, run, layout, mask, size, step)
            solve = _by_matrices if few or step is not None else _by_products
            each = tuple(enumerate(latents.split(1)))
            parts = (responses, each, region, W)
            return solve(*parts, n_directions, naturalness, bar.update)

    if derivatives != "differences":
        try:
            return _as_directions(solved(None), W)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if derivatives == "exact":
                raise ValueError(
                    "The network has no exact derivatives in forward mode, or in "
                    f"backward mode where that is needed ({type(error).__name__}: "
                    f"{error}). Use derivatives='differences'."
                ) from error
            failure = f"{type(error).__name__}: {error}"
        # If the network itself fails, it raises here.
        generate_changed(extractor, latents[:1], None, verbose=0)
        warnings.warn(
            "Directions are found by finite differences, since the network has no "
            f"exact derivatives in forward or backward mode ({failure}). Set "
            "derivatives='differences' to ask for them, without this warning.",
            UserWarning,
            stacklevel=users_level(),
        )
    features = as_tensor(extract(extractor, latents, verbose=0), keep_type=True)
    step = STEP * torch.finfo(features.dtype).eps ** (1 / 3)
    rms = float(features.double().square().mean().sqrt())
    return _as_directions(solved(step * rms or step), W)


def _draws_noise(extractor: GeneratorFeatureExtractor, latents: Tensor) -> bool:
    """Whether noise makes an image depend on its place in the batch."""
    twice = latents[:1].expand(2, *latents.shape[1:])
    rows = torch.zeros(2, dtype=torch.int64, device="cpu")
    made = generate_changed(extractor, twice, None, rows=rows, verbose=0)
    one, other = promoted(made)
    return bool((one - other).abs().max() > NOISE * one.abs().max())


def _spread(decomposition: PartsAppearanceDecomposition, weights: Tensor) -> Tensor:
    """W, whose rows are the part's variations times their standard deviations.

    How vectors outside the span of the appearances vary is not known: they are given
    the smallest of these standard deviations.
    """
    vectors, stds = variations_of(decomposition, weights, None)
    if not stds[0] > 0:
        raise ValueError(
            "part does not vary in the training data, so what is natural there is not "
            "known. Fit the decomposition to more samples, or choose another part."
        )
    varying = stds > FLOOR * stds[0]
    vectors, stds = vectors[varying], stds[varying]
    every = torch.linalg.qr(vectors.T, mode="complete").Q.T
    every[: len(vectors)] = vectors
    lengths = torch.full_like(every[0], float(stds[-1]))
    lengths[: len(stds)] = stds
    return every * lengths[:, None]


def _as_directions(U: Tensor, W: Tensor) -> Tensor:
    """W'u of each row u, with length 1 and its entry of largest magnitude positive."""
    vectors = U @ W.to(U)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return (vectors * largest.sign()).float()


def _by_matrices(
    responses: Responses,
    latents: Sequence[Numbered],
    region: Tensor,
    W: Tensor,
    n: int,
    g: float,
    done: Callable[[int], Any],
) -> Tensor:
    """Rows u (n, C), from the two matrices of the objective."""
    inside, outside = grams(responses, latents, region, W, done)
    A, B = inside.numpy(), outside.numpy()
    change, h = float(np.trace(A)), float(np.linalg.eigvalsh(B)[-1])
    _check_reached(change, h)
    h = h if h > TINY * change else change  # the region is the whole image
    B = B + max(g, LEAST_NATURALNESS) * h * np.eye(len(B))
    # In units of h, so that tolerances are relative to it.
    ends = (len(A) - n, len(A) - 1)
    _, U = scipy.linalg.eigh(A / h, B / h, subset_by_index=ends)
    return torch.from_numpy(U.T[::-1].copy())


def _check_reached(inside: float, h: float) -> None:
    """Raise ValueError if vectors added at the part do not change the region."""
    if not np.isfinite(inside) or inside <= TINY * h:
        raise ValueError(
            "Adding a vector at part does not change the region: choose a region that "
            "it reaches, or a later layer."
        )


def grams(
    responses: Responses,
    latents: Sequence[Numbered],
    region: Tensor,
    vectors: Tensor,
    done: Callable[[int], Any],
) -> tuple[Tensor, Tensor]:
    """Gram matrices (n, n) of M * J v and of (1 - M) * J v for vectors v (n, C).

    Sums over the latents, in double precision on the CPU.
    """
    inside = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device="cpu")
    outside = torch.zeros_like(inside)
    for latent in latents:
        J = responses.forward(latent, vectors)
        inside += _gram(J, region)
        outside += _gram(J, 1 - region)
        done(len(vectors))
    return inside, outside


@own_arithmetic
def _gram(J: Tensor, weights: Tensor) -> Tensor:
    """Gram matrix of weighted images (n, colours, *image_spatial), on the CPU."""
    rows = (J * weights.to(J)).flatten(1)
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    total = rows.new_zeros(len(rows), len(rows), dtype=wide)
    for some in rows.split(AT_ONCE, dim=1):
        total += some.to(wide) @ some.to(wide).T
    return total.double().cpu()


def _by_products(
    responses: Responses,
    latents: Sequence[Numbered],
    region: Tensor,
    W: Tensor,
    n: int,
    g: float,
    done: Callable[[int], Any],
) -> Tensor:
    """Rows u (n, C), from products with the two matrices alone (LOBPCG)."""
    multiply = in_full_precision(torch.matmul)

    def product(weights: Tensor, X: np.ndarray) -> np.ndarray:
        """One of the matrices times X (C, b)."""
        done(X.size // len(W))
        vectors = multiply(torch.from_numpy(X.reshape(len(W), -1).T.copy()).to(W), W)
        total = torch.zeros_like(vectors)
        for latent in latents:
            J = responses.forward(latent, vectors)
            total += responses.back(latent, weights.square().to(J) * J)
        return multiply(total, W.T).T.double().cpu().numpy()

    inside, outside = (
        functools.partial(product, weights) for weights in (region, 1 - region)
    )
    first = np.eye(len(W))[:, : n + EXTRA]
    change = float(np.trace(first.T @ inside(first)))
    x, h = first[:, :1], 0.0
    for _ in range(N_POWER):
        y = outside(x)
        h = float(np.linalg.norm(y))
        x = y / h if h > 0 else x
    _check_reached(change, h)
    h = h if h > TINY * change else change  # the region is the whole image
    ridge = max(g, LEAST_NATURALNESS)

    def left(X: np.ndarray) -> np.ndarray:
        return inside(X) / h

    def right(X: np.ndarray) -> np.ndarray:
        return outside(X) / h + ridge * X

    def operator(function: Callable) -> scipy.sparse.linalg.LinearOperator:
        return scipy.sparse.linalg.LinearOperator(
            (len(W), len(W)), matvec=function, matmat=function, dtype=np.float64
        )

    with warnings.catch_warnings():
        # The first is reported below; the second, for small problems, does no harm.
        warnings.filterwarnings("ignore", "Exited|The problem size", UserWarning)
        values, U = scipy.sparse.linalg.lobpcg(
            operator(left), first, B=operator(right), tol=TOL, maxiter=MAX_ITER
        )
    values, U = values[:n], U[:, :n]
    images = left(U)
    remains = np.linalg.norm(images - values * right(U), axis=0)
    if (remains > ROUGH * np.linalg.norm(images, axis=0)).any():
        warnings.warn(
            f"Not all directions have converged after {MAX_ITER} iterations. More "
            "naturalness makes them easier to find.",
            ConvergenceWarning,
            stacklevel=users_level(),
        )
    return torch.from_numpy(U.T.copy())
